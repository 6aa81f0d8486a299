from benchmarks.long_run import Sample, fitted, long_run


def test_a_run_keeps_no_file_open_and_no_thread_behind(tmp_path):
    samples = long_run(tmp_path, 160, log_every=10, save_every=10, evaluate_every=40)
    later = [sample for sample in samples if sample.step > 40]
    assert len(later) == 6
    assert {sample.num_files for sample in later} == {later[0].num_files}
    assert {sample.num_threads for sample in later} == {later[0].num_threads}


def test_the_slope_is_that_of_a_straight_line_after_the_warm_up():
    samples = [Sample(step, 1000 * step if step < 25 else 50_000 + 8 * step, 3, 1) for step in range(101)]
    line = fitted(samples)
    assert abs(line.slope - 8) < 1e-6 and abs(line.gain_bytes - 8 * 74) < 1e-3
