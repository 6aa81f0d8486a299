"""A signal becomes a flag; the ranks agree on it at the end of a step and between the batches of an evaluation."""

import atexit
import os
import signal
import threading
import time
from types import FrameType
from typing import Any

REQUEUE = 75  # exit code "run me again": EX_TEMPFAIL of sysexits.h
SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
# A launcher passes on what the terminal or Slurm has sent to all its processes already: that is one signal, not two.
SAME_S = 1.0


class Stopped(Exception):  # noqa: N818 (no error: somebody asked)
    """Ends, on all ranks, what would take long to finish."""


def leave_at_once_on_signals() -> None:
    """Before the loop begins there is nothing to save: a signal ends the process with the code to run it again.

    While the interpreter ends, which takes seconds where others use the processor, signals are ignored: it gives its
    handlers up, and the process would die of what comes then in place of its exit code.
    """
    for number in SIGNALS:
        signal.signal(number, _leave)
    atexit.register(_ignore)


def _ignore() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, f"stopped by {signal.Signals(number).name} before the first step\n".encode())
    os._exit(REQUEUE)


class Preemption:
    """Catches SIGNALS while it is entered, on the main thread. The first only sets `asked`; another one, SAME_S later
    or more, leaves the process at once.

    Nothing is saved inside a handler: whatever it interrupts may be half done.
    """

    def __init__(self) -> None:
        self.asked: str | None = None  # by what: the name of a signal, or what `ask` was told
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Preemption":
        self._owner = os.getpid()
        self._former = {number: signal.signal(number, self._catch) for number in SIGNALS}
        # A handler waits until the main thread is back in Python, which it never is from a collective that hangs. The
        # kernel's half of it only writes a byte, at once, and a thread reads those.
        self._bytes_out, self._bytes_in = os.pipe()
        os.set_blocking(self._bytes_in, False)
        self._former_wakeup = signal.set_wakeup_fd(self._bytes_in, warn_on_full_buffer=False)
        self._reader = threading.Thread(target=self._read, name="signals", daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Gives the signals back to who had them."""
        for number, handler in self._former.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._former_wakeup)
        os.close(self._bytes_in)
        self._reader.join()
        os.close(self._bytes_out)

    def ask(self, reason: str) -> None:
        """Asks for a stop as a first signal does."""
        self.asked = self.asked or reason

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:  # a child that was forked meanwhile
            os._exit(REQUEUE)
        self.ask(signal.Signals(number).name)

    def _read(self) -> None:
        first = None
        while number := os.read(self._bytes_out, 1):
            if number[0] not in SIGNALS:
                continue
            now = time.monotonic()
            first = first or now
            self.ask(signal.Signals(number[0]).name)
            if now - first > SAME_S:
                os.write(2, f"{signal.Signals(number[0]).name} again: left at once\n".encode())
                os._exit(REQUEUE)
