"""The cluster of cluster.sh, as tests see it: what is submitted, what Slurm says of it, which processes live."""

import contextlib
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("cluster.sh")
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "BOOT_FAIL"}


class Box:
    """A running cluster in `folder`."""

    def __init__(self, folder: Path, **shape: str):
        """`shape`: what cluster.sh reads from its environment, such as NODES="3"."""
        self.folder = folder
        clean = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
        self.environment = clean | {"SLURM_CONF": str(folder / "slurm.conf")}
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
            if (
                true()
                if true
                else told["JobState"] in ENDED and job not in self.run("squeue", "-h", "-o", "%i").split()
            ):
                return told
            assert time.monotonic() < deadline, told
            time.sleep(0.1)

    def processes(self) -> dict[int, str]:
        """Processes of this cluster's jobs, steps among them, by number; not its daemons."""
        found = {}
        mark = f"SLURM_CONF={self.folder}/slurm.conf".encode()
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it ended meanwhile
                words = (path / "environ").read_bytes().split(b"\0")
                in_job = any(word.startswith(b"SLURM_JOB_ID=") for word in words)
                command = (path / "cmdline").read_bytes().replace(b"\0", b" ")
                if mark in words and (in_job or command.startswith(b"slurmstepd")):
                    found[int(path.name)] = command.decode(errors="replace")
        return found
