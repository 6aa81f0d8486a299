"""Says where a run's wall time went: training, waiting for data, saving, evaluation, start-up, work lost, queue.

    python launch/goodput.py RUN

A row for each life of the run (a start of its processes), and one for all. What each column means: docs/plan.md.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from storydist.command import ArgumentParser, run_command

if TYPE_CHECKING:
    from rich.table import Table

    from storydist.cluster.goodput import Life, Spent


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--json", action="store_true", help="the same figures as JSON, seconds")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    # Imported here, so that --help and a mistyped option do not wait for it.
    from storydist.cluster.goodput import read_lives, spent, total
    from storydist.verdict.report import console_of_stdout

    lives = read_lives(arguments.run)
    parts = spent(lives)
    whole = total(parts)
    if arguments.json:
        rows = [
            {**part.seconds, "wall": part.wall_s, "from_step": life.begin["step"], "to_step": life.last_step}
            | {"ended": life.ended}
            for life, part in zip(lives, parts, strict=True)
        ]
        print(json.dumps({"lives": rows, "total": {**whole.seconds, "wall": whole.wall_s, "goodput": whole.goodput}}))
        return
    console_of_stdout().print(table(lives, parts, whole))


def table(lives: "list[Life]", parts: "list[Spent]", whole: "Spent") -> "Table":
    from rich.table import Table

    from storydist.cluster.goodput import KINDS

    shown = Table(title="seconds of wall time, from the first submission or start to the last end")
    for head in ("life", "steps", "ended", *KINDS, "wall", "goodput"):
        shown.add_column(head, justify="left" if head == "ended" else "right")
    for number, (life, part) in enumerate(zip(lives, parts, strict=True), start=1):
        steps = f"{life.begin['step']}-{life.last_step}"
        shown.add_row(str(number), steps, life.ended, *figures(part), end_section=number == len(lives))
    shown.add_row("all", f"{lives[0].begin['step']}-{lives[-1].last_step}", lives[-1].ended, *figures(whole))
    return shown


def figures(part: "Spent") -> list[str]:
    from storydist.cluster.goodput import KINDS

    return [*(f"{part.seconds[kind]:.1f}" for kind in KINDS), f"{part.wall_s:.1f}", f"{100 * part.goodput:.1f} %"]


if __name__ == "__main__":
    raise SystemExit(run_command(main))
