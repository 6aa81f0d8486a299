"""Whether the signal ahead of the time limit comes soon enough for a checkpoint to be written."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from storydist.cluster import fault
from storydist.cluster.finding import Finding, fail, ok, warn
from storydist.cluster.header_rules import RESOLUTION_S
from storydist.cluster.script import read_script
from storydist.training.log import LOG, METRICS

CHECK = "lead time"
RECENT = 50  # lines of a run's logs that are looked at
ASKED_S = 5
_SAVED = re.compile(r"saved in ([0-9.]+) s; the loop waited ([0-9.]+) s")


@dataclass(frozen=True)
class Measured:
    """Of an earlier life of the run, seconds: its longest recent step, and its longest recent save, start to end."""

    step_s: float
    save_s: float


def lead_time(run: Path, global_batch: int, given_s: int | None, job_id: str | None) -> list[Finding]:
    """`given_s`: how long before the end the signal comes; None: what the job's own script says."""
    seconds = _of_script(job_id) if given_s is None and job_id else given_s
    if seconds is None:
        if job_id is None:
            return [ok(CHECK, "no Slurm job")]
        told = "Slurm sends the job no signal that could be found out (it may have been given on sbatch's command line)"
        return [warn(CHECK, told, "#SBATCH --signal=B:USR1@300 in the script, or tell --lead-s")]
    measured = measure(run, global_batch)
    remedy = "a longer one: #SBATCH --signal=B:USR1@SECONDS (or --lead-s, if this is not what the job is sent)"
    if measured is None:
        told = f"{seconds} s; {run} tells of no save yet, Slurm itself takes up to {RESOLUTION_S} s of it"
        return [ok(CHECK, told) if seconds > RESOLUTION_S else fail(CHECK, told, remedy)]
    # The step under way, a save that was begun before, and the last one.
    needed = RESOLUTION_S + measured.step_s + 2 * measured.save_s
    told = (
        f"{seconds} s; needed are {needed:.0f}: a step ({measured.step_s:.1f} s), two saves ({measured.save_s:.1f} s "
        f"each, as measured) and {RESOLUTION_S} s, because Slurm looks once a minute"
    )
    return [ok(CHECK, told) if seconds >= needed else fail(CHECK, told, remedy)]


def measure(run: Path, global_batch: int) -> Measured | None:
    """From train.log and metrics.jsonl of an earlier life; None when there was none that saved."""
    saves = [sum(map(float, found.groups())) for line in _lines(run / LOG) if (found := _SAVED.search(line))]
    records = [_record(line) for line in _lines(run / METRICS)]
    speeds = [one["samples_per_s"] for one in records if one.get("samples_per_s")]
    if not saves or not speeds:
        return None
    return Measured(max(global_batch / speed for speed in speeds[:RECENT]), max(saves[:RECENT]))


def _lines(path: Path) -> Iterator[str]:
    """The last lines of a file, the newest first; none without the file."""
    if path.is_file():
        yield from islice(reversed(path.read_text(encoding="utf-8", errors="replace").splitlines()), 100 * RECENT)


def _record(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:  # half written
        return {}
    return found if isinstance(found, dict) else {}


def _of_script(job_id: str) -> int | None:
    """What the script that Slurm keeps of a job says; options of sbatch's command line are not in it."""
    program = shutil.which("scontrol")
    if program is None:
        return None
    try:
        command = [program, "write", "batch_script", job_id, "-"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=ASKED_S, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return None if done.returncode else fault.lead_s(read_script(Path("batch script"), done.stdout))
