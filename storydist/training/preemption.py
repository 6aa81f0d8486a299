"""A signal becomes a flag; the ranks agree on it at the end of a step."""

import os
import signal
from types import FrameType
from typing import Any

REQUEUE = 75  # exit code "run me again": EX_TEMPFAIL of sysexits.h
SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)


class Preemption:
    """Catches SIGNALS while it is entered. The first only sets `asked`; the second leaves the process at once.

    Nothing is saved inside a handler: whatever it interrupts may be half done.
    """

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Preemption":
        self._owner = os.getpid()
        self._former = {number: signal.signal(number, self._catch) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        """Gives the signals back to who had them."""
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if self.asked is not None or os.getpid() != self._owner:
            os._exit(REQUEUE)
        self.asked = signal.Signals(number)
