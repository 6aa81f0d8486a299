"""What a rank is doing, in a small file of its own, which the others can read however the rank has stopped.

    RUN/heartbeats/rank-3
        who     {"life", "pid", "host", "started"}                          once
        where   changes of phase so far, phase, step, since when, stories   by the loop, at each change
        sign    {"ticks", "num_reads", "reading", "left", "verdict", ..}  by the watchdog's thread

Each part has its place in the file and is overwritten there by one call, so that a phase costs microseconds, and a
process that is stopped the instant after has told it. Files, because they work between nodes that share a folder.
"""

import json
import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = "heartbeats"
WHERE_AT, SIGN_AT, END = 512, 1024, 9216  # bytes; `who` comes first
TEXT_LENGTH = 400  # most of a told text: three of them, each letter escaped, still fit


@dataclass(frozen=True)
class Record:
    """What a rank's file said when it was read."""

    pid: int
    host: str
    started: str  # tells the process from a later one of the same number
    passed: int  # changes of phase; the same on every rank that has come equally far
    phase: str
    step: int
    since: float  # seconds since 1970, by the rank's own clock
    stories: str
    ticks: int  # grows as long as the rank's process lives and runs
    num_reads: int
    reading: str
    left: str  # how the rank left the run
    verdict: str  # of a rank that found the run to hang and is about to leave
    code: int  # with which it leaves
    teller: int  # the rank that tells it

    @property
    def progress(self) -> tuple[int, int]:
        """Changes whenever the rank gets anywhere."""
        return self.passed, self.num_reads


def heartbeat_path(run: Path, rank: int) -> Path:
    return run / FOLDER / f"rank-{rank}"


class Heartbeat:
    """This rank's file. `life` is one string for all ranks of one start of the run.

    A failing write is passed over: that a disk is full is for the checkpoint to tell.
    """

    def __init__(self, path: Path, life: str):
        path.parent.mkdir(parents=True, exist_ok=True)
        # A new file: a rank of the run's former life may still be about to end, and goes on writing into its own.
        path.unlink(missing_ok=True)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        pid = os.getpid()
        who = {"life": life, "pid": pid, "host": socket.gethostname(), "started": started(pid)}
        os.pwrite(self._descriptor, _padded(json.dumps(who), WHERE_AT), 0)

    def where(self, passed: int, phase: str, step: int, since: float, stories: str) -> None:
        """Tells the loop's place."""
        self._write(f"{passed} {phase} {step} {since:.3f} {stories}", WHERE_AT, SIGN_AT)

    def sign(
        self, *, ticks: int, num_reads: int, reading: str, left: str, verdict: str, code: int, teller: int
    ) -> None:
        """Tells that the process runs; fields as in `Record`."""
        texts = {"reading": reading[:TEXT_LENGTH], "left": left[:TEXT_LENGTH], "verdict": verdict[:TEXT_LENGTH]}
        numbers = {"ticks": ticks, "num_reads": num_reads, "code": code, "teller": teller}
        self._write(json.dumps(numbers | texts), SIGN_AT, END)

    def flush(self) -> None:
        """Makes what was told visible on other nodes."""
        with suppress(OSError):
            os.fdatasync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)

    def _write(self, text: str, start: int, stop: int) -> None:
        with suppress(OSError):
            os.pwrite(self._descriptor, _padded(text, stop - start), start)


def _padded(text: str, length: int) -> bytes:
    """A line of exactly `length` bytes."""
    return text.encode("ascii", "backslashreplace").replace(b"\n", b" ")[: length - 1].ljust(length - 1) + b"\n"


def read_heartbeat(path: Path, life: str) -> Record | None:
    """The record in a rank's file; None while the rank has not begun this life of the run."""
    try:
        content = path.read_bytes()  # opened anew each time: NFS shows what is new only then
        who = json.loads(content[:WHERE_AT])
        sign = json.loads(content[SIGN_AT:END])
        passed, phase, step, since, stories = content[WHERE_AT:SIGN_AT].decode("ascii").split(" ", 4)
        if who.pop("life") != life:
            return None
        place: dict[str, Any] = {"passed": int(passed), "phase": phase, "step": int(step), "since": float(since)}
        return Record(**who, **place, stories=stories.strip(), **sign)
    except (OSError, ValueError, KeyError, TypeError):  # absent, just being made, or not ours
        return None


def last_sign(run: Path, rank: int) -> float | None:
    """When a rank last told anything, seconds since 1970; None when it never has. A new life of the run erases it."""
    try:
        return heartbeat_path(run, rank).stat().st_mtime
    except OSError:
        return None


def started(pid: int) -> str:
    """When the kernel started a process, in ticks since it booted; "" where that cannot be known."""
    try:
        # The command's name, in parentheses, may hold anything; the figures come after it.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
