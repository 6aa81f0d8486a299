"""How long a run will take, in how many jobs, and how often it should save: arithmetic on measured costs.

A run without failures is walked through save by save, as storydist/training/trainer.py goes; failures are added by
Daly's model (J. T. Daly, A higher order estimate of the optimum checkpoint interval for restart dumps, Future
Generation Computer Systems 22, 2006; Young, A first order approximation to the optimum checkpoint interval, CACM 17,
1974). docs/plan.md has the equations. All times are seconds.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from scipy.special import pdtrik

from storydist.cluster.lead import STEPS_AT_STOP, needed_s

NO_LIMIT = math.inf
CONFIDENCE = 0.9


@dataclass(frozen=True)
class Costs:
    """What things cost, as measured or assumed."""

    step_s: float  # mean, waiting for data included
    spread: float  # at least 1: a run's mean lies between step_s / spread and step_s * spread, CONFIDENCE
    start_s: float  # until the first step
    restart_s: float  # the same, with a checkpoint restored
    warm_up_s: float  # that the first step takes longer than another
    stall_s: float  # that the loop stands still at a save
    write_s: float  # until the checkpoint exists, beside the loop
    evaluation_s: float
    floors_s: float  # that the first evaluation takes longer
    exit_s: float  # from the run's last word to the process's end

    def shared(self, factor: float) -> "Costs":
        """What the ranks share out between them takes `factor` times as long."""
        return replace(
            self, step_s=self.step_s * factor, evaluation_s=self.evaluation_s * factor, floors_s=self.floors_s * factor
        )

    def at_speed(self, factor: float) -> "Costs":
        """The processor takes `factor` times as long for everything; the disk does not."""
        return replace(
            self.shared(factor),
            start_s=self.start_s * factor,
            restart_s=self.restart_s * factor,
            warm_up_s=self.warm_up_s * factor,
            exit_s=self.exit_s * factor,
        )


@dataclass(frozen=True)
class Work:
    """What has to be done; in steps. `evaluate_every` 0: never."""

    steps: int
    save_every: int
    evaluate_every: int

    def next_due(self, step: int) -> int:
        """The step after `step` at which the loop saves or evaluates next, or ends."""
        every = [self.save_every] + ([self.evaluate_every] if self.evaluate_every else [])
        return min(self.steps, *((step // number + 1) * number for number in every))

    def evaluates(self, step: int) -> bool:
        return bool(self.evaluate_every) and (step == self.steps or step % self.evaluate_every == 0)


@dataclass(frozen=True)
class Terms:
    """What the cluster allows and does. `lead_s`: how long ahead of the limit the signal comes. `wait_s`: from a job's
    end to the next one's start. `mtbf_s`: mean time between failures of the whole job.
    """

    limit_s: float = NO_LIMIT
    lead_s: float = 0.0
    wait_s: float = 0.0
    mtbf_s: float = math.inf


@dataclass(frozen=True)
class Job:
    """One job of a run without failures: seconds by what they go to, and how far it comes."""

    start_s: float
    steps_s: float
    saves_s: float
    evaluations_s: float
    to_step: int

    @property
    def active_s(self) -> float:
        return self.start_s + self.steps_s + self.saves_s + self.evaluations_s


@dataclass(frozen=True)
class Prediction:
    """Expected seconds of a whole run. `wall_s`: from the first job's start to the last one's end."""

    jobs: tuple[Job, ...]
    failures: float
    failures_s: float  # work made twice, and starting again
    waits_s: float

    @property
    def active_s(self) -> float:
        """While nodes are held."""
        return sum(job.active_s for job in self.jobs) + self.failures_s

    @property
    def wall_s(self) -> float:
        return self.active_s + self.waits_s

    @property
    def requeues(self) -> float:
        return len(self.jobs) - 1 + self.failures


def young_s(stall_s: float, mtbf_s: float) -> float:
    """Work between two saves that costs least, to first order: sqrt(2 stall M)."""
    return math.sqrt(2 * stall_s * mtbf_s)


def daly_s(stall_s: float, mtbf_s: float) -> float:
    """The same to higher order; M where a save takes twice that or more."""
    if stall_s >= 2 * mtbf_s:
        return mtbf_s
    if mtbf_s == math.inf:
        return math.inf
    ratio = stall_s / (2 * mtbf_s)
    return young_s(stall_s, mtbf_s) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - stall_s


def expected_s(work_s: float, every_s: float, restart_s: float, mtbf_s: float) -> float:
    """Expected time at risk of `work_s`, saves included, in intervals of `every_s`, when each failure (a Poisson
    process) costs the interval it falls into and a restart that may fail too: Daly's complete model.
    """
    if mtbf_s == math.inf:
        return work_s
    if (restart_s + every_s) / mtbf_s > 100:  # the figure would have 40 digits
        raise ValueError(
            f"with a failure every {mtbf_s:.0f} s on average, {every_s:.0f} s from save to save would hardly ever "
            "pass; save more often (train.save_every)"
        )
    return mtbf_s * math.exp(restart_s / mtbf_s) * math.expm1(every_s / mtbf_s) * work_s / every_s


def lead_s(costs: Costs) -> float:
    """How long ahead of the time limit the signal has to come, with the mean step at its slow end."""
    return needed_s(costs.step_s * costs.spread, costs.stall_s + costs.write_s)


def best_save_every(costs: Costs, mtbf_s: float) -> int:
    """Steps from save to save: the optimum interval, but no less than a checkpoint takes to be written."""
    every_s = max(daly_s(costs.stall_s, mtbf_s), 2 * costs.write_s)
    if every_s == math.inf:
        raise ValueError("without a mean time between failures there is no best interval; give --mtbf-hours")
    steps = max(1, round(every_s / costs.step_s))
    digits = max(0, len(str(steps)) - 2)
    return int(steps // 10**digits * 10**digits)


def require_progress(costs: Costs, work: Work, terms: Terms) -> None:
    """Raises ValueError when no job could get anywhere within its limit: it would be requeued for ever."""
    if terms.lead_s >= terms.limit_s:
        raise ValueError(
            f"the signal would come {terms.lead_s:.0f} s ahead of a time limit of {terms.limit_s:.0f} s; "
            "ask for more time, or give a shorter lead"
        )
    start_s = max(costs.start_s, costs.restart_s) + costs.warm_up_s
    first = {"first step": costs.step_s}
    if work.evaluate_every:  # one that the signal ends is made anew
        first["evaluation"] = costs.evaluation_s + costs.floors_s
    for name, takes_s in first.items():
        if start_s + takes_s > terms.limit_s - terms.lead_s:
            raise ValueError(
                f"the signal would come after {terms.limit_s - terms.lead_s:.0f} s, but a job needs "
                f"{start_s + takes_s:.0f} s to start and finish its {name}, so none would get anywhere; ask for more "
                "time, or give a shorter lead"
            )


def undisturbed(costs: Costs, work: Work, terms: Terms) -> list[Job]:
    """The jobs of a run that nothing but its time limit stops."""
    require_progress(costs, work, terms)
    jobs, owed, judged = list[Job](), False, False
    while not jobs or jobs[-1].to_step < work.steps or owed:
        first = jobs[-1].to_step if jobs else 0
        job, owed, judged = _job(costs, work, terms, first, owed, judged)
        jobs.append(job)
    return jobs


def _job(costs: Costs, work: Work, terms: Terms, step: int, owed: bool, judged: bool) -> tuple[Job, bool, bool]:
    """From a step to the end or the signal; with whether an evaluation is owed then, and the floors are fitted."""
    start_s = (costs.restart_s if step else costs.start_s) + costs.warm_up_s
    steps_s = saves_s = evaluations_s = 0.0
    ask_s = terms.limit_s - terms.lead_s - start_s  # when the signal comes, from here
    while True:
        if owed:
            needs_s = costs.evaluation_s + (0 if judged else costs.floors_s)
            left_s = ask_s - steps_s - saves_s - evaluations_s
            evaluations_s += max(0.0, min(needs_s, left_s))
            if needs_s > left_s:
                break
            owed, judged = False, True
        if step == work.steps:
            break
        due = work.next_due(step)
        in_time = (ask_s - steps_s - saves_s - evaluations_s) / costs.step_s
        stopped = in_time < due - step - 1
        num_steps = min(due - step, max(1, math.floor(in_time) + STEPS_AT_STOP)) if stopped else due - step
        step += num_steps
        steps_s += num_steps * costs.step_s
        saves_s += costs.stall_s + max(0.0, costs.write_s - num_steps * costs.step_s)
        owed = work.evaluates(step)
        if stopped:
            break
    saves_s += costs.write_s + costs.exit_s
    return Job(start_s, steps_s, saves_s, evaluations_s, step), owed, judged


def predict(costs: Costs, work: Work, terms: Terms) -> Prediction:
    """A whole run. Raises ValueError when it would never end."""
    jobs = undisturbed(costs, work, terms)
    base_s = sum(job.active_s for job in jobs)
    every_s = base_s / _num_saves(work, len(jobs))
    # A checkpoint counts only once it is written: a failure until then costs the interval before, too.
    again_s = costs.restart_s + costs.warm_up_s + costs.write_s
    at_risk_s = expected_s(base_s, every_s, again_s, terms.mtbf_s)
    failures = at_risk_s / terms.mtbf_s
    return Prediction(tuple(jobs), failures, at_risk_s - base_s, (len(jobs) - 1 + failures) * terms.wait_s)


def _num_saves(work: Work, num_jobs: int) -> int:
    return sum(1 for _ in saved_steps(work)) + num_jobs - 1


def saved_steps(work: Work) -> Iterator[int]:
    """The steps at which an undisturbed run saves."""
    step = 0
    while step < work.steps:
        step = work.next_due(step)
        yield step


def interval(costs: Costs, work: Work, terms: Terms) -> tuple[Prediction, Prediction]:
    """The run at the fast and the slow end of the measured speed, with few and many failures (each CONFIDENCE)."""
    ends = []
    for sign in (-1, 1):
        found = predict(costs.at_speed(costs.spread**sign), work, terms)
        if found.failures:
            count = max(0.0, float(pdtrik((1 + sign * CONFIDENCE) / 2, found.failures)))
            waits_s = found.waits_s + (count - found.failures) * terms.wait_s
            found = replace(
                found, failures=count, failures_s=found.failures_s * count / found.failures, waits_s=waits_s
            )
        ends.append(found)
    return ends[0], ends[1]
