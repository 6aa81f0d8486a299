"""Looks after the checkpoints of a run.

python launch/checkpoint.py list RUN
python launch/checkpoint.py verify RUN                              # exit code 1 if one is damaged
python launch/checkpoint.py export RUN best --out FILE.safetensors  # or latest, or a step; --ema: the moving average
python launch/checkpoint.py average RUN 400 500 600 --out FILE.safetensors
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from storydist.command import ArgumentParser, positive_int, run_command

DAMAGED = 1  # exit code of verify


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="list|verify|export|average")
    for name, told in {
        "list": "step, size and age of each, whether it is whole, which one judged best",
        "verify": "reads every byte of all",
        "export": "the weights of one as a plain safetensors file",
        "average": "the mean of the weights of several",
    }.items():
        command = commands.add_parser(name, help=told, description=told)
        command.add_argument("run", type=Path, help="folder of the run")
        if name == "export":
            command.add_argument("which", metavar="STEP|latest|best")
            command.add_argument("--ema", action="store_true", help="the moving average of the weights")
        if name == "average":
            command.add_argument("steps", type=positive_int, nargs="+", metavar="STEP")
        if name in ("export", "average"):
            command.add_argument("--out", type=Path, required=True, metavar="FILE")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    # Imported here, so that --help and a mistyped option do not wait for torch.
    from storydist.training import export

    if arguments.command == "export":
        step = export.export(arguments.run, arguments.which, arguments.out, arguments.ema)
        print(f"step {step} written to {arguments.out}")
    elif arguments.command == "average":
        export.average(arguments.run, arguments.steps, arguments.out)
        print(f"mean of steps {', '.join(map(str, arguments.steps))} written to {arguments.out}")
    else:
        checkpoints = export.survey(arguments.run)
        print(export.table(checkpoints))
        damaged = [facts for facts in checkpoints if facts.problem]
        if arguments.command == "verify":
            print(f"{len(checkpoints) - len(damaged)} of {len(checkpoints)} are whole")
            return DAMAGED if damaged else 0
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
