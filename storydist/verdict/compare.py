"""Runs side by side: metrics as rows, runs as columns, the best in bold."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.markup import escape
from rich.table import Table

from storydist.verdict.assemble import grouped, has_merit, merit
from storydist.verdict.report import arrow, number, strongest_text


class Row(NamedTuple):
    """One metric of all runs: formatted values, positions of the best, and the strongest floor in words."""

    metric: str
    values: list[str]
    best: set[int]
    floor: str


def compare(runs: Sequence[Path], evaluations: Sequence[Mapping[str, Any]]) -> tuple[list[Row], list[str]]:
    """Rows of all metrics that any run has, and warnings where runs were not judged on the same thing."""
    every = {name: metric for evaluation in evaluations for name, metric in evaluation["metrics"].items()}
    return [_row(name, evaluations) for names in grouped(every).values() for name in names], _warnings(
        runs, evaluations
    )


def _row(name: str, evaluations: Sequence[Mapping[str, Any]]) -> Row:
    found = [evaluation["metrics"].get(name) for evaluation in evaluations]
    merits = [None if m is None or m["value"] is None or not has_merit(m) else merit(m, m["value"]) for m in found]
    top = max((value for value in merits if value is not None), default=None)
    best = {i for i, value in enumerate(merits) if value is not None and value == top} if len(found) > 1 else set()
    metric = next(m for m in found if m is not None)
    return Row(
        f"{name} {arrow(metric)}",
        ["" if m is None else number(m["value"]) for m in found],
        best,
        strongest_text(metric),
    )


def _warnings(runs: Sequence[Path], evaluations: Sequence[Mapping[str, Any]]) -> list[str]:
    asked = {
        "split": "the runs were judged on different splits",
        "index_fingerprint": "the runs were judged on different shards",
        "num_windows": "the runs were judged on different numbers of windows",
    }
    found = []
    for key, complaint in asked.items():
        values = [str(evaluation.get(key)) for evaluation in evaluations]
        if len(set(values)) > 1:
            each = ", ".join(f"{run} {value[:12]}" for run, value in zip(runs, values, strict=True))
            found.append(f"{complaint}, their figures cannot be compared: {each}")
    return found


def column_names(runs: Sequence[Path]) -> list[str]:
    """Names of the runs' folders, or their paths where names alone would be ambiguous."""
    names = [run.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]


def comparison_table(runs: Sequence[Path], rows: Sequence[Row]) -> Table:
    """For a terminal."""
    table = Table(box=box.SIMPLE_HEAD, caption="* best; one training seed each")
    table.add_column("metric", no_wrap=True)
    for name in column_names(runs):
        table.add_column(escape(name), justify="right")
    table.add_column("strongest floor")
    for row in rows:
        values = (f"[bold]{v}*[/]" if i in row.best else f"{v} " for i, v in enumerate(row.values))
        table.add_row(row.metric, *values, row.floor)
    return table


def comparison_html(runs: Sequence[Path], rows: Sequence[Row], warnings: Sequence[str]) -> str:
    """The same as one page that needs nothing else."""
    head = "".join(f"<th>{html.escape(text)}</th>" for text in ("metric", *column_names(runs), "strongest floor"))
    body = "".join(f"<tr>{_cells(row)}</tr>\n" for row in rows)
    notes = "".join(f"<p><strong>{html.escape(warning)}</strong></p>\n" for warning in warnings)
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>Runs side by side</title>\n'
        "<style>:root{color-scheme:light dark}"
        "body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:3rem auto;padding:0 1rem}"
        "table{border-collapse:collapse}td,th{padding:.3rem .8rem;text-align:left;border-bottom:1px solid #8884}"
        "td{font-variant-numeric:tabular-nums}div{overflow-x:auto}</style>\n"
        f"<h1>Runs side by side</h1>\n{notes}<div><table><tr>{head}</tr>\n{body}</table></div>\n"
        "<p>Best in bold; one training seed each.</p></html>\n"
    )


def _cells(row: Row) -> str:
    values = [
        f"<strong>{html.escape(v)}</strong>" if i in row.best else html.escape(v) for i, v in enumerate(row.values)
    ]
    return "".join(f"<td>{cell}</td>" for cell in (html.escape(row.metric), *values, html.escape(row.floor)))
