"""A short run of a configuration, stopped once and resumed, for the planner to learn from what things cost."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from signal import SIGUSR1

from storydist.cluster.costs import Priced, costs_of
from storydist.cluster.goodput import read_lives
from storydist.training.processes import Stop, run_ranks

PARTS = 6  # saved after each; judged after each second one; stopped behind the third


def calibrate(
    program: Sequence[str], run: Path, steps: int, *, evaluates: bool, processes: int, environment: Mapping[str, str]
) -> Priced:
    """Trains about `steps` steps in the new folder `run`. `program`: launch/train.py with a configuration and settings,
    to which those of this run are added.

    Raises ValueError, with the last words, when the training fails.
    """
    part = max(1, steps // PARTS)
    settings = {
        "run.dir": run,
        "train.steps": PARTS * part,
        "train.log_every": 1,
        "train.save_every": part,
        "train.evaluate_every": 2 * part if evaluates else 0,
    }
    command = [*program, *(f"{key}={value}" for key, value in settings.items()), "--resume"]
    exits_s = []
    for stop in (Stop(SIGUSR1, behind=PARTS // 2 * part), None):
        run_ranks(command, run, processes, environment, stop)
        exits_s.append(time.time() - read_lives(run)[-1].until)
    return costs_of(read_lives(run), exit_s=sum(exits_s) / len(exits_s))
