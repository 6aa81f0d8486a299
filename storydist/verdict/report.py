"""A run's figures on disk and on a terminal.

RUN/evaluation.json           Evaluation of the test split; evaluation-SPLIT.json of another
RUN/examples-SPLIT.json       its examples: pictures (base64 JPEG), texts, scores
RUN/floors-SPLIT.json         the floors' figures, kept
RUN/metrics.jsonl             one line per logged step ("kind": "train") or evaluation ("kind": "evaluation")
"""

import json
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from storydist.data.files import write_atomic
from storydist.verdict.assemble import grouped, oracles, ordered_floors, verdict

DEFAULT_SPLIT = "test"
PIPE_WIDTH, ONE_LINE_WIDTH, INTERVAL_WIDTH = 170, 130, 95  # characters
OWN = "the targets' own"
HEADS = ("metric", "model", "verdict", "strongest floor")
LABELS = {"beats all floors": "beats all", "level": "level", "beats constants": "constants", "no": "behind", "": ""}
STYLES = {"beats all floors": "green", "level": "yellow", "beats constants": "yellow", "no": "red", "": ""}
SENTENCES = {
    "level": "level with the strongest floor",
    "beats constants": "beats the constant floors only",
    "no": "behind a floor",
}
FOOTER = (
    "↓ lower, ↑ higher is better, → closer to the targets' own. level: the strongest floor lies within the model's "
    "95 % interval (bootstrap over stories). constants: beats floors that fit nothing, not those that do. Floors know "
    "the training split only; an oracle peeks at the target and is no floor. One training seed: how much seeds differ "
    "is not known."
)


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
    console = console_of_stdout()
    console.print(evaluation_text(evaluation, console.width), soft_wrap=True, highlight=False)


def console_of_stdout() -> Console:
    """As wide as the terminal, or wide enough for a table where there is none."""
    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)


def evaluation_text(evaluation: Mapping[str, Any], width: int) -> Text:
    """Every metric beside its floors, in lines of `width` characters: the strongest floor in a column of its own, the
    others behind it or, where that is too narrow, on the next line.
    """
    metrics = evaluation["metrics"]
    rows = {name: _cells(name, metric, with_interval=width >= INTERVAL_WIDTH) for name, metric in metrics.items()}
    widths = [max(map(len, column)) for column in zip(HEADS, *rows.values(), strict=True)]
    text = Text(f"{title(evaluation)}\n\n")
    text.append(_line(HEADS, widths) + ("  other floors" if width >= ONE_LINE_WIDTH else "") + "\n", "dim")
    for group, names in grouped(metrics).items():
        text.append(f"{group}\n", "bold")
        for name in names:
            _append_row(text, rows[name], widths, verdict(metrics[name]), others_text(metrics[name]), width)
    text.append(f"\n{textwrap.fill(FOOTER, width)}\n\n", "dim")
    # Last, because that is what a terminal still shows.
    return text.append("\n".join(textwrap.fill(line, width, subsequent_indent="  ") for line in summary(evaluation)))


def _cells(name: str, metric: Mapping[str, Any], *, with_interval: bool) -> tuple[str, ...]:
    shown = figure(metric) if with_interval else number(metric["value"])
    return (f"{name} {arrow(metric)}", shown, LABELS[verdict(metric)], strongest_text(metric))


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True))


def _append_row(
    text: Text, cells: Sequence[str], widths: Sequence[int], judged: str, others: Sequence[str], width: int
) -> None:
    line = _line(cells, widths)
    start = len(text) + 2 + sum(widths[:2]) + 2 * len(widths[:2])
    text.append(line if width >= ONE_LINE_WIDTH else line.rstrip())
    text.stylize(STYLES[judged], start, start + len(cells[2]))
    # A floor's name and figure stay together: blanks inside are hidden from the wrapping.
    kept = ", ".join(one.replace(" ", "\0") for one in others)
    indent = len(line) + 2 if width >= ONE_LINE_WIDTH else 6
    wrapped = textwrap.wrap(kept, max(width - indent, 20), break_long_words=False, break_on_hyphens=False)
    lines = [part.replace("\0", " ") for part in wrapped]
    if lines and width >= ONE_LINE_WIDTH:
        text.append(f"  {lines.pop(0)}", "dim")
    text.append("".join(f"\n{' ' * indent}{part}" for part in lines) + "\n", "dim")


def title(evaluation: Mapping[str, Any]) -> str:
    """What was judged."""
    step = "" if evaluation.get("step") is None else f", step {evaluation['step']}"
    size = f"{evaluation['num_stories']} stories, {evaluation['num_windows']} windows"
    return f"{evaluation['split']} split{step}: {size}"


def summary(evaluation: Mapping[str, Any]) -> list[str]:
    """Where the model beats its floors and where it does not, a line each."""
    standing = standings(evaluation)
    judged = sum(map(len, standing.values()))
    lines = [f"beats every floor in {len(standing.get('beats all floors', []))} of {judged} metrics"]
    return lines + [f"{SENTENCES[kind]}: {'; '.join(names)}" for kind, names in standing.items() if kind in SENTENCES]


def standings(evaluation: Mapping[str, Any]) -> dict[str, list[str]]:
    """{verdict: names of metrics}, the best verdict first; metrics without a floor are left out."""
    found: dict[str, list[str]] = {judged: [] for judged in LABELS if judged}
    for names in grouped(evaluation["metrics"]).values():
        for name in names:
            judged = verdict(evaluation["metrics"][name])
            if judged:
                found[judged].append(name)
    return {judged: names for judged, names in found.items() if names}


def arrow(metric: Mapping[str, Any]) -> str:
    """Which way is better, as one character."""
    return {"lower": "↓", "higher": "↑", "closest": "→"}[metric["better"]]


def figure(metric: Mapping[str, Any]) -> str:
    """A metric's value, with its interval where it has one."""
    interval = metric.get("interval")
    return number(metric["value"]) + (f" [{number(interval[0])}, {number(interval[1])}]" if interval else "")


def strongest_text(metric: Mapping[str, Any]) -> str:
    """The floor that is hardest to beat, "0.153 copy last"; "" if there is none."""
    return "".join(f"{number(value)} {name}" for name, value in ordered_floors(metric)[:1])


def others_text(metric: Mapping[str, Any]) -> list[str]:
    """The other floors, the oracles and the targets' own figure, in the same form."""
    own = [(OWN, metric["reference"])] if metric.get("reference") is not None else []
    return [f"{number(value)} {name}" for name, value in [*ordered_floors(metric)[1:], *oracles(metric), *own]]


def number(value: float | None) -> str:
    """Four significant places, without needless digits; a dash for an undefined figure."""
    if value is None:
        return "–"
    if value != 0 and abs(value) < 1e-3:
        return f"{value:.1e}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
