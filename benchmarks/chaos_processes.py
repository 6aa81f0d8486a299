"""The processes of one life of a run, seen from outside: started by a launcher, found again, asked where they are.

They are known by the run's folder, which stands in their command line; a rank's phase by its heartbeat.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from storydist.training.heartbeat import SIGN_AT, WHERE_AT, heartbeat_path
from storydist.training.keep import FOLDER

ROOT = Path(__file__).resolve().parents[1]
TRAIN = "launch/train.py"
IMPORTS = "imports"  # before a rank says its first phase


def start(launcher: str, program: Sequence[str], world_size: int, environment: Mapping[str, str], output: Any) -> list:
    """One process of a launcher, or of Python for each rank, as srun starts them."""
    path = Path(sys.executable).parent
    count = str(world_size)
    if launcher == "python":
        ranks = [dict(environment) | rank for rank in _ranks(world_size)]
        return [_process([sys.executable, *program], rank, output) for rank in ranks]
    if launcher == "torchrun":
        command = [str(path / "torchrun"), "--standalone", "--nproc_per_node", count]
    else:
        command = [str(path / "accelerate"), "launch", "--num_processes", count, "--num_machines", "1"]
        command += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(_free_port())]
        command += ["--multi_gpu"] if world_size > 1 else ["--cpu"]
    return [_process([*command, *program], dict(environment), output)]


def _process(command: list[str], environment: dict[str, str], output: Any) -> subprocess.Popen:
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
    )


def _ranks(world_size: int) -> Iterator[dict[str, str]]:
    """What srun's wrapper tells each rank in its environment."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    world = {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
    for rank in map(str, range(world_size)):
        yield {"RANK": rank, "LOCAL_RANK": rank} | world | meeting


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def writing(run: Path, ranks: list[int]) -> bool:
    """Whether one of these processes is, or was when it was killed, in the middle of a checkpoint."""
    return any(list((run / FOLDER).glob(f".step-*.tmp-{pid}")) for pid in ranks)


def who(run: Path, rank: int) -> bytes:
    """The part of a rank's heartbeat that says whose it is; another in each life."""
    with contextlib.suppress(OSError):
        return heartbeat_path(run, rank).read_bytes()[:WHERE_AT]
    return b""


def place(run: Path, rank: int, former: list[bytes]) -> tuple[str, int]:
    """Phase and step of a rank; IMPORTS while its heartbeat is that of a former life."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        content = heartbeat_path(run, rank).read_bytes()
        if content[:WHERE_AT] != former[rank]:
            words = content[WHERE_AT:SIGN_AT].split()
            return words[1].decode(), int(words[2])
    return IMPORTS, 0


def rank_process(run: Path, rank: int, ranks: list[int]) -> int:
    """The process of a rank; any while it is not known which is which."""
    with contextlib.suppress(StopIteration):
        return next(pid for pid in ranks if f'"pid": {pid},'.encode() in who(run, rank))
    return sorted(ranks)[rank % len(ranks)] if ranks else 0


def living(run: Path, started: Sequence[subprocess.Popen] = ()) -> list[int]:
    """Processes, ours or a launcher's, that train in `run`. Those just `started` have no command line for a moment."""
    found, word = {process.pid for process in started if process.poll() is None}, f"run.dir={run}".encode()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            if word in path.read_bytes().split(b"\0"):
                found.add(int(path.parent.name))
    return sorted(found)


def kill(pids: list[int], number: signal.Signals = signal.SIGKILL) -> None:
    """Sends a signal to processes, some of which may have ended."""
    for pid in pids:
        if pid > 0:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
