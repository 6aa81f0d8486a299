"""Real ranks under the launchers people use: who is stopped, asked or killed, and what is left of them."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from storydist.data.index import ShardIndex
from storydist.training.checkpoint import damage, read_manifest
from storydist.training.heartbeat import SIGN_AT, WHERE_AT, heartbeat_path
from storydist.training.keep import checkpoint_path, list_steps, newest_valid
from storydist.training.preemption import REQUEUE, SAME_S
from tests.small_runs import SMALL

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
HANG_S = 5


class Started:
    """Processes that train on `index` in `run` without end."""

    def __init__(self, index: ShardIndex, run: Path, **train: object):
        self.run = run
        self.processes: list[subprocess.Popen] = []
        endless = {"steps": 10**6, "global_batch": 4, "micro_batch": 2, "threads": 1, "device": "cpu"}
        often = {"log_every": 10**6, "save_every": 10**6, "evaluate_every": 0, "evaluate_split": "test"}
        settings = {
            "model": SMALL,
            "train": endless | often | train,
            "evaluate": {"generate_windows": 2, "resamples": 10, "num_examples": 1},
        }
        run.mkdir()
        (run / "settings.yaml").write_text(yaml.safe_dump(settings))
        overrides = [f"data.shards={index.root}", "data.max_wordpieces=20", f"run.dir={run}"]
        self.command = ["launch/train.py", "--config", str(run / "settings.yaml"), *overrides]

    def start(self, *command: object, **environment: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [*map(str, command), *self.command],
            cwd=ROOT,
            env=os.environ | {"ACCELERATE_USE_CPU": "true"} | environment,
            stdout=subprocess.DEVNULL,
            stderr=(self.run / f"stderr-{len(self.processes)}").open("w"),
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def start_ranks(self, world_size: int) -> None:
        """As srun does: one Python a rank, and the environment says which."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        for rank in map(str, range(world_size)):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": "2"}
            self.start(sys.executable, **place, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)

    def place(self, rank: int) -> tuple[str, int]:
        """Phase and step of a rank; ("", 0) while it has none."""
        with contextlib.suppress(OSError, IndexError, ValueError):
            words = heartbeat_path(self.run, rank).read_bytes()[WHERE_AT:SIGN_AT].split()
            return words[1].decode(), int(words[2])
        return "", 0

    def wait_until(self, true: Callable[[], bool], poll_s: float = 0.01) -> None:
        deadline = time.monotonic() + 90
        while not true():
            assert time.monotonic() < deadline, self.told()
            assert all(process.poll() is None for process in self.processes), self.told()
            time.sleep(poll_s)

    def told(self) -> str:
        return "".join(path.read_text() for path in self.run.glob("stderr-*"))

    def codes(self) -> list[int]:
        return [process.wait(timeout=60) for process in self.processes]

    def living(self) -> list[int]:
        """Processes, ours or a launcher's, that still train in `run`."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):  # it ended meanwhile
                if str(self.run).encode() in path.read_bytes():
                    found.append(int(path.parent.name))
        return found

    def wait_until_gone(self) -> None:
        deadline = time.monotonic() + 60
        while self.living():
            assert time.monotonic() < deadline, self.told()
            time.sleep(0.05)


@pytest.fixture
def training(tiny_index, tmp_path) -> Iterator[Callable[..., Started]]:
    made: list[Started] = []

    def start(**train: object) -> Started:
        made.append(Started(tiny_index, tmp_path / "run", **train))
        return made[-1]

    yield start
    for started in made:
        for number in started.living():
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        for process in started.processes:
            process.wait()


def test_a_stopped_rank_is_named_and_none_stays(training):
    ranks = training(hang_s=HANG_S)
    ranks.start_ranks(2)
    ranks.wait_until(lambda: ranks.place(1)[1] > 3)
    stopped = ranks.processes[1]
    stopped.send_signal(signal.SIGSTOP)
    time.sleep(0.1)
    phase, step = ranks.place(1)
    begin = time.monotonic()
    assert ranks.codes() == [REQUEUE, -signal.SIGKILL]
    taken_s = time.monotonic() - begin
    told = (ranks.run / "train.log").read_text()
    assert f"rank 1 (process {stopped.pid} on" in told and "gives no sign of life" in told
    assert f"phase {phase} of step {step} since" in told
    assert "trainer.py" in (ranks.run / "stacks-rank-0.txt").read_text()
    assert ranks.living() == [] and taken_s > HANG_S


def test_a_signal_to_one_rank_ends_the_evaluation_of_all(training):
    ranks = training(evaluate_every=1)
    ranks.start_ranks(2)
    ranks.wait_until(lambda: ranks.place(1) == ("evaluate", 1), poll_s=0.001)
    ranks.processes[1].send_signal(signal.SIGUSR1)
    assert ranks.codes() == [REQUEUE, REQUEUE], ranks.told()
    (*_, last) = list_steps(ranks.run)
    assert last == 1 and read_manifest(checkpoint_path(ranks.run, last)).state.owes_evaluation


@pytest.mark.parametrize(
    ("launcher", "number"),
    [
        ([BIN / "torchrun", "--nproc_per_node=2"], signal.SIGKILL),
        ([BIN / "accelerate", "launch", "--cpu", "--num_processes=1"], signal.SIGTERM),
    ],
    ids=["torchrun killed", "accelerate terminated"],
)
def test_ranks_save_and_leave_when_their_launcher_is_gone(training, launcher, number):
    ranks = training()
    process = ranks.start(*launcher)
    ranks.wait_until(lambda: ranks.place(0)[1] > 3)
    process.send_signal(number)
    ranks.wait_until_gone()
    assert list_steps(ranks.run) and damage(checkpoint_path(ranks.run, list_steps(ranks.run)[-1])) is None
    assert "stopped by the end of its launcher" in (ranks.run / "train.log").read_text()


SLOW_DISK = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, ".")
from launch import train
from storydist.command import run_command
fsync, flag = os.fsync, Path(sys.argv.pop(1))
def slow(descriptor):
    if flag.exists():
        (flag.parent / "saving").touch()
        time.sleep(60)
    fsync(descriptor)
os.fsync = slow
raise SystemExit(run_command(train.main))
"""


def test_a_second_signal_while_saving_leaves_what_was_saved(training, tmp_path):
    ranks = training(save_every=1)
    flag = tmp_path / "slow"
    ranks.command = ["-c", SLOW_DISK, str(flag), *ranks.command[1:]]
    process = ranks.start(sys.executable)
    ranks.wait_until(lambda: len(list_steps(ranks.run)) > 1)
    flag.touch()
    ranks.wait_until((tmp_path / "saving").exists)
    saved = list_steps(ranks.run)
    process.send_signal(signal.SIGTERM)
    time.sleep(SAME_S + 0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == REQUEUE
    assert newest_valid(ranks.run, lambda text: pytest.fail(text)) == saved[-1]
