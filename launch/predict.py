"""Shows what a run predicts: pictures and texts of a few windows, in RUN/predictions/SPLIT and on the terminal.

python launch/predict.py RUN --split test --num 8
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from storydist.command import ArgumentParser, run_command


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--split", default="test", help="default: %(default)s")
    parser.add_argument(
        "--num", type=int, default=8, metavar="N", help="windows, drawn by the seed (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--checkpoint", default="latest", help="latest, best or a step (default: %(default)s)")
    parser.add_argument("--shards", help="folder or address where the shards lie now, if moved")
    parser.add_argument("--device", help="cpu, cuda, ...; default: cuda if there is one")
    parser.add_argument("--temperature", type=float, help="of nucleus sampling; default: the run's own")
    parser.add_argument("--top-p", type=float, help="of nucleus sampling; default: the run's own")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    # Imported here, so that --help and a mistyped option do not wait for torch.
    from storydist.run_folder import load_run
    from storydist.verdict.device import choose_device
    from storydist.verdict.predict import predict, summary, write_predictions
    from storydist.verdict.settings import with_overrides

    if arguments.num < 1:
        raise ValueError(f"--num {arguments.num}: at least one window has to be shown")
    device = choose_device(arguments.device)
    run = load_run(arguments.run, arguments.checkpoint, device, arguments.shards)
    for note in run.notes:
        print(f"note: {note}", file=sys.stderr)
    asked = {name: getattr(arguments, name) for name in ("temperature", "top_p", "seed")}
    config = with_overrides(run.config.evaluate, asked)
    found = predict(
        run.model, run.index, arguments.split, arguments.num, data=run.config.data, config=config, device=device
    )
    folder = write_predictions(arguments.run / "predictions" / arguments.split, found)
    print("\n\n".join(summary(record) for record in found))
    print(f"\n{len(found)} windows written to {folder}")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
