"""Whether the signal ahead of the time limit comes soon enough for a checkpoint to be written."""

from dataclasses import dataclass
from pathlib import Path

from storydist.cluster import fault, slurm
from storydist.cluster.finding import Finding, fail, ok, warn
from storydist.cluster.goodput import read_lives, steps_of
from storydist.cluster.script import read_script
from storydist.cluster.slurm import RESOLUTION_S

CHECK = "lead time"
STEPS_AT_STOP = 2  # the step under way when the signal comes, and the one that the ranks agree in to be the last
RECENT = 50  # stretches of steps, and saves, that are looked at: what was slow long ago does not count


@dataclass(frozen=True)
class Measured:
    """Of the run's earlier lives, seconds: the longest recent step, and the longest recent save, start to end."""

    step_s: float
    save_s: float


def lead_time(run: Path, given_s: int | None, job_id: str | None) -> list[Finding]:
    """`given_s`: how long before the end the signal comes; None: what the job's own script says."""
    seconds = _of_script(job_id) if given_s is None and job_id else given_s
    if seconds is None:
        if job_id is None:
            return [ok(CHECK, "no Slurm job")]
        told = "Slurm sends the job no signal that could be found out (it may have been given on sbatch's command line)"
        return [warn(CHECK, told, "#SBATCH --signal=B:USR1@300 in the script, or tell --lead-s")]
    measured = measure(run)
    remedy = "a longer one: #SBATCH --signal=B:USR1@SECONDS (or --lead-s, if this is not what the job is sent)"
    if measured is None:
        told = f"{seconds} s; {run} tells of no save yet, Slurm itself takes up to {RESOLUTION_S} s of it"
        return [ok(CHECK, told) if seconds > RESOLUTION_S else fail(CHECK, told, remedy)]
    needed = needed_s(measured.step_s, measured.save_s)
    told = (
        f"{seconds} s; needed are {needed:.0f}: {STEPS_AT_STOP} steps ({measured.step_s:.1f} s each), two saves "
        f"({measured.save_s:.1f} s each, as measured) and {RESOLUTION_S} s, because Slurm looks once a minute"
    )
    return [ok(CHECK, told) if seconds >= needed else fail(CHECK, told, remedy)]


def needed_s(step_s: float, save_s: float) -> float:
    """How long ahead of the time limit the signal has to come, for steps and saves (start to end) that take so long at
    most: two steps, a save that was begun before and the last one, and Slurm's minute.
    """
    return STEPS_AT_STOP * step_s + 2 * save_s + RESOLUTION_S


def measure(run: Path) -> Measured | None:
    """From the run's ledger; None when it tells of no step or no save."""
    try:
        lives = read_lives(run)
    except (FileNotFoundError, ValueError):
        return None
    firsts, others = steps_of(lives)
    steps = [stretch.took_s / stretch.count for stretch in others or firsts]
    saves = [line["stall_s"] - line["waited_s"] + line["write_s"] for life in lives for line in life.written]
    return Measured(max(steps[-RECENT:]), max(saves[-RECENT:])) if steps and saves else None


def _of_script(job_id: str) -> int | None:
    """What the job's own script says; None where it cannot be had or says nothing."""
    text = slurm.batch_script(job_id)
    return fault.lead_s(read_script(Path("batch script"), text)) if text else None
