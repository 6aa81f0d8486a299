"""Looks for good settings: trials of a sweep, one after the other, each a run of launch/train.py in DIR/trial-NNNN.

    python launch/sweep.py configs/sweeps/demo.yaml --dir DIR data.shards=SHARDS
    python launch/sweep.py DIR --report

Started several times, on one node or many, it shares the trials; started again, it goes on with what was cut off.
Exit codes: 0 no more trials to start; 2 a mistake; 75 stopped by a signal, run it again. See docs/sweep.md.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from storydist.command import ArgumentParser, positive_int, run_command
from storydist.training.preemption import REQUEUE, Preemption, leave_at_once_on_signals

PLACE = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# With one of Accelerate's variables set, a run takes us for its launcher, and stops when we are gone.
ALONE = {"ACCELERATE_MIXED_PRECISION": "no"}


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(
        prog="launch/sweep.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweep", type=Path, help="YAML file, see configs/sweeps/; with --report: the sweep's folder")
    parser.add_argument("--dir", type=Path, help="folder of the sweep, one for all that share it")
    parser.add_argument(
        "--trials", type=positive_int, metavar="N", help="default: as the file says; more may come later"
    )
    parser.add_argument("--report", action="store_true", help="table and plots of what there is, in DIR/sweep.html")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of all trials")
    arguments = parser.parse_intermixed_args()
    if not arguments.report and arguments.dir is None:
        parser.error("--dir DIR is needed: the folder of the sweep")
    if arguments.report and (arguments.dir or arguments.trials or arguments.overrides):
        parser.error("--report takes the sweep's folder and nothing else")
    return arguments


def main() -> int:
    arguments = parse_arguments()
    try:
        import optuna  # noqa: F401
    except ModuleNotFoundError:
        raise ValueError("a sweep needs Optuna: pip install 'storydist[sweep]'") from None
    if arguments.report:
        return report(arguments.sweep)
    # Imported here, so that --help and a mistyped option do not wait for torch.
    from storydist.data.files import check_writable
    from storydist.sweep.settings import load_sweep
    from storydist.sweep.study import open_study
    from storydist.sweep.trial import Program, run_trials

    sweep = load_sweep(arguments.sweep, arguments.overrides, arguments.trials)
    check_writable(arguments.dir)
    study = open_study(arguments.dir, sweep)
    environment = {key: value for key, value in os.environ.items() if key not in PLACE} | ALONE
    program = Program([sys.executable, str(Path(__file__).with_name("train.py"))], environment)
    with Preemption() as preemption:
        done = run_trials(study, arguments.dir, sweep, program, lambda: preemption.asked is not None, say)
    if not done:
        return REQUEUE
    return report(arguments.dir)


def say(text: str) -> None:
    print(text, flush=True)


def report(folder: Path) -> int:
    from storydist.sweep.report import print_table, write_page
    from storydist.sweep.study import read_study

    study = read_study(folder)
    print_table(study)
    print(f"written to {write_page(study, folder)}")
    return 0


if __name__ == "__main__":
    leave_at_once_on_signals()
    raise SystemExit(run_command(main))
