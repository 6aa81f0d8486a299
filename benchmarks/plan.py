"""Is a run's prediction true? Calibrates, predicts, makes the run under a time limit that stops it twice, compares.

    python benchmarks/plan.py --config configs/demo.yaml data.shards=SHARDS train.threads=1 --out plan.json

Slurm's part is acted out: USR1 ahead of the limit, KILL at the limit, the same command with --resume some seconds after
a job's end. The limit is chosen from the calibration, so that the run needs three jobs. What other programs do beside
it changes the speed between calibration and run; the share of the processor they took is told.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from storydist.cluster.calibration import calibrate
from storydist.cluster.costs import Priced
from storydist.cluster.goodput import read_lives, spent, total
from storydist.cluster.planner import Terms, Work, interval, predict
from storydist.command import ArgumentParser, positive_int, run_command
from storydist.training.ledger import LEDGER
from storydist.training.preemption import REQUEUE

WAIT_S, LEAD_S, JOBS = 3.0, 6.0, 3
TRAIN = str(Path(__file__).resolve().parents[1] / "launch" / "train.py")


def main() -> int:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--seconds", type=positive_int, default=120, help="of steps (default: %(default)s)")
    parser.add_argument("--calibrate", type=positive_int, default=30, metavar="STEPS", help="default: %(default)s")
    parser.add_argument("--out", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args()
    program = [sys.executable, TRAIN, "--config", arguments.config, *arguments.overrides]
    busy_s = processor_s()
    with tempfile.TemporaryDirectory(prefix="plan-") as folder:
        environment = {**os.environ}
        priced = calibrate(
            program, Path(folder) / "short", arguments.calibrate, evaluates=True, processes=1, environment=environment
        )
        work, terms = chosen(priced, arguments.seconds)
        actual = made(program, Path(folder) / "run", work, terms)
    found = compared(priced, work, terms, actual) | {"others": shared(busy_s, actual["processor_s"])}
    print(table(found))
    if arguments.out:
        arguments.out.write_text(json.dumps({"date": str(date.today()), **found}, indent=1) + "\n")
    return 0


def chosen(priced: Priced, seconds: int) -> tuple[Work, Terms]:
    """A run of about so many seconds of steps, judged twice, and the shortest limit under which it needs JOBS jobs."""
    steps = max(JOBS * 4, round(seconds / priced.costs.step_s))
    work = Work(steps, save_every=max(1, steps // 6), evaluate_every=-(-steps // 2))
    limit_s = priced.costs.start_s + LEAD_S
    while True:
        limit_s += 1
        terms = Terms(limit_s, LEAD_S, WAIT_S)
        try:
            if len(predict(priced.costs, work, terms).jobs) <= JOBS:
                return work, terms
        except ValueError:  # a job would get nowhere
            continue


def made(program: list[str], run: Path, work: Work, terms: Terms) -> dict[str, Any]:
    """The run, job after job; seconds from the first one's start to the last one's end."""
    settings = [f"train.steps={work.steps}", f"train.save_every={work.save_every}"]
    command = [*program, *settings, f"train.evaluate_every={work.evaluate_every}", f"run.dir={run}", "--resume"]
    began, jobs = time.time(), list[int]()
    finished = False
    while not finished and (not jobs or jobs[-1] == REQUEUE):
        if jobs:
            time.sleep(terms.wait_s)
        jobs.append(job(command, terms, run.with_suffix(".log")))
        finished = (run / LEDGER).is_file() and read_lives(run)[-1].ended == "finished"
    took_s = time.time() - began
    if not finished:
        raise ValueError(f"the run ended with {jobs}: {run.with_suffix('.log').read_text()[-500:]}")
    whole = total(spent(read_lives(run)))
    own_s = sum(os.times()[2:4])
    return {"wall_s": took_s, "codes": jobs, "ledger": asdict(whole), "processor_s": own_s}


def job(command: list[str], terms: Terms, log: Path) -> int:
    with log.open("ab") as words:
        process = subprocess.Popen(command, stdout=words, stderr=subprocess.STDOUT)
    for wait_s, number in ((terms.limit_s - terms.lead_s, signal.SIGUSR1), (terms.lead_s, signal.SIGKILL)):
        try:
            return process.wait(wait_s)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
    return REQUEUE if process.wait() == -signal.SIGKILL else process.returncode


def compared(priced: Priced, work: Work, terms: Terms, actual: dict[str, Any]) -> dict[str, Any]:
    expected = predict(priced.costs, work, terms)
    low, high = interval(priced.costs, work, terms)
    parts = {
        "start": sum(job.start_s for job in expected.jobs),
        "steps": sum(job.steps_s for job in expected.jobs),
        "saves, leaving": sum(job.saves_s for job in expected.jobs),
        "evaluations": sum(job.evaluations_s for job in expected.jobs),
    }
    return {
        "costs": asdict(priced.costs),
        "work": asdict(work),
        "terms": asdict(terms),
        "predicted": {"wall_s": expected.wall_s, "low_s": low.wall_s, "high_s": high.wall_s, "jobs": len(expected.jobs)}
        | {"parts": parts, "waits": expected.waits_s},
        "actual": actual,
        "off": expected.wall_s / actual["wall_s"] - 1,
    }


def table(found: dict[str, Any]) -> str:
    predicted, actual, ledger = found["predicted"], found["actual"], found["actual"]["ledger"]["seconds"]
    steps = ledger["training"] + ledger["waiting"] + ledger["lost"]
    rows = [
        ("jobs", f"{predicted['jobs']}", f"{len(actual['codes'])}"),
        ("start, first steps' surplus", f"{predicted['parts']['start']:.1f}", f"{ledger['start']:.1f}"),
        ("steps", f"{predicted['parts']['steps']:.1f}", f"{steps:.1f} (first steps' surplus and lost work included)"),
        ("evaluations", f"{predicted['parts']['evaluations']:.1f}", f"{ledger['evaluation']:.1f}"),
        ("saves", f"{predicted['parts']['saves, leaving']:.1f} (leaving included)", f"{ledger['saving']:.1f}"),
        ("between jobs", f"{predicted['waits']:.1f}", f"{ledger['queued']:.1f} (leaving included)"),
        (
            "**whole run, s**",
            f"**{predicted['wall_s']:.1f}** ({predicted['low_s']:.1f}-{predicted['high_s']:.1f})",
            f"**{actual['wall_s']:.1f}**",
        ),
    ]
    head = (
        f"{found['work']['steps']} steps, a limit of {found['terms']['limit_s']:.0f} s: predicted {found['off']:+.1%}"
    )
    lines = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    accounted = sum(ledger.values()) / actual["wall_s"]
    tail = (
        f"The ledger accounts for {accounted:.1%} of the wall time. Others used {found['others']:.2f} cores meanwhile."
    )
    return f"{head}\n\n| | predicted | actual |\n|---|---|---|\n{lines}\n\n{tail}"


def processor_s() -> tuple[float, float]:
    """(now, seconds that all processes of this machine have used)."""
    used = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    idle = int(used[3]) + int(used[4])
    return time.time(), (sum(map(int, used[:8])) - idle) / os.sysconf("SC_CLK_TCK")


def shared(before: tuple[float, float], own_s: float) -> float:
    """Cores that others used since."""
    now, used_s = processor_s()
    return max(0.0, used_s - before[1] - own_s) / (now - before[0])


if __name__ == "__main__":
    raise SystemExit(run_command(main))
