"""A training run seen from outside: its ranks started as processes, stopped by a signal, waited for."""

import json
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from storydist.training.log import METRICS
from storydist.training.preemption import REQUEUE

POLL_S = 0.005
LAST_WORDS = 5  # lines


@dataclass(frozen=True)
class Stop:
    """A signal, sent once a step later than `behind` is logged. KILL goes to all ranks, any other to the last one."""

    number: signal.Signals
    behind: int


def run_ranks(
    command: Sequence[str], run: Path, processes: int, environment: Mapping[str, str], stop: Stop | None
) -> None:
    """Runs `command` as every rank of a run, without a launcher, to its end or its stop; their output goes to RUN.log.

    No rank outlives the call. Raises ValueError, with the last words, when a rank ends in another way than expected.
    """
    expected = 0 if stop is None else -signal.SIGKILL if stop.number == signal.SIGKILL else REQUEUE
    first = last_step(run)  # a killed run has logged steps that it has to make again
    words = run.with_suffix(".log")
    with words.open("ab") as log:
        places = _places(processes)
        ranks = [
            subprocess.Popen(command, env={**environment, **place}, stdout=log, stderr=subprocess.STDOUT)
            for place in places
        ]
    asked = stop is None
    try:
        while any(rank.poll() is None for rank in ranks):
            if any(rank.returncode not in (None, expected) for rank in ranks):
                break  # the others would wait for it
            if stop is not None and not asked and last_step(run) > max(first, stop.behind - 1):
                asked = True
                for rank in ranks if stop.number == signal.SIGKILL else ranks[-1:]:
                    rank.send_signal(stop.number)
            time.sleep(POLL_S)
    finally:
        for rank in ranks:
            rank.kill()
        codes = sorted({rank.wait() for rank in ranks})
    if codes != [expected]:
        ended = "it ended before it could be stopped; use more steps" if codes == [0] else f"exit codes {codes}"
        tail = words.read_text(errors="replace").splitlines()[-LAST_WORDS:]
        raise ValueError("\n  ".join([f"{run}: {ended}; its last words:", *tail]))


def last_step(run: Path) -> int:
    """Step of the last line of metrics, 0 when there is none."""
    path = run / METRICS
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return int(json.loads(lines[-1])["step"]) if lines else 0


def _places(processes: int) -> list[dict[str, str]]:
    """What a launcher would tell each rank."""
    if processes == 1:
        return [{}]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    world = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    return [{"RANK": str(rank), "LOCAL_RANK": str(rank), **world, **meeting} for rank in range(processes)]
