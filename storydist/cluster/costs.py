"""What a run's ledger says things cost: the planner's figures, each with where it is from."""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

from storydist.cluster.goodput import START, Life, Line, Steps, spent, steps_of
from storydist.cluster.planner import CONFIDENCE, Costs
from storydist.training.ledger import EVALUATION

MOST_BLOCKS, FEWEST_BLOCKS = 8, 3
MEASURED = "measured"


@dataclass(frozen=True)
class Priced:
    """Costs; for each, "measured" (of how many) or what was assumed; and how many ranks it was with."""

    costs: Costs
    sources: dict[str, str]
    world_size: int

    def on(self, world_size: int) -> "Priced":
        """The same work shared out between another number of ranks."""
        if world_size == self.world_size:
            return self
        told = f"assumed: {self.world_size} rank(s) measured, {world_size} share the work without loss"
        changed = dict.fromkeys(("step_s", "evaluation_s", "floors_s"), told)
        return Priced(self.costs.shared(self.world_size / world_size), self.sources | changed, world_size)


def costs_of(lives: Sequence[Life], exit_s: float | None = None) -> Priced:
    """Raises ValueError when the lives tell too little: fewer than some lines of steps, or no checkpoint.

    `exit_s`: from the end of the loop to that of the process, which a ledger cannot know.
    """
    sources: dict[str, str] = {}
    firsts, others = steps_of(lives)
    step_s, spread = _speed(others, sources)
    warm_ups = [max(0.0, first.took_s - first.count * step_s) for first in firsts]
    starts = [(life.begin["step"], part.seconds[START]) for life, part in zip(lives, spent(lives), strict=True)]
    fresh, again = ([took_s for step, took_s in starts if bool(step) == resumed] for resumed in (False, True))
    written = [line for life in lives for line in life.written]
    if not written:
        raise ValueError("the ledger tells of no checkpoint; measure a run that has saved")
    evaluations = list(_evaluations(lives))
    later = evaluations[1:] or evaluations
    costs = Costs(
        step_s=step_s,
        spread=spread,
        start_s=_mean("start_s", fresh or again, sources, None if fresh else "as one that is resumed"),
        restart_s=_mean("restart_s", again or fresh, sources, None if again else "as a first start"),
        warm_up_s=_mean("warm_up_s", warm_ups, sources),
        stall_s=statistics.median(line["stall_s"] - line["waited_s"] for line in written),
        write_s=_mean("write_s", [line["write_s"] for line in written], sources),
        evaluation_s=_mean("evaluation_s", later, sources, None if later else "none"),
        floors_s=max(0.0, evaluations[0] - statistics.mean(later)) if later else 0.0,
        exit_s=exit_s or 0.0,
    )
    sources["stall_s"] = f"{MEASURED}, {len(written)}"
    sources["floors_s"] = f"{MEASURED}, 1" if evaluations[1:] else "assumed: none beside the evaluation"
    sources["exit_s"] = "assumed: none" if exit_s is None else MEASURED
    return Priced(costs, sources, lives[-1].begin["world_size"])


def _speed(stretches: Sequence[Steps], sources: dict[str, str]) -> tuple[float, float]:
    """Seconds a step, and by which factor a further block's mean may differ (Student's t, on logarithms).

    The whole run is taken for one such block: as if its speed were drawn once, as on machines shared with others.
    """
    size = -(-len(stretches) // MOST_BLOCKS) or 1
    blocks = [stretches[first : first + size] for first in range(0, len(stretches), size)]
    if len(blocks) < FEWEST_BLOCKS:
        raise ValueError(
            f"the ledger tells of {len(stretches)} stretches of steps beside the first ones, too few for an interval; "
            "measure a longer run, or one with a smaller train.log_every"
        )
    logs = [math.log(sum(one.took_s for one in block) / sum(one.count for one in block)) for block in blocks]
    num_steps = sum(one.count for one in stretches)
    step_s = sum(one.took_s for one in stretches) / num_steps
    quantile = float(stdtrit(len(blocks) - 1, (1 + CONFIDENCE) / 2))
    sources["step_s"] = f"{MEASURED}, {num_steps}"
    sources["spread"] = f"{MEASURED}, {len(blocks)} blocks"
    return step_s, math.exp(quantile * statistics.stdev(logs) * math.sqrt(1 + 1 / len(blocks)))


def _evaluations(lives: Sequence[Life]) -> Iterator[float]:
    """Seconds of each evaluation that was finished; the first of a run fits the floors too."""
    for life in lives:
        before: Line = {**life.begin, "seconds": {EVALUATION: 0.0}}
        for line in life.lines:
            if before["owes_evaluation"] and not line["owes_evaluation"]:
                yield line["seconds"][EVALUATION] - before["seconds"][EVALUATION]
            before = line


def _mean(name: str, values: Sequence[float], sources: dict[str, str], assumed: str | None = None) -> float:
    sources[name] = f"assumed: {assumed}" if assumed else f"{MEASURED}, {len(values)}"
    return statistics.mean(values) if values else 0.0
