"""The planner's arithmetic: against the figures of Daly's paper, cases worked by hand, and runs acted out at random."""

import math

import numpy as np
import pytest

from storydist.cluster.planner import (
    Costs,
    Terms,
    Work,
    best_save_every,
    daly_s,
    expected_s,
    interval,
    lead_s,
    predict,
    undisturbed,
    young_s,
)

MINUTE, HOUR = 60.0, 3600.0
COSTS = Costs(
    step_s=2.0,
    spread=1.1,
    start_s=20.0,
    restart_s=30.0,
    warm_up_s=5.0,
    stall_s=1.0,
    write_s=4.0,
    evaluation_s=10.0,
    floors_s=7.0,
    exit_s=3.0,
)


@pytest.mark.parametrize(("mtbf_s", "minutes"), [(24 * HOUR, 117), (6 * HOUR, 57), (15 * MINUTE, 9.1)])
def test_the_optimum_is_that_of_the_paper(mtbf_s, minutes):
    """Daly 2006, figures 3 to 5: a save of 5 minutes."""
    assert daly_s(5 * MINUTE, mtbf_s) / MINUTE == pytest.approx(minutes, rel=0.006)


def test_young_s_is_the_first_order():
    assert young_s(5 * MINUTE, 24 * HOUR) == pytest.approx(2 * HOUR)
    assert daly_s(0.001, 1e6) == pytest.approx(young_s(0.001, 1e6), rel=1e-4)
    assert (daly_s(4.0, 2.0), daly_s(1.0, math.inf)) == (2.0, math.inf)


def acted_out(work_s: float, every_s: float, stall_s: float, restart_s: float, mtbf_s: float, seed: int) -> np.ndarray:
    """Wall times of runs whose failures come at random; none of the formulas is used."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(400):
        clock_s, left, failure_s = 0.0, round(work_s / every_s), generator.exponential(mtbf_s)
        while left:
            if clock_s + every_s + stall_s <= failure_s:
                clock_s, left = clock_s + every_s + stall_s, left - 1
                continue
            clock_s, failure_s = failure_s, failure_s + generator.exponential(mtbf_s)
            while clock_s + restart_s > failure_s:
                clock_s, failure_s = failure_s, failure_s + generator.exponential(mtbf_s)
            clock_s += restart_s
        found.append(clock_s)
    return np.array(found)


@pytest.mark.parametrize("mtbf_s", [200.0, 1000.0])
def test_the_expected_time_is_that_of_runs_acted_out(mtbf_s):
    every_s, stall_s, restart_s, num_intervals = 50.0, 4.0, 25.0, 60
    found = acted_out(every_s * num_intervals, every_s, stall_s, restart_s, mtbf_s, seed=1)
    expected = expected_s((every_s + stall_s) * num_intervals, every_s + stall_s, restart_s, mtbf_s)
    assert abs(expected - found.mean()) < 3 * found.std() / math.sqrt(len(found))


@pytest.mark.parametrize(("stall_s", "mtbf_s"), [(4.0, 300.0), (1.0, 2000.0)])
def test_no_other_interval_does_better_when_acted_out(stall_s, mtbf_s):
    best_s = daly_s(stall_s, mtbf_s)

    def cost(every_s: float) -> float:
        num_intervals = max(1, round(6000 / every_s))
        times = acted_out(num_intervals * every_s, every_s, stall_s, 10.0, mtbf_s, seed=2)
        return times.mean() / (num_intervals * every_s)

    others = [cost(best_s * factor) for factor in (0.25, 0.5, 2.0, 4.0)]
    assert all(cost(best_s) < other for other in others)


def test_a_run_in_one_job_is_its_parts():
    (job,) = undisturbed(COSTS, Work(steps=100, save_every=30, evaluate_every=50), Terms())
    assert job.start_s == 20 + 5 and job.steps_s == 200 and job.to_step == 100
    assert job.evaluations_s == 2 * 10 + 7
    assert job.saves_s == 5 * 1 + 4 + 3  # 30, 50, 60, 90, 100; the last one is waited for


def test_a_save_that_comes_too_soon_waits_for_the_one_before():
    (job,) = undisturbed(COSTS, Work(steps=10, save_every=1, evaluate_every=0), Terms())
    assert job.saves_s == 10 * (1 + 2) + 4 + 3


def test_the_time_limit_cuts_a_run_into_jobs():
    # A job's first 25 s are its start; the signal at 100 s finds step 38 under way, and 39 is the last.
    first, second, third = undisturbed(COSTS, Work(100, 1000, 0), Terms(limit_s=160, lead_s=60))
    assert (first.to_step, first.steps_s, first.saves_s) == (39, 78, 1 + 4 + 3)
    assert (second.start_s, second.to_step) == (35, 39 + 34)  # 65 s: step 33 is under way
    assert third.to_step == 100


def test_an_evaluation_that_the_signal_ends_is_made_anew():
    work, terms = Work(steps=40, save_every=1000, evaluate_every=38), Terms(limit_s=165, lead_s=60)
    first, second = undisturbed(COSTS, work, terms)  # 25 + 76 + 1, and 3 s for an evaluation that takes 17
    assert (first.to_step, first.evaluations_s) == (38, 3)
    assert (second.to_step, second.evaluations_s) == (40, 17 + 10)


def test_requeues_wait():
    found = predict(COSTS, Work(100, 1000, 0), Terms(limit_s=160, lead_s=60, wait_s=1000))
    assert (found.requeues, found.waits_s, found.failures_s) == (2, 2000, 0)
    assert found.wall_s == found.active_s + 2000


def test_failures_cost_what_was_not_saved_and_a_start():
    work = Work(steps=10_000, save_every=100, evaluate_every=0)
    found = predict(COSTS, work, Terms(wait_s=100, mtbf_s=20 * HOUR))
    base_s = 25 + 20_000 + 100 + 7
    assert found.failures == pytest.approx(base_s / (20 * HOUR), rel=0.01)
    assert found.failures_s == pytest.approx(found.failures * (201 / 2 + 35 + 4), rel=0.02)
    assert found.waits_s == pytest.approx(found.failures * 100)


@pytest.mark.parametrize(
    ("terms", "words"),
    [
        (Terms(limit_s=60, lead_s=60), "60 s ahead of a time limit of 60 s"),
        (Terms(limit_s=90, lead_s=60), "needs 37 s to start and finish its first step"),
        (Terms(limit_s=110, lead_s=60), "needs 52 s to start and finish its evaluation"),
    ],
)
def test_a_job_that_gets_nowhere_is_refused(terms, words):
    with pytest.raises(ValueError, match=words):
        predict(COSTS, Work(100, 10, 50), terms)


def test_a_run_that_fails_before_every_save_is_refused():
    with pytest.raises(ValueError, match="save more often"):
        predict(COSTS, Work(100_000, 100_000, 0), Terms(mtbf_s=HOUR / 2))


def test_the_interval_holds_the_expected_run():
    work, terms = Work(5000, 100, 0), Terms(limit_s=HOUR, lead_s=lead_s(COSTS), wait_s=60, mtbf_s=HOUR)
    expected, (low, high) = predict(COSTS, work, terms), interval(COSTS, work, terms)
    assert low.wall_s < expected.wall_s < high.wall_s
    assert low.failures < expected.failures < high.failures
    assert sum(job.steps_s for job in high.jobs) == pytest.approx(11_000)
    assert high.jobs[0].start_s == pytest.approx(1.1 * 25)


def test_what_is_suggested():
    assert lead_s(COSTS) == pytest.approx(2 * (1 + 4) + 2 * 2 * 1.1 + 60)
    assert best_save_every(COSTS, HOUR) == 42  # sqrt(2 * 3600) is 84.85 s; 84.2 with the higher orders
    assert best_save_every(COSTS, 1.0) == 4  # no sooner than twice the writing
    assert best_save_every(COSTS, 1e9) == 22_000
