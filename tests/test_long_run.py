from benchmarks.long_run import Sample, fitted, long_run


def test_a_run_keeps_no_file_open_and_no_thread_behind(tmp_path):
    samples = long_run(tmp_path, 160, log_every=10, save_every=10, evaluate_every=40, sample_every=5)
    earlier, later = ([s for s in samples if (s.step > 100) is late and s.step > 40] for late in (False, True))
    # At most as many, for a checkpoint that is just being written has a file open.
    assert max(s.num_files for s in later) <= max(s.num_files for s in earlier)
    assert max(s.num_threads for s in later) <= max(s.num_threads for s in earlier)


def test_the_slope_is_that_of_a_straight_line_after_the_warm_up():
    samples = [Sample(step, 1000 * step if step < 25 else 50_000 + 8 * step, 3, 1) for step in range(101)]
    line = fitted(samples)
    assert abs(line.slope - 8) < 1e-6 and abs(line.gain_bytes - 8 * 74) < 1e-3
