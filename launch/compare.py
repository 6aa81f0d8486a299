"""Puts evaluated runs side by side: metrics as rows, runs as columns, the best in bold.

python launch/compare.py RUN RUN ... --split test
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from storydist.command import ArgumentParser, run_command


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders of runs")
    parser.add_argument("--split", default="test", help="whose evaluations are compared (default: %(default)s)")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the table there too")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    from storydist.data.files import check_writable, write_atomic
    from storydist.verdict.compare import compare, comparison_html, comparison_table
    from storydist.verdict.report import console_of_stdout, read_evaluation

    if arguments.html:
        check_writable(arguments.html.parent)
    rows, warnings = compare(arguments.runs, [read_evaluation(run, arguments.split) for run in arguments.runs])
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    console_of_stdout().print(comparison_table(arguments.runs, rows))
    if arguments.html:
        write_atomic(arguments.html, comparison_html(arguments.runs, rows, warnings).encode())
        print(f"written to {arguments.html}")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
