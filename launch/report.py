"""Writes RUN/report.html, one file that opens offline: curves, table beside floors, example windows, settings.

python launch/report.py RUN
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from storydist.command import ArgumentParser, run_command


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--split", default="test", help="whose evaluation is shown (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="default: RUN/report.html")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    # Imported here, so that --help and a mistyped option do not wait for the plotting library.
    from storydist.cluster.goodput import goodput_of
    from storydist.data.files import check_writable, write_atomic
    from storydist.verdict.page import page_of_run

    path = arguments.out or arguments.run / "report.html"
    check_writable(path.parent)
    text, evaluated = page_of_run(arguments.run, arguments.split, goodput_of(arguments.run))
    if not evaluated:
        print(
            f"{arguments.run} is not evaluated on {arguments.split}; only its curves are shown. "
            f"For the rest: python launch/evaluate.py {arguments.run} --split {arguments.split}",
            file=sys.stderr,
        )
    write_atomic(path, text.encode())
    print(f"written to {path} ({len(text.encode()) / 1e6:.1f} MB)")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
