"""Where a run's wall time goes: RUN/ledger.jsonl, to which each life of the run appends while it goes by.

A life is one start of the run's processes. Its first line says when the process began, what it goes on from and how it
came here; the others carry the seconds spent so far, by kind, so that whatever ends the life takes only what came after
its last line. Every moment between the first line and the last belongs to exactly one kind. Unlike metrics.jsonl the
file is never cut: it tells of work that was lost. storydist/cluster/goodput.py adds it up.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from storydist.training.checkpoint import TrainState
from storydist.training.heartbeat import started

LEDGER = "ledger.jsonl"
TRAINING, WAITING, SAVING, EVALUATION = KINDS = ("training", "waiting", "saving", "evaluation")


class Ledger:
    """One life's part of the file at `path`; os.devnull for all ranks but the first.

    `former_sign`: when the life before last showed that it lived, seconds since 1970. `facts` go into the first line.
    A write that fails is passed over: that a disk is full is for the checkpoint to tell.
    """

    def __init__(self, path: Path, *, former_sign: float | None, facts: Mapping[str, Any]):
        self.path, self.job = path, dict[str, Any]()  # what the scheduler says of this start: who starts it may know
        self._facts = {"former_sign": former_sign, **facts}
        self._seconds, self._kind = dict.fromkeys(KINDS, 0.0), ""
        self._turned = 0.0

    @contextmanager
    def life(self, state: TrainState) -> Iterator[None]:
        """The loop runs inside. `state` is the one it changes: each line tells its step."""
        self._state = state
        self._descriptor = os.open(os.devnull, os.O_WRONLY)
        error = ""
        try:
            yield
        except BaseException as raised:
            error = type(raised).__name__
            raise
        finally:
            if self._kind:
                self.note("end", error=error)
            os.close(self._descriptor)

    @contextmanager
    def spent(self, kind: str) -> Iterator[None]:
        """Time spent inside is of this kind; what is in none is training. The first use ends the start-up, unless it is
        a save: a finished run does nothing else, and has no life.
        """
        if not self._kind and kind == SAVING:
            yield
            return
        if not self._kind:
            self._begin()
        former = self._turn(kind)
        try:
            yield
        finally:
            self._turn(former)

    def note(self, kind: str, **facts: Any) -> None:
        """A line with the loop's place and the seconds so far. Loop only."""
        self._turn(self._kind)
        self._append(kind, seconds=_rounded(self._seconds), **facts)

    def written(self, step: int, **seconds: float) -> None:
        """A checkpoint exists. Any thread may call it."""
        self._write({"kind": "written", "at": time.time(), "step": step, **_rounded(seconds)})

    def _begin(self) -> None:
        with suppress(OSError):
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            os.close(self._descriptor)
            self._descriptor = descriptor
            size = os.fstat(self._descriptor).st_size
            if size and os.pread(self._descriptor, 1, size - 1) != b"\n":  # a full disk cut the last line
                os.write(self._descriptor, b"\n")
        self._kind, self._turned = TRAINING, time.monotonic()
        self._append("begin", started=process_start(), pid=os.getpid(), job=self.job, **self._facts)

    def _turn(self, kind: str) -> str:
        """What follows is of this kind; returns of which the time until now was."""
        now = time.monotonic()
        self._seconds[self._kind] += now - self._turned
        self._turned, former, self._kind = now, self._kind, kind
        return former

    def _append(self, kind: str, **facts: Any) -> None:
        place = {"step": self._state.step, "owes_evaluation": self._state.owes_evaluation}
        self._write({"kind": kind, "at": time.time(), **place, **facts})

    def _write(self, line: Mapping[str, Any]) -> None:
        with suppress(OSError):
            os.write(self._descriptor, (json.dumps(line) + "\n").encode())  # one call: no line is cut by a kill


def _rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 6) for name, value in seconds.items()}


def process_start() -> float:
    """When this process began, seconds since 1970; now, where the system does not tell."""
    now = time.time()
    ticks = started(os.getpid())
    if not ticks:
        return now
    lived_s = time.clock_gettime(time.CLOCK_BOOTTIME) - int(ticks) / os.sysconf("SC_CLK_TCK")
    return now - max(lived_s, 0.0)
