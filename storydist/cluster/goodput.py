"""A run's ledger added up: where its wall time went, life by life, from the first submission to the last end.

    queued      since the life before ended (or since the job was submitted), until Slurm started the job or, without
                Slurm, the process began
    start       until the first step: launcher, imports, index, restoring the checkpoint
    training, waiting (for data), saving (the loop stands still), evaluation
    lost        training, waiting and evaluation behind the checkpoint that the next life went on from, and what came
                between a killed life's last line and its last sign: work that was done twice

Goodput is training's share of the whole.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storydist.training.heartbeat import last_sign
from storydist.training.ledger import EVALUATION, LEDGER, SAVING, TRAINING, WAITING

QUEUED, START, LOST = "queued", "start", "lost"
KINDS = (TRAINING, WAITING, SAVING, EVALUATION, START, LOST, QUEUED)
REDONE = (TRAINING, WAITING, EVALUATION)
Line = dict[str, Any]
Place = tuple[int, bool]  # step, and whether its evaluation is no longer owed: how far a life has come


@dataclass(frozen=True)
class Life:
    """One start of a run. Times are seconds since 1970."""

    begin: Line
    lines: tuple[Line, ...]  # those with seconds
    written: tuple[Line, ...]
    until: float  # its end, or its last sign when it was killed
    followed: bool  # by another life

    @property
    def ended(self) -> str:
        """How: "finished", "stopped" (to go on), "killed", "killed or running", or an error's name."""
        last = self.lines[-1] if self.lines else self.begin
        if last["kind"] != "end":
            return "killed" if self.followed else "killed or running"
        whole = last["step"] >= self.begin["steps"] and not last["owes_evaluation"]
        return str(last["error"]) or ("finished" if whole else "stopped")

    @property
    def last_step(self) -> int:
        return int((self.lines[-1] if self.lines else self.begin)["step"])


@dataclass(frozen=True)
class Spent:
    """One life's wall time, or a run's: seconds by kind of KINDS, and by the wall clock, to which they add up."""

    seconds: dict[str, float]
    wall_s: float

    @property
    def goodput(self) -> float:
        """0 to 1."""
        return self.seconds[TRAINING] / self.wall_s if self.wall_s else 0.0


@dataclass(frozen=True)
class Steps:
    """Updates between two lines of the ledger, and the seconds they took, waiting for data included."""

    count: int
    took_s: float


def place(line: Line) -> Place:
    return line["step"], not line["owes_evaluation"]


def read_lives(run: Path) -> list[Life]:
    """The lives of a run, in order. Lines that a full disk has cut are left out.

    Raises FileNotFoundError when the run has no ledger, ValueError when nothing in it can be read.
    """
    path = run / LEDGER
    if not path.is_file():
        raise FileNotFoundError(f"{run} has no {LEDGER}; a run of launch/train.py writes it from its first step on")
    groups: list[list[Line]] = []
    for line in _lines(path):
        if line["kind"] == "begin":
            groups.append([])
        if groups:
            groups[-1].append(line)
    if not groups:
        raise ValueError(f"{path} holds no line that can be read")
    signs = [group[0]["former_sign"] for group in groups[1:]] + [last_sign(run, rank=0)]
    starts = [float(group[0]["started"]) for group in groups[1:]] + [float("inf")]
    return [_life(*of_life) for of_life in zip(groups, signs, starts, strict=True)]


def _lines(path: Path) -> Iterator[Line]:
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
            if {"kind", "at", "step"} <= line.keys():
                yield line
        except (ValueError, AttributeError):
            continue


def _life(group: Sequence[Line], sign: float | None, next_start: float) -> Life:
    """`sign`: when anything was heard of it last, told by the next life; which began at `next_start`."""
    until, followed = float(group[-1]["at"]), next_start < float("inf")
    if group[-1]["kind"] != "end" and sign is not None:
        until = max(until, min(sign, next_start))
    lines = tuple(line for line in group if "seconds" in line)
    return Life(group[0], lines, tuple(line for line in group if line["kind"] == "written"), until, followed)


def steps_of(lives: Sequence[Life]) -> tuple[list[Steps], list[Steps]]:
    """The first stretch of each life, which holds what happens once, and all the others."""
    firsts, others = [], []
    for life in lives:
        found: list[Steps] = []
        step, before_s = life.begin["step"], 0.0
        for line in life.lines:
            if line["step"] > step:
                now_s = line["seconds"][TRAINING] + line["seconds"][WAITING]
                found.append(Steps(line["step"] - step, now_s - before_s))
                step, before_s = line["step"], now_s
        firsts += found[:1]
        others += found[1:]
    return firsts, others


def spent(lives: Sequence[Life]) -> list[Spent]:
    """Each life's wall time, from the end of the one before."""
    resumed = [place(life.begin) for life in lives]
    found, now = [], None
    for number, life in enumerate(lives):
        job = life.begin["job"]
        first = float(job.get("submitted", job.get("started", life.begin["started"])))
        now = first if now is None else now
        job_began = max(now, float(job.get("started", life.begin["started"])))
        goes_on = min(resumed[number + 1 :], default=None)
        seconds = {QUEUED: job_began - now, START: max(0.0, life.begin["at"] - job_began), **_inside(life, goes_on)}
        until = max(life.until, job_began)
        found.append(Spent({kind: seconds[kind] for kind in KINDS}, until - now))
        now = until
    return found


def _inside(life: Life, goes_on: Place | None) -> dict[str, float]:
    """Seconds since the life's first line. `goes_on`: the place from which the run goes on after it, if it does."""
    none = dict.fromkeys((TRAINING, WAITING, SAVING, EVALUATION), 0.0)
    last = life.lines[-1]["seconds"] if life.lines else none
    untold_s = life.until - (life.lines[-1] if life.lines else life.begin)["at"]
    if goes_on is None:
        return {**last, TRAINING: last[TRAINING] + untold_s, LOST: 0.0}
    saved = [line for line in life.lines if line["kind"] == "saved" and place(line) <= goes_on]
    kept = saved[-1]["seconds"] if saved else none
    lost = sum(last[kind] - kept[kind] for kind in REDONE)
    return {**{kind: kept[kind] for kind in REDONE}, SAVING: last[SAVING], LOST: lost + untold_s}


def total(parts: Sequence[Spent]) -> Spent:
    """All of them together."""
    seconds = {kind: sum(part.seconds[kind] for part in parts) for kind in KINDS}
    return Spent(seconds, sum(part.wall_s for part in parts))


def goodput_of(run: Path) -> str:
    """One line on the whole run; "" where there is no ledger."""
    if not (run / LEDGER).is_file():
        return ""
    lives = read_lives(run)
    whole = total(spent(lives))
    parts = ", ".join(f"{kind} {value:.0f} s" for kind, value in whole.seconds.items() if value >= 0.5)
    return f"{100 * whole.goodput:.0f} % of {whole.wall_s:.0f} s in {len(lives)} start(s): {parts}"
