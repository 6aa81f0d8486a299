"""Proves for a configuration that a run which was stopped ends as one that was not, bit for bit.

    python launch/verify_resume.py --config configs/base.yaml data.shards=SHARDS

Trains some steps straight, and again with stops: by USR1 to one rank, the last one by kill -9 to all. Each part is
started afresh, as launch/train.py. Then weights, optimizer, moving average, state and metrics are compared.
Exit codes: 0 the same; 1 the first thing that differs is named; 2 a mistake, or a run that ended in another way.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from storydist.command import ArgumentParser, positive_int, run_command


def steps_to_stop(text: str) -> list[int]:
    stops = [positive_int(stop) for stop in text.split(",")]
    if stops != sorted(set(stops)):
        raise argparse.ArgumentTypeError(f"needed steps in rising order, found {text!r}")
    return stops


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML file; see configs/")
    parser.add_argument("--steps", type=positive_int, default=24, help="default: %(default)s")
    parser.add_argument(
        "--stops", type=steps_to_stop, metavar="A,B,...", help="stop behind these; default: three, evenly"
    )
    parser.add_argument("--processes", type=positive_int, default=1, help="default: %(default)s")
    parser.add_argument("--keep", action="store_true", help="keep both runs; those that differ are always kept")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings")
    arguments = parser.parse_intermixed_args()
    steps = arguments.steps
    arguments.stops = arguments.stops or sorted({max(1, steps * part // 4) for part in (1, 2, 3)})
    if arguments.stops[-1] >= steps:
        parser.error(f"--stops {arguments.stops[-1]} is not below --steps {steps}")
    return arguments


def main() -> int:
    arguments = parse_arguments()
    # Imported here, so that --help and a mistyped option do not wait for torch.
    import torch

    from storydist.config import load_config
    from storydist.training.difference import first_difference
    from storydist.training.processes import Stop, last_step, run_ranks

    steps, processes = arguments.steps, arguments.processes
    often = [f"train.save_every={max(1, steps // 6)}", "train.log_every=2"]
    words = [*often, *arguments.overrides, f"train.steps={steps}"]
    folder = Path(tempfile.mkdtemp(prefix="verify-resume-"))
    on_cpu = {"ACCELERATE_USE_CPU": "true"} if torch.cuda.device_count() < processes else {}

    def train(run: Path, stop: Stop | None) -> None:
        program = [sys.executable, str(Path(__file__).with_name("train.py")), "--resume", "--config", arguments.config]
        run_ranks([*program, *words, f"run.dir={run}"], run, processes, os.environ | on_cpu, stop)
        ended = f"stopped by {stop.number.name}" if stop else "ended"
        print(f"{run.name} run: {ended} at step {last_step(run)}", flush=True)

    straight, stopped = folder / "straight", folder / "stopped"
    difference: str | None = "not compared"
    try:
        load_config(arguments.config, [*words, f"run.dir={straight}"])  # mistakes are told at once
        train(straight, None)
        for stop in arguments.stops:
            last = stop == arguments.stops[-1]
            train(stopped, Stop(signal.SIGKILL if last else signal.SIGUSR1, behind=stop))
        train(stopped, None)
        difference = first_difference(straight, stopped)
    finally:
        if arguments.keep or (difference and straight.exists()):
            print(f"both runs are in {folder}", flush=True)
        else:
            shutil.rmtree(folder)
    print(f"they differ: {difference}" if difference else f"the same, bit for bit, after {len(arguments.stops)} stops")
    return 1 if difference else 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
