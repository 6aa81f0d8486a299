"""A run's figures on disk and on a terminal.

RUN/evaluation.json           Evaluation of the test split; evaluation-SPLIT.json of another
RUN/examples-SPLIT.json       its examples: pictures (base64 JPEG), texts, scores
RUN/floors-SPLIT.json         the floors' figures, kept
RUN/metrics.jsonl             one line per logged step ("kind": "train") or evaluation ("kind": "evaluation")
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from storydist.data.files import write_atomic
from storydist.verdict.assemble import verdict

DEFAULT_SPLIT = "test"
PIPE_WIDTH, ONE_LINE_WIDTH = 170, 140  # characters
FOOTER = "one seed, no spread; brackets: 95 % bootstrap over stories; floors know the training split only, oracles peek"
VERDICT_STYLES = {"beats all floors": "green", "beats constants": "yellow", "no": "red"}


def evaluation_path(run: Path, split: str) -> Path:
    """Where the Evaluation of a split lies in a run."""
    return run / ("evaluation.json" if split == DEFAULT_SPLIT else f"evaluation-{split}.json")


def floors_path(run: Path, split: str) -> Path:
    """Where the floors' figures for a split are kept."""
    return run / f"floors-{split}.json"


def write_evaluation(run: Path, evaluation: Mapping[str, Any]) -> Path:
    """Writes an Evaluation and, beside it, its examples. Returns the Evaluation's path."""
    split = evaluation["split"]
    figures = {name: value for name, value in evaluation.items() if name != "examples"}
    write_atomic(run / f"examples-{split}.json", json.dumps(evaluation["examples"]).encode())
    write_atomic(evaluation_path(run, split), json.dumps(figures, indent=1, allow_nan=False).encode() + b"\n")
    return evaluation_path(run, split)


def read_evaluation(run: Path, split: str = DEFAULT_SPLIT) -> dict[str, Any]:
    """The Evaluation of a split, its examples included if they are there.

    Raises FileNotFoundError if the run was not evaluated on it, ValueError if the file is no Evaluation.
    """
    path = evaluation_path(run, split)
    if not path.is_file():
        raise FileNotFoundError(
            f"{run} has no {path.name}; make it with: python launch/evaluate.py {run} --split {split}"
            if run.is_dir()
            else f"{run}: there is no such run"
        )
    evaluation = _read_json(path)
    if not isinstance(evaluation, dict) or not isinstance(evaluation.get("metrics"), dict):
        raise ValueError(f"{path} is not an evaluation (it has no metrics); evaluate the run again")
    examples = run / f"examples-{split}.json"
    return evaluation | {"examples": _read_json(examples) if examples.is_file() else []}


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); evaluate the run again") from None


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; [] if there is none. A line that a kill cut short at the end is left out.

    Steps written twice, by a run that was resumed, count as they were written last. Raises ValueError for a bad line.
    """
    path = run / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    found: dict[tuple[str, str, int], dict[str, Any]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            key = (str(entry["kind"]), str(entry.get("split")), int(entry["step"]))
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            raise ValueError(f"{path}, line {number}: is not an entry with kind and step ({error})") from None
        found[key] = entry
    return sorted(found.values(), key=lambda entry: entry["step"])


def print_evaluation(evaluation: Mapping[str, Any]) -> None:
    """The table of an Evaluation on stdout; a file or a pipe gets wide lines."""
    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
    console.print(evaluation_table(evaluation, between=", " if console.width >= ONE_LINE_WIDTH else "\n"))


def evaluation_table(evaluation: Mapping[str, Any], between: str = ", ") -> Table:
    """Every metric beside its floors, which stand side by side or, `between` being a newline, one below the other."""
    step = "" if evaluation.get("step") is None else f", step {evaluation['step']}"
    size = f"{evaluation['num_stories']} stories, {evaluation['num_windows']} windows"
    table = Table(
        title=f"{evaluation['split']} split{step}: {size}",
        caption=FOOTER,
        box=box.SIMPLE_HEAD,
    )
    table.add_column("metric", no_wrap=True)
    table.add_column("model", justify="right", no_wrap=True)
    table.add_column("floors")
    table.add_column("verdict", no_wrap=True)
    for name, metric in evaluation["metrics"].items():
        judged = verdict(metric)
        style = VERDICT_STYLES.get(judged, "")
        table.add_row(
            escape(f"{name} {arrow(metric)}"),
            escape(figure(metric)),
            escape(floors_text(metric, between)),
            f"[{style}]{judged}[/]" if style else judged,
        )
    return table


def arrow(metric: Mapping[str, Any]) -> str:
    """Which way is better, as one character."""
    return {"lower": "↓", "higher": "↑", "closest": "→"}[metric["better"]]


def figure(metric: Mapping[str, Any]) -> str:
    """A metric's value, with its interval where it has one."""
    interval = metric.get("interval")
    return number(metric["value"]) + (f" [{number(interval[0])}, {number(interval[1])}]" if interval else "")


def floors_text(metric: Mapping[str, Any], between: str = ", ") -> str:
    """All floors and the targets' own figure, the strongest floor first."""
    sign = -1 if metric["better"] == "higher" else 1
    floors = sorted(
        metric["floors"].items(), key=lambda item: sign * (item[1] if item[1] is not None else float("inf"))
    )
    own = [("the targets' own", metric["reference"])] if metric.get("reference") is not None else []
    return between.join(f"{name} {number(value)}" for name, value in [*floors, *own])


def number(value: float | None) -> str:
    """Four significant places, without needless digits; a dash for an undefined figure."""
    if value is None:
        return "–"
    if value != 0 and abs(value) < 1e-3:
        return f"{value:.1e}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
