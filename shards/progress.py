"""How far a long command is: a bar with rate and time left on a terminal, plain lines in a log."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_EVERY_S = 10.0


class Counter:
    """Shows `advance` on stderr, out of `total` of what `unit` names. A log gets a line every 10 s at most."""

    def __init__(self, title: str, total: int, unit: str) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._done = 0
        self._start_s = self._line_s = time.monotonic()
        console = Console(stderr=True)
        self._bar = _bar(console, unit) if console.is_terminal else None

    def __enter__(self) -> "Counter":
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=self._total, rate=0.0)
        return self

    def advance(self, amount: int) -> None:
        self._done += amount
        now_s = time.monotonic()
        rate = self._done / max(now_s - self._start_s, 1e-9)
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, rate=rate)
        elif now_s - self._line_s >= LINE_EVERY_S:
            self._line_s = now_s
            left_s = (self._total - self._done) / max(rate, 1e-9)
            line = f"{self._title}: {self._done}/{self._total} {self._unit}, {rate:.1f}/s, {left_s:.0f} s left"
            print(line, file=sys.stderr, flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def _bar(console: Console, unit: str) -> Progress:
    rate = TextColumn(f"{{task.fields[rate]:.1f}} {unit}/s")
    title = TextColumn("{task.description}")
    return Progress(title, BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn(), console=console)
