"""Who hangs, and where: a thread in each rank that ends the run when no rank gets anywhere any more.

The loop says in which phase it is (`phase`), which costs microseconds. A rank that waits for the others looks at what
they say of themselves; when for `hang_s` seconds no rank has come any further, all of them tell who is behind and
leave together, whatever their main threads are stuck in. A rank whose launcher is gone asks for a stop, and leaves.
"""

import contextlib
import faulthandler
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from types import TracebackType
from typing import NoReturn

from storydist.data.index import ShardIndex
from storydist.training.heartbeat import Heartbeat, Record, heartbeat_path, read_heartbeat, started
from storydist.training.preemption import REQUEUE

FINISHED = "finished"
FAILED = 1  # exit code where another rank failed: to run that again would end the same
TICK_S = 1.0  # most seconds between two looks
FAILED_S = 30.0  # most seconds to wait for a rank that has failed: launchers and most collectives are quicker
TELL_S = 10.0  # most seconds that telling takes
DEBUGGERS = {"pdb", "bdb", "debugpy", "pydevd", "_pydevd_bundle"}
GRACE_S = 60.0  # from the launcher's end until a rank that cannot stop in order leaves


@dataclass
class Known:
    """What a rank last said, and since when, by our clock, it has come no further and shown no sign of life."""

    record: Record | None
    moved: float
    alive: float

    @property
    def passed(self) -> float:
        """How far it has come; nobody waits for one that is finished."""
        if self.record is None:
            return -1
        return math.inf if self.record.left == FINISHED else self.record.passed

    def update(self, record: Record | None, now: float) -> None:
        former, self.record = self.record, record
        if record is None or former is None:
            self.moved = self.alive = self.moved if record is former else now
            return
        self.moved = self.moved if record.progress == former.progress else now
        self.alive = self.alive if record.ticks == former.ticks else now

    def silent(self, now: float, hang_s: float) -> bool:
        """It is stopped, its node is gone, or it has failed; in any case it cannot tell anything itself."""
        finished = self.record is not None and self.record.left == FINISHED
        return self.failed or (now - self.alive > hang_s / 2 and not finished)

    @property
    def failed(self) -> bool:
        """It has left by an error, so nobody needs to wait for it."""
        return self.record is not None and self.record.left not in ("", FINISHED)


class Watchdog:
    """Watches the run `run` from the rank `rank` while it is entered; until then `phase` only remembers.

    `hang_s`: seconds without any progress of any rank after which all leave; 0: never. `life`: one string for all
    ranks of this start. `ask`: called once, with the reason, when the process `launcher` is no longer the parent.
    `log`: where the first rank that still lives appends what was found.
    """

    def __init__(
        self,
        run: Path,
        index: ShardIndex,
        *,
        rank: int,
        world_size: int,
        hang_s: float,
        life: str,
        ask: Callable[[str], None],
        log: Path,
    ):
        self.run, self.rank, self.world_size, self.hang_s, self.life = run, rank, world_size, hang_s, life
        self.launcher: int | None = None
        self._index, self._ask, self._log = index, ask, log
        self._tick_s = min(TICK_S, hang_s / 20) if hang_s else TICK_S
        self._heartbeat: Heartbeat | None = None
        self._ended = threading.Event()
        self._passed = self._ticks = 0
        self._seen = (-1, -1)  # own progress at the last look
        self._moved = self._looked = 0.0  # when that last changed; when the last look ended
        self._known: dict[int, Known] = {}  # what the ranks say, while this one waits
        self._orphaned: float | None = None
        self._left = ""

    def __enter__(self) -> "Watchdog":
        self._heartbeat = Heartbeat(heartbeat_path(self.run, self.rank), self.life)
        self.phase("start", 0)
        self._sign()
        self._moved = self._looked = time.monotonic()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tells the others how this rank has left. After an error among several ranks the thread goes on: to unwind may
        hang too. A single process owes nobody its end; it may belong to a debugger, a notebook or a test.
        """
        self._left = FINISHED if kind is None else f"failed with {kind.__name__}: {error}"
        if kind is not None and self.world_size > 1:
            self._sign()
            return
        self._ended.set()
        self._thread.join()
        self._sign()
        if self._heartbeat:
            self._heartbeat.close()
            self._heartbeat = None

    def phase(self, name: str, step: int, stories: Sequence[str] = ()) -> None:
        """The loop begins something else, in the course of the update that makes `step` complete. Every rank says the
        same phases in the same order.
        """
        self._passed += 1
        if self._heartbeat:
            self._heartbeat.where(self._passed, name, step, time.time(), ", ".join(stories))

    # The thread

    def _watch(self) -> None:
        while not self._ended.wait(self._tick_s):
            self._look()
            self._looked = time.monotonic()

    def _look(self) -> None:
        now = time.monotonic()
        slept_s = now - self._looked
        self._ticks += 1
        self._sign()
        self._follow_launcher(now)
        progress = (self._passed, self._index.reading.num_done)
        # While this process was stopped the others may have been too (Slurm suspends whole jobs): that proves nothing.
        # If they went on and left, they have said so.
        was_stopped = slept_s > max(self.hang_s / 2, 2 * self._tick_s)
        if progress != self._seen or was_stopped:
            self._seen, self._moved = progress, now
            self._known.clear()
        if self.hang_s and (now - self._moved > self._tick_s or was_stopped):
            if _in_debugger():
                self._moved = now
            else:
                self._look_around(now)

    def _sign(self, verdict: str = "", code: int = 0, teller: int = 0) -> None:
        assert self._heartbeat is not None
        self._heartbeat.sign(
            ticks=self._ticks,
            num_reads=self._index.reading.num_done,
            reading=self._index.being_read(),
            left=self._left,
            verdict=verdict,
            code=code,
            teller=teller,
        )
        self._heartbeat.flush()

    def _follow_launcher(self, now: float) -> None:
        if self.launcher is None or os.getppid() == self.launcher:
            return
        if self._orphaned is None:
            self._orphaned = now
            self._ask("the end of its launcher")
        elif now - self._orphaned > GRACE_S:
            self._leave(f"the launcher of rank {self.rank} is gone, and it could not stop in order", REQUEUE)

    def _look_around(self, now: float) -> None:
        """Reads what all ranks say of themselves; leaves when none of them has got anywhere for long enough."""
        for rank in range(self.world_size):
            record = read_heartbeat(heartbeat_path(self.run, rank), self.life)
            if record is not None and record.verdict:
                self._leave(record.verdict, record.code, teller=record.teller)
            self._known.setdefault(rank, Known(record, now, now)).update(record, now)
        failed = any(known.failed for known in self._known.values())
        patience_s = min(self.hang_s, FAILED_S) if failed else self.hang_s
        if any(now - moved < patience_s for moved in (self._moved, *(known.moved for known in self._known.values()))):
            return
        silent = [rank for rank, known in self._known.items() if rank != self.rank and known.silent(now, self.hang_s)]
        behind = min(known.passed for known in self._known.values())
        guilty = silent or [rank for rank, known in self._known.items() if known.passed == behind]
        teller = min(rank for rank in range(self.world_size) if rank not in silent)
        self._leave(self._told(guilty, silent), FAILED if failed else REQUEUE, silent, teller)

    # What is found, and leaving

    def _told(self, guilty: Sequence[int], silent: Sequence[int]) -> str:
        found = f"no progress for {time.monotonic() - self._moved:.1f} s: "
        if len(guilty) == self.world_size > 1:
            found += "all ranks are in the same phase: "
        return found + "; ".join(self._told_of(rank, rank in silent) for rank in guilty)

    def _told_of(self, rank: int, silent: bool) -> str:
        record = self._known[rank].record
        if record is None:
            return f"rank {rank} has not begun"
        who = f"rank {rank} (process {record.pid} on {record.host})"
        if record.left:
            return f"{who} has left: {record.left}"
        since = time.strftime("%H:%M:%S", time.localtime(record.since))
        told = f"{who} {'gives no sign of life' if silent else 'is stuck'}: phase {record.phase} of step {record.step}"
        told += f" since {since}"
        told += f", stories {shorten(record.stories, 120)}" if record.stories else ""
        return told + (f", reading {record.reading}" if record.reading else "")

    def _leave(self, found: str, code: int, silent: Sequence[int] = (), teller: int | None = None) -> NoReturn:
        """Tells what was found, and the stacks of this process; ends it, and the silent ones of this node."""
        teller = self.rank if teller is None else teller
        self._sign(verdict=found, code=code, teller=teller)
        # A full or hanging disk, or a reader of our output that is stopped, must not keep the process.
        telling = threading.Thread(target=self._write, args=(found, teller == self.rank), daemon=True)
        telling.start()
        # The others leave by what they read in this rank's file; were it gone first, they would fail in a collective.
        time.sleep(4 * self._tick_s)
        telling.join(TELL_S)
        for rank in silent:
            _end(self._known[rank].record)
        os._exit(code)

    def _write(self, found: str, aloud: bool) -> None:
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        if aloud:
            os.write(2, f"{found}\nthe ranks' stacks: {self.run}/stacks-rank-*.txt\n".encode())
            with self._log.open("a", encoding="utf-8") as file:
                file.write(f"{now} {found}\n")
        with (self.run / f"stacks-rank-{self.rank}.txt").open("a", encoding="utf-8") as file:
            file.write(f"{now} {found}\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
            file.write("\n")
        sys.stdout.flush()
        sys.stderr.flush()


def _in_debugger() -> bool:
    """Whether a debugger is on the main thread's stack: who waits there is a person, and may take their time."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] in DEBUGGERS:
            return True
        frame = frame.f_back
    return False


def _end(record: Record | None) -> None:
    """A process that is stopped cannot leave by itself; one on the same node can end it, if it is still the same."""
    if record and record.started and (record.host, record.started) == (socket.gethostname(), started(record.pid)):
        with contextlib.suppress(OSError):
            os.kill(record.pid, signal.SIGKILL)
