"""What Slurm says of a job and of its partitions, asked of scontrol.

Slurm writes times in the local zone and durations as minutes, minutes:seconds, hours:minutes:seconds, days-hours,
days-hours:minutes or days-hours:minutes:seconds (https://slurm.schedmd.com/sbatch.html, --time).
"""

import re
import shutil
import subprocess
from datetime import datetime
from typing import Any

RESOLUTION_S = 60  # it looks for ending jobs once a minute, so its signal comes that much late or early
ASKED_S = 10  # seconds that a controller may take to answer
UNLIMITED = ("UNLIMITED", "INFINITE")
DURATION = re.compile(r"(?:(?P<days>\d+)-)?(?P<parts>\d+(?::\d+){0,2})")
TIMES = {"submitted": "SubmitTime", "eligible": "EligibleTime", "started": "StartTime"}


def duration_s(text: str) -> float | None:
    """Seconds of one of Slurm's durations; None for UNLIMITED. Raises ValueError for what is none."""
    if text.upper() in UNLIMITED:
        return None
    found = DURATION.fullmatch(text)
    if not found:
        raise ValueError(f"{text!r} is no time limit; use for example 90 (minutes), 12:00:00 or 2-00:00:00")
    parts = [int(part) for part in found["parts"].split(":")]
    if found["days"] is not None:
        hours, minutes, seconds = [*parts, 0, 0][:3]
        return 86400 * int(found["days"]) + 3600 * hours + 60 * minutes + seconds
    hours, minutes, seconds = {1: [0, *parts, 0], 2: [0, *parts], 3: parts}[len(parts)]
    return 3600 * hours + 60 * minutes + seconds


def partition_limits() -> dict[str, float | None]:
    """{partition that is up: seconds that a job may last, None for any}; {} where there is no Slurm to ask."""
    found = [_fields(line) for line in _ask("show", "partition", "--oneliner").splitlines()]
    return {one["PartitionName"]: duration_s(one["MaxTime"]) for one in found if one.get("State") == "UP"}


def job_of(job_id: str | None) -> dict[str, Any]:
    """{"id", "restarts", "submitted", "eligible", "started"} of a job, times in seconds since 1970; what Slurm does not
    say is left out. {} for no job, when nobody answers, and for one that is no batch job: what somebody did in an
    allocation before is none of the run's business.
    """
    fields = _fields(_ask("show", "job", "--oneliner", job_id)) if job_id else {}
    if fields.get("BatchFlag", "0") == "0":
        return {}
    times = {name: time for name, key in TIMES.items() if (time := _time(fields.get(key, ""))) is not None}
    return {"id": job_id, "restarts": int(fields.get("Restarts", 0)), **times}


def batch_script(job_id: str) -> str:
    """The script that Slurm keeps of a job; "" when nobody answers. Options of sbatch's command line are not in it."""
    return _ask("write", "batch_script", job_id, "-")


def _time(text: str) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:  # Unknown, or a format of the site's own
        return None


def _fields(line: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in line.split() if "=" in word)


def _ask(*words: str) -> str:
    """What scontrol answers; "" when it is not there, fails or is silent."""
    program = shutil.which("scontrol")
    if program is None:
        return ""
    try:
        done = subprocess.run([program, *words], capture_output=True, text=True, timeout=ASKED_S, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 else ""
