"""What came out of a sweep: a table of its trials, and one page with that table and plots."""

import html
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import optuna
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from optuna.trial import FrozenTrial, TrialState
from rich import box
from rich.markup import escape
from rich.table import Table

from storydist.data.files import write_atomic
from storydist.sweep.settings import setting
from storydist.sweep.study import IDENTITY, trial_path
from storydist.verdict.curves import INK, LINE, STYLE
from storydist.verdict.report import console_of_stdout

PAGE = "sweep.html"
MUTED = "#8888"
STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "open",
    TrialState.WAITING: "open",
}
CSS = (
    ":root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:75rem;margin:3rem auto;"
    "padding:0 1rem}table{border-collapse:collapse}td,th{padding:.3rem .8rem;text-align:left;"
    "border-bottom:1px solid #8884}td{font-variant-numeric:tabular-nums}div{overflow-x:auto}svg{max-width:100%}"
    "code{overflow-wrap:anywhere}"
)


def ranked(study: optuna.Study) -> list[FrozenTrial]:
    """Complete trials, best first; then pruned ones, failed ones and those that are not done, by number."""
    sign = -1 if _best_is_high(study) else 1
    order = list(STATES)

    def place(trial: FrozenTrial) -> tuple[int, float, int]:
        value = sign * trial.value if trial.state == TrialState.COMPLETE and trial.value is not None else 0.0
        return order.index(trial.state), value, trial.number

    return sorted(study.get_trials(deepcopy=False), key=place)


def _best_is_high(study: optuna.Study) -> bool:
    return study.direction == optuna.study.StudyDirection.MAXIMIZE


def _searched(study: optuna.Study) -> tuple[str, list[str]]:
    own = study.user_attrs[IDENTITY]["sweep"]
    return own["metric"], list(own["space"])


def _rows(study: optuna.Study) -> tuple[list[str], list[list[str]]]:
    metric, keys = _searched(study)
    head = ["trial", metric, "ended", "at step", *keys, ""]
    rows = []
    for trial in ranked(study):
        at = max(trial.intermediate_values, default=None)
        last = "" if trial.state == TrialState.COMPLETE or at is None else str(at)
        rows.append(
            [
                str(trial.number),
                _number(trial.value if trial.state != TrialState.RUNNING else None),
                STATES[trial.state],
                last,
                *(_number(trial.params.get(key)) for key in keys),
                str(trial.user_attrs.get("error", "")),
            ]
        )
    return head, rows


def _number(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def print_table(study: optuna.Study) -> None:
    """Every trial on stdout, the best first."""
    head, rows = _rows(study)
    table = Table(box=box.SIMPLE_HEAD, caption=_sentence(study))
    for name in head:
        table.add_column(escape(name))
    for row in rows:
        table.add_row(*map(escape, row))
    console_of_stdout().print(table)


def _sentence(study: optuna.Study) -> str:
    states = [STATES[trial.state] for trial in study.get_trials(deepcopy=False)]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(STATES.values()) if state in states)
    return f"{counts or 'no trial yet'}; {'higher' if _best_is_high(study) else 'lower'} is better"


def write_page(study: optuna.Study, folder: Path) -> Path:
    """Writes DIR/sweep.html, one file that opens offline; returns its path."""
    path = folder / PAGE
    head, rows = _rows(study)
    cells = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>\n" for row in rows)
    page = (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>Sweep {html.escape(folder.name)}</title>\n'
        f"<style>{CSS}</style>\n<h1>Sweep {html.escape(folder.name)}</h1>\n<p>{html.escape(_sentence(study))}.</p>\n"
        f"{_best(study, folder)}{_plots(study)}<div><table><tr>{cells}</tr>\n{body}</table></div>\n</html>\n"
    )
    write_atomic(path, page.encode())
    return path


def _best(study: optuna.Study, folder: Path) -> str:
    best = next((trial for trial in ranked(study) if trial.state == TrialState.COMPLETE), None)
    if best is None:
        return ""
    words = html.escape(" ".join(setting(key, value) for key, value in best.params.items()))
    run = html.escape(str(trial_path(folder, best.number)))
    return f"<p>Best: trial {best.number} in {run}:<br><code>{words}</code></p>\n"


def _plots(study: optuna.Study) -> str:
    complete = [trial for trial in study.get_trials(deepcopy=False) if trial.state == TrialState.COMPLETE]
    metric, keys = _searched(study)
    high, plots = _best_is_high(study), ""
    if complete:
        plots += _figure("History", (7.5, 2.8), lambda axes: _history(axes, study, metric))
    if len(complete) > 1:
        plots += _figure(
            "Every trial by its settings", (7.5, 3.2), lambda axes: _parallel(axes, complete, keys, metric, high)
        )
    importance = _importances(study) if len({trial.value for trial in complete}) > 1 else {}
    if importance:
        title = f"Share of the variance of {metric} that goes with a setting (fANOVA)"
        plots += _figure(title, (7.5, 0.8 + 0.35 * len(importance)), lambda axes: _bars(axes, importance))
    return plots


def _importances(study: optuna.Study) -> dict[str, float]:
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


def _history(axes: Axes, study: optuna.Study, metric: str) -> None:
    """Values in the order of the trials' numbers, the best so far as a line; pruned ones where they stood."""
    trials = study.get_trials(deepcopy=False)
    done = [(t.number, t.value) for t in trials if t.state == TrialState.COMPLETE and t.value is not None]
    pruned = [(t.number, t.value) for t in trials if t.state == TrialState.PRUNED and t.value is not None]
    best = np.maximum if _best_is_high(study) else np.minimum
    numbers, values = zip(*done, strict=True)
    axes.step(numbers, best.accumulate(values), where="post", color=LINE, linewidth=1.2, label="best so far")
    axes.plot(numbers, values, "o", color=LINE, markersize=4, label="complete")
    if pruned:
        axes.plot(*zip(*pruned, strict=True), "x", color=INK, markersize=5, label="pruned, when it was")
    axes.set_xlabel("trial")
    axes.set_ylabel(metric)
    axes.locator_params(axis="x", integer=True)
    axes.legend(frameon=False, fontsize=7)


def _bars(axes: Axes, importance: dict[str, float]) -> None:
    names = list(importance)[::-1]
    axes.barh(names, [importance[name] for name in names], color=LINE, height=0.6)
    axes.set_xlim(0, 1)


def _parallel(axes: Axes, trials: Sequence[FrozenTrial], keys: Sequence[str], metric: str, best_is_high: bool) -> None:
    """A line for each complete trial through its settings to its value; better values are drawn stronger, and later."""
    columns = [[trial.params.get(key) for trial in trials] for key in keys]
    columns.append([trial.value for trial in trials])
    heights = np.array([_heights(column) for column in columns])
    merits = heights[-1] if best_is_high else 1 - heights[-1]
    for place in np.argsort(merits):
        axes.plot(heights[:, place], color=LINE, alpha=0.15 + 0.8 * float(merits[place]), linewidth=1.3)
    axes.set_xticks(range(len(columns)), [*keys, metric])
    axes.set_yticks([])
    for place, column in enumerate(columns):
        for height, word in {(h, _number(v)) for h, v in zip(heights[place], column, strict=True) if h in (0.0, 1.0)}:
            axes.annotate(word, (place, height), xytext=(4, 0), textcoords="offset points", fontsize=7, va="center")


def _heights(column: Sequence[Any]) -> list[float]:
    """Values on [0, 1]: numbers by size (in the logarithm where they span more than a decade), words by rank."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in column):
        low, high = min(column), max(column)
        scale: Callable[[float], float] = math.log if low > 0 and high > 10 * low else float
        span = scale(high) - scale(low)
        return [(scale(value) - scale(low)) / span if span else 0.5 for value in column]
    words = sorted({str(value) for value in column})
    return [words.index(str(value)) / max(1, len(words) - 1) for value in column]


def _figure(title: str, size: tuple[float, float], draw: Callable[[Axes], None]) -> str:
    """A plot as <svg>, which takes its text colour from the page."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
        buffer = io.StringIO()
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return f"<h2>{html.escape(title)}</h2>\n{text[text.index('<svg') :].replace(INK, 'currentColor')}\n"
