"""Trains a model on shards.

    accelerate launch launch/train.py --config configs/base.yaml data.shards=SHARDS run.dir=RUN train.steps=200
    python launch/train.py --config configs/base.yaml data.shards=SHARDS run.dir=RUN --resume

Exit codes: 0 finished; 2 a mistake in settings or data; 75 run again with --resume. See docs/when_it_stops.md.
"""

import argparse
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from storydist.command import ArgumentParser, end_with
from storydist.training.preemption import leave_at_once_on_signals

if TYPE_CHECKING:
    from storydist.training.trainer import Run

LAUNCHER = os.getppid() if {"RANK", "ACCELERATE_MIXED_PRECISION"} & os.environ.keys() else None  # they set one of these


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML file; see configs/")
    parser.add_argument("--resume", action="store_true", help="go on from run.dir's newest whole checkpoint, if any")
    parser.add_argument(
        "--allow-change", action="append", default=[], metavar="KEY", help="resume although it differs; may be repeated"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, for example train.steps=200")
    return parser.parse_intermixed_args()  # settings may stand before and after options


def main() -> int:
    arguments = parse_arguments()
    # Imported here, so that --help and a mistyped option do not wait for torch.
    from storydist.config import load_config
    from storydist.data.files import check_writable
    from storydist.data.index import ShardIndex
    from storydist.data.location import absolute
    from storydist.run_folder import code_version
    from storydist.training.lock import LEAVING_S, locked
    from storydist.training.ranks import failing_together
    from storydist.training.trainer import build_run

    config = load_config(arguments.config, arguments.overrides)
    run_dir, shards = Path(config.run.dir), absolute(config.data.shards)
    config = config.model_copy(update={"data": config.data.model_copy(update={"shards": shards})})
    check_writable(run_dir)
    index = ShardIndex.open(shards, config.data.cache)
    say = print if os.environ.get("RANK", "0") == "0" else (lambda text: None)
    run = build_run(config, index, code_version())
    with ExitStack() as stack:
        with failing_together():
            if run.accelerator.is_main_process:
                stack.enter_context(locked(run_dir, say, LEAVING_S if arguments.resume else 0.0))
        run.watchdog.launcher = LAUNCHER
        stack.enter_context(run.watchdog)
        return start(run, say, arguments.resume, tuple(arguments.allow_change))


def start(run: "Run", say: Callable[[str], None], resume: bool, allow_change: tuple[str, ...]) -> int:
    """Begins the run or goes on with it, to its end; returns the exit code."""
    from storydist.cluster.slurm import job_of
    from storydist.run_folder import write_facts
    from storydist.training.keep import require_free
    from storydist.training.trainer import restore_newest, train

    if resume:
        restore_newest(run, say, allow_change)
    else:
        require_free(run.path)
    num_steps = run.config.train.steps
    if run.state.step >= num_steps and not run.state.owes_evaluation:
        say(f"{run.path} is finished: step {run.state.step} of {num_steps}")
        return 0
    if run.accelerator.is_main_process:
        write_facts(run.path, run.config)
        run.ledger.job = job_of(os.environ.get("SLURM_JOB_ID"))
    say(
        f"{run.path}: step {run.state.step} of {num_steps}, {run.stream.num_samples} samples an epoch, "
        f"{run.num_weights / 1e6:.2f} M parameters, {run.accelerator.num_processes} rank(s) on {run.accelerator.device}"
        f"\n{run.stream.mixing_told()}"
    )
    try:
        code = train(run)
    except FloatingPointError as error:
        raise ValueError(str(error)) from error
    run.accelerator.end_training()  # not after an error: it may wait for ranks that are gone
    return code


if __name__ == "__main__":
    leave_at_once_on_signals()
    end_with(main, several="RANK" in os.environ)
