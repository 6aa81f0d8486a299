"""A small training, submitted with slurm/train.sbatch as it is, and what it left."""

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from storydist.data.index import ShardIndex
from storydist.training.difference import first_difference
from storydist.training.log import METRICS
from storydist.training.processes import last_step
from tests.slurm.box import Box
from tests.small_runs import SMALL

STEPS = 120
LIFE = re.compile(r"^== \S+ life (\d+): \d+ rank", re.MULTILINE)
TWO_NODES = ("--nodes=2", "--ntasks-per-node=1")
ONE_NODE = ("--nodes=1", "--ntasks-per-node=2")


@dataclass
class Training:
    """Two ranks on the CPU; `folder` holds settings, the log and the run."""

    box: Box
    index: ShardIndex
    folder: Path
    options: tuple[str, ...] = TWO_NODES
    settings: tuple[str, ...] = ()  # key=value
    environment: dict[str, str] = field(default_factory=dict)
    job: str = ""

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    @property
    def short_log(self) -> str:
        """The log without its steps, which would fill the report of a test that failed."""
        return "\n".join(line for line in self.log.splitlines() if not line.startswith("step "))

    @property
    def lives(self) -> list[int]:
        """As the log numbers them: it was appended to if there are as many as there should be."""
        return [int(number) for number in LIFE.findall(self.log)]

    def submit(self) -> "Training":
        self.folder.mkdir(exist_ok=True)
        often = {"log_every": 1, "save_every": 40, "evaluate_every": 0, "evaluate_split": "test"}
        small = {"steps": STEPS, "global_batch": 4, "micro_batch": 2, "threads": 1, "device": "cpu"}
        settings = {"model": SMALL, "optim": {"ema_decay": 0.9}, "train": often | small}
        (self.folder / "settings.yaml").write_text(yaml.safe_dump(settings))
        shards = [f"data.shards={self.index.root}", "data.max_wordpieces=20", f"run.dir={self.run}"]
        self.job = self.box.submit(
            *("--gpus-per-node=0", "--cpus-per-task=1", "--time=60", f"--output={self.folder}/log", *self.options),
            *("slurm/train.sbatch", self.folder / "settings.yaml", *shards, *self.settings),
            **{"PYTHON": sys.executable, "PREFLIGHT": ""} | self.environment,
        )
        return self

    def wait(self, true: Callable[[], bool] | None = None, seconds: float = 180) -> dict[str, str]:
        return self.box.wait(self.job, true, seconds)

    def wait_for_step(self, step: int) -> None:
        """Until it is logged."""
        self.wait(lambda: last_step(self.run) >= step)

    def ranks(self) -> dict[str, int]:
        """The Python processes of this training, by the name of their node."""
        found = self.box.processes().items()
        words = sys.executable, f"run.dir={self.run} "
        return {p.node: number for number, p in found if p.command.startswith(words[0]) and words[1] in p.command}

    def hold(self) -> None:
        """Stops the ranks where they are: however fast the machine, the run is still there when something comes."""
        kill(*self.ranks().values(), number=signal.SIGSTOP)

    def let_go(self) -> None:
        kill(*self.ranks().values(), number=signal.SIGCONT)

    def must_equal(self, undisturbed: "Training", lives: int) -> None:
        """That it ended after so many lives as the other did after one, and left nothing running."""
        told = self.wait()
        assert told["JobState"] == "COMPLETED" and told["ExitCode"] == "0:0", self.short_log
        assert self.lives == list(range(1, lives + 1)) and told["Restarts"] == str(lives - 1), self.short_log
        self.must_have_trained(undisturbed)

    def must_have_trained(self, undisturbed: "Training") -> None:
        assert first_difference(undisturbed.run, self.run) is None
        lines = [json.loads(line) for line in (self.run / METRICS).read_text().splitlines()]
        assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, STEPS + 1))
        self.must_be_gone()

    def must_be_gone(self) -> None:
        """No process of any job is left."""
        deadline = time.monotonic() + 20
        while left := self.box.processes():
            assert time.monotonic() < deadline, left
            time.sleep(0.1)


def kill(*processes: int, number: int = signal.SIGKILL) -> None:
    for process in processes:
        os.kill(process, number)
