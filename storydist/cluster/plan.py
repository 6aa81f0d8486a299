"""A plan: a run's prediction for each partition it may be sent to, and what to set for it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group
from rich.table import Table

from storydist.cluster.costs import Priced
from storydist.cluster.planner import (
    NO_LIMIT,
    Prediction,
    Terms,
    Work,
    best_save_every,
    interval,
    lead_s,
    predict,
    young_s,
)

NODE_MTBF_DAYS = 154.0  # 6.5 failures in 1000 node-days: Kokolis et al., Revisiting Reliability in Large-Scale Machine
# Learning Research Clusters, HPCA 2025 (its first cluster)
WAIT_S = 120.0  # Slurm holds a requeued job back for about two minutes; the queue itself comes on top
NAMES = {
    "step_s": "a step",
    "spread": "by which that may differ",
    "start_s": "start, to the first step",
    "restart_s": "start with --resume",
    "warm_up_s": "the first step, beside a step",
    "stall_s": "a save, for the loop",
    "write_s": "a checkpoint's writing",
    "evaluation_s": "an evaluation",
    "floors_s": "fitting the floors, once",
    "exit_s": "from the loop's end to the process's",
}


@dataclass(frozen=True)
class Row:
    """One partition: its prediction with the interval's ends, or why it will not do."""

    partition: str
    terms: Terms
    expected: Prediction | None = None
    low: Prediction | None = None
    high: Prediction | None = None
    refused: str = ""


@dataclass(frozen=True)
class Plan:
    """All that is told of a run before it is submitted."""

    priced: Priced
    work: Work
    num_gpus: int
    rows: tuple[Row, ...]
    mtbf_s: float
    assumed: tuple[str, ...]
    save_every: int
    lead_s: float


def make_plan(
    priced: Priced,
    work: Work,
    limits: Mapping[str, float | None],
    *,
    nodes: int,
    gpus_per_node: int,
    mtbf_s: float | None = None,
    wait_s: float | None = None,
    lead: float | None = None,
) -> Plan:
    """`limits`: seconds a job may last, by partition; none given: without a limit. What else is None is assumed, and
    said.
    """
    priced = priced.on(nodes * gpus_per_node)
    assumed = []
    if mtbf_s is None:
        mtbf_s = NODE_MTBF_DAYS * 86400 / nodes
        assumed.append(f"a failure in {NODE_MTBF_DAYS:.0f} node-days (--mtbf-hours)")
    if wait_s is None:
        wait_s = WAIT_S
        assumed.append(f"{WAIT_S / 60:.0f} minutes from a job's end to the next one's start (--wait-minutes)")
    if work.evaluate_every and not priced.costs.evaluation_s:
        assumed.append("that evaluations cost nothing: the measured run made none")
    if not limits:
        limits = {"any": None}
        assumed.append("no time limit (--partition NAME=LIMIT)")
    suggested = lead_s(priced.costs)
    rows = []
    for name, limit_s in limits.items():
        terms = Terms(NO_LIMIT if limit_s is None else limit_s, suggested if lead is None else lead, wait_s, mtbf_s)
        rows.append(_row(name, priced, work, terms))
    save_every = min(work.steps, best_save_every(priced.costs, mtbf_s))
    return Plan(priced, work, nodes * gpus_per_node, tuple(rows), mtbf_s, tuple(assumed), save_every, suggested)


def _row(name: str, priced: Priced, work: Work, terms: Terms) -> Row:
    if terms.limit_s == NO_LIMIT:
        terms = Terms(terms.limit_s, 0.0, terms.wait_s, terms.mtbf_s)
    try:
        return Row(name, terms, predict(priced.costs, work, terms), *interval(priced.costs, work, terms))
    except ValueError as error:
        return Row(name, terms, refused=str(error))


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan's figures; seconds. An endless limit is null."""
    return {
        "work": asdict(plan.work),
        "costs": asdict(plan.priced.costs),
        "sources": plan.priced.sources,
        "assumed": list(plan.assumed),
        "mtbf_s": plan.mtbf_s,
        "num_gpus": plan.num_gpus,
        "suggested": {"save_every": plan.save_every, "lead_s": plan.lead_s},
        "partitions": [_row_json(row, plan.num_gpus) for row in plan.rows],
    }


def _row_json(row: Row, num_gpus: int) -> dict[str, Any]:
    limit_s = None if row.terms.limit_s == NO_LIMIT else row.terms.limit_s
    facts = {"partition": row.partition, "limit_s": limit_s, "lead_s": row.terms.lead_s, "wait_s": row.terms.wait_s}
    if row.expected is None or row.low is None or row.high is None:
        return facts | {"refused": row.refused}
    return facts | {
        "wall_s": row.expected.wall_s,
        "wall_s_low": row.low.wall_s,
        "wall_s_high": row.high.wall_s,
        "gpu_hours": row.expected.active_s * num_gpus / 3600,
        "requeues": row.expected.requeues,
        "failures": row.expected.failures,
        "failures_s": row.expected.failures_s,
        "waits_s": row.expected.waits_s,
        "jobs": [asdict(job) for job in row.expected.jobs],
    }


def tables(plan: Plan) -> Group:
    """What a terminal shows."""
    costs = Table(title="what things cost", title_justify="left")
    for head in ("", "", "from"):
        costs.add_column(head, justify="right" if not head and costs.columns else "left")
    for name, shown in NAMES.items():
        value = getattr(plan.priced.costs, name)
        costs.add_row(shown, f"x {value:.2f}" if name == "spread" else told(value), plan.priced.sources[name])
    work = plan.work
    runs = Table(title=f"{work.steps} steps on {plan.num_gpus} GPU(s)", title_justify="left")
    for head in ("partition", "limit", "signal ahead", "whole run", "90 % interval", "GPU-hours", "jobs", "failures"):
        runs.add_column(head, justify="left" if head == "partition" else "right")
    for row in plan.rows:
        runs.add_row(*_cells(row, plan.num_gpus))
    return Group(costs, runs, *_words(plan))


def _cells(row: Row, num_gpus: int) -> list[str]:
    unlimited = row.terms.limit_s == NO_LIMIT
    head = [row.partition, *(["none", ""] if unlimited else [told(row.terms.limit_s), told(row.terms.lead_s)])]
    if row.expected is None or row.low is None or row.high is None:
        return [*head, "refused", "", "", "", ""]
    return [
        *head,
        told(row.expected.wall_s),
        f"{told(row.low.wall_s)} - {told(row.high.wall_s)}",
        f"{row.expected.active_s * num_gpus / 3600:.2f}",
        str(len(row.expected.jobs)),
        f"{row.expected.failures:.2g}",
    ]


def _words(plan: Plan) -> Sequence[str]:
    costs, per_step = plan.priced.costs, plan.priced.costs.step_s
    lines = [f"{row.partition}: refused, {row.refused}" for row in plan.rows if row.refused]
    lines += [f"assumed: {one}" for one in plan.assumed]
    lines.append(
        f"suggested: train.save_every={plan.save_every} ({told(plan.save_every * per_step)}; Young's optimum "
        f"{told(young_s(costs.stall_s, plan.mtbf_s))}; it is {plan.work.save_every} now), "
        f"--signal={math.ceil(plan.lead_s)} seconds ahead of the limit"
    )
    if plan.work.evaluate_every and costs.floors_s > plan.lead_s:
        lines.append(
            f"a signal does not cut the floors short: the first evaluation may need {told(costs.floors_s)}, more than "
            f"that lead; evaluate once before (launch/evaluate.py), or give --lead {costs.floors_s + plan.lead_s:.0f}"
        )
    return lines


def told(seconds: float) -> str:
    """A duration for people: 0.012 s, 45.2 s, 12 min 30 s, 3 h 05 min, 2 d 04 h."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} d {hours % 24:02d} h"
