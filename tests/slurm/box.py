"""The cluster of cluster.sh, as tests see it: what is submitted, what Slurm says of it, which processes live."""

import contextlib
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("cluster.sh")
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "BOOT_FAIL"}
POLL_S = 0.1


@dataclass(frozen=True)
class Process:
    """One that lives, as /proc tells it."""

    command: str
    parent: int
    node: str  # "" for those of Slurm itself


class Box:
    """A running cluster in `folder`."""

    def __init__(self, folder: Path, **shape: str):
        """`shape`: what cluster.sh reads from its environment, such as NODES="3"."""
        self.folder = folder
        clean = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
        path = f"{clean.get('PATH', '')}:/usr/sbin:/sbin"
        self.environment = clean | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": path}
        subprocess.run([SCRIPT, "up", folder], check=True, env=self.environment | shape, stdout=subprocess.DEVNULL)

    def down(self) -> None:
        subprocess.run([SCRIPT, "down", self.folder], check=True, env=self.environment)

    def run(self, *command: object, **environment: str) -> str:
        """Output of a command that has to succeed, for example of `scontrol`."""
        done = subprocess.run(
            [*map(str, command)], env=self.environment | environment, cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def submit(self, *words: object, **environment: str) -> str:
        """`sbatch` with these words, from the repository's root; returns the job's number."""
        return self.run("sbatch", "--parsable", *words, **environment).strip()

    def job(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says, for example JobState, Reason, Restarts, ExitCode ("0:0"), NodeList."""
        return dict(
            word.split("=", 1) for word in self.run("scontrol", "-o", "show", "job", job).split() if "=" in word
        )

    def wait(self, job: str, true: Callable[[], bool] | None = None, seconds: float = 90) -> dict[str, str]:
        """Waits until `true()`, or until the job has ended; returns what Slurm says of it."""
        deadline = time.monotonic() + seconds
        while True:
            told = self.job(job)
            if true() if true else told["JobState"] in ENDED:
                return told
            assert time.monotonic() < deadline, told
            time.sleep(POLL_S)

    def start_node(self, node: str) -> None:
        """Starts a node's slurmd, which must not run."""
        subprocess.run(["slurmd", "-N", node], check=True, env=self.environment, start_new_session=True)

    def daemon_of(self, node: str) -> int:
        """The process of a node's slurmd."""
        return int((self.folder / f"slurmd-{node}.pid").read_text())

    def processes(self) -> dict[int, Process]:
        """Processes of this cluster's jobs by number, Slurm's own for them included, its daemons not."""
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it ended meanwhile
                pairs = (word.partition(b"=") for word in (path / "environ").read_bytes().split(b"\0"))
                environment = {key: value.decode(errors="replace") for key, _, value in pairs}
                command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
                of_job = b"SLURM_JOB_ID" in environment or command.startswith("slurmstepd")
                if environment.get(b"SLURM_CONF") == self.environment["SLURM_CONF"] and of_job:
                    found[int(path.name)] = Process(command, parent, environment.get(b"SLURMD_NODENAME", ""))
        return found
