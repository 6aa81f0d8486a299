"""Looks, in seconds, whether a training can start and would end well; or finds faults in batch scripts.

    srun ... slurm/ranks.sh launch/preflight.py --config configs/base.yaml data.shards=SHARDS run.dir=RUN
    python launch/preflight.py --lint slurm/train.sbatch

Every rank runs it as it would run launch/train.py. Exit codes: 0 ready (there may be warnings); 2 a mistake in settings
or data; 3 particular nodes are to blame, named in a line `bad nodes: n1,n2`. With --lint: 0 clean, 1 faults found.
See docs/preflight.md.
"""

import argparse
import os
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from storydist.command import ArgumentParser, end_with, positive_int
from storydist.training.preemption import leave_at_once_on_signals

FAULTS = 1  # exit code of --lint


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(
        prog="launch/preflight.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", help="YAML file; see configs/")
    parser.add_argument("--lead-s", type=positive_int, help="seconds from Slurm's signal to the end of the job")
    parser.add_argument(
        "--wait-s", type=positive_int, default=120, help="seconds that ranks are waited for; default: %(default)s"
    )
    parser.add_argument("--lint", type=Path, nargs="+", metavar="SCRIPT", help="batch scripts to check, not to run")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, as for launch/train.py")
    arguments = parser.parse_intermixed_args()
    if bool(arguments.config) == bool(arguments.lint):
        parser.error("needed is either --config or --lint")
    return arguments


def lint_scripts(paths: list[Path]) -> int:
    from storydist.cluster.lint import lint

    faults = [fault for path in paths for fault in lint(path)]
    for fault in faults:
        print(fault.told())
    print(f"{len(paths)} script(s): {f'{len(faults)} fault(s)' if faults else 'no fault found'}")
    return FAULTS if faults else 0


def main() -> int:
    arguments = parse_arguments()
    if arguments.lint:
        return lint_scripts(arguments.lint)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # what cannot be reached is told once, by us
    # Imported here, so that --help, --lint and a mistyped option do not wait for torch.
    from storydist.cluster.place import place_of
    from storydist.cluster.preflight import preflight
    from storydist.config import load_config

    load = partial(load_config, arguments.config, arguments.overrides)
    return preflight(place_of(os.environ), load, arguments.lead_s, arguments.wait_s)


if __name__ == "__main__":
    leave_at_once_on_signals()
    end_with(main, several=True)  # at once: a collective that never ended has a thread that would keep the process
