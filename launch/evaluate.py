"""Judges a run on a split: prints every metric beside its floors and writes RUN/evaluation.json.

python launch/evaluate.py RUN --split test
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from storydist.command import ArgumentParser, run_command


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--split", default="test", help="default: %(default)s; others go to RUN/evaluation-SPLIT.json")
    parser.add_argument("--checkpoint", default="latest", help="latest, best or a step (default: %(default)s)")
    parser.add_argument("--shards", help="folder or address where the shards lie now, if moved")
    parser.add_argument("--device", help="cpu, cuda, ...; default: cuda if there is one")
    parser.add_argument("--batch-stories", type=int, metavar="N", help="stories at once; default: the run's own")
    parser.add_argument("--generate-windows", type=int, metavar="N", help="windows that get a generated description")
    parser.add_argument("--seed", type=int, help="of samples, shuffles, floors and bootstrap")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    # Imported here, so that --help and a mistyped option do not wait for torch.
    from storydist.run_folder import load_run
    from storydist.verdict.device import choose_device
    from storydist.verdict.evaluate import evaluate
    from storydist.verdict.report import floors_path, print_evaluation, write_evaluation
    from storydist.verdict.settings import with_overrides

    device = choose_device(arguments.device)
    run = load_run(arguments.run, arguments.checkpoint, device, arguments.shards)
    for note in run.notes:
        print(f"note: {note}", file=sys.stderr)
    asked = {name: getattr(arguments, name) for name in ("batch_stories", "generate_windows", "seed")}
    evaluation = evaluate(
        run.model,
        run.index,
        arguments.split,
        data=run.config.data,
        config=with_overrides(run.config.evaluate, asked),
        device=device,
        step=run.step,
        floors_path=floors_path(arguments.run, arguments.split),
    )
    path = write_evaluation(arguments.run, evaluation)
    print_evaluation(evaluation)
    print(f"written to {path}")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
