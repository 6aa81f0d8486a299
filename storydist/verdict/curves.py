"""Curves of a run as inline SVG: small charts, one per figure, that take their text colour from the page."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from storydist.verdict.assemble import MEANINGS
from storydist.verdict.baselines import ORACLE
from storydist.verdict.report import number

INK = "#010203"  # stands for the page's own text colour and is replaced by it
LINE = "#3b7dd8"
FLOOR_COLOURS = ("#d0651f", "#9a6fb0")
MAX_FLOORS = len(FLOOR_COLOURS)  # more lines would hide the curve, and weak floors would flatten it
UNTOLD = ("step", "samples_seen")  # a straight line tells nothing
MAX_POINTS = 500  # more than a small chart can show
SIZE_INCHES = (3.1, 2.1)
STYLE: Any = {
    "font.size": 8,
    "font.family": "sans-serif",
    "svg.fonttype": "none",
    "svg.hashsalt": "storydist",
    "text.parse_math": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
}
_GROUP_ID = re.compile(r' id="[\w.]+_\d+"')


class Series(NamedTuple):
    """One chart: values over steps, and floors as level lines {name: value}."""

    name: str
    steps: list[int]
    values: list[float]
    floors: dict[str, float]


def training_series(entries: Sequence[Mapping[str, Any]]) -> list[Series]:
    """Every number of the "train" lines of metrics.jsonl, losses first."""
    lines = [entry for entry in entries if entry["kind"] == "train"]
    names = dict.fromkeys(
        name for line in lines for name, value in line.items() if name not in UNTOLD and _is_number(value)
    )
    ordered = sorted(names, key=lambda name: (not name.startswith("loss"), list(names).index(name)))
    return [_series(name, [(line["step"], line.get(name)) for line in lines], {}) for name in ordered]


def evaluation_series(entries: Sequence[Mapping[str, Any]]) -> list[Series]:
    """Every metric of the "evaluation" lines, with the floors of the last one; split by split."""
    lines = [entry for entry in entries if entry["kind"] == "evaluation"]
    found = []
    for split in dict.fromkeys(str(line.get("split")) for line in lines):
        mine = [line for line in lines if str(line.get("split")) == split]
        for name in dict.fromkeys(name for line in mine for name in line["metrics"]):
            told = [(line["step"], line["metrics"].get(name, {})) for line in mine]
            floors = _strongest(name, told[-1][1].get("floors", {}))
            found.append(_series(f"{split}: {name}", [(step, metric.get("value")) for step, metric in told], floors))
    return [series for series in found if series.values]


def _strongest(name: str, floors: Mapping[str, Any]) -> dict[str, float]:
    """The floors worth a line: the hardest to beat, then oracles; as they come where a metric has no better end."""
    real = [(floor, value) for floor, value in floors.items() if _is_number(value)]
    if name in MEANINGS and MEANINGS[name].better != "closest":
        sign = -1 if MEANINGS[name].better == "higher" else 1
        real.sort(key=lambda item: (item[0].endswith(ORACLE), sign * item[1]))
    return dict(real[:MAX_FLOORS])


def _series(name: str, points: Sequence[tuple[int, Any]], floors: dict[str, float]) -> Series:
    real = [(step, float(value)) for step, value in points if _is_number(value)]
    real = real[:: max(1, len(real) // MAX_POINTS)]
    return Series(name, [step for step, _ in real], [value for _, value in real], floors)


def _is_number(value: object) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and value == value and abs(value) != float("inf")
    )


def chart(series: Series) -> str:
    """An <svg> element; the same series gives the same text."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=SIZE_INCHES, layout="constrained")
        axes = figure.add_subplot()
        axes.plot(
            series.steps, series.values, color=LINE, linewidth=1.4, marker="." if len(series.values) < 12 else None
        )
        for (name, value), colour in zip(series.floors.items(), FLOOR_COLOURS, strict=False):
            axes.axhline(value, color=colour, linewidth=0.9, linestyle="--", label=f"{name} {number(value)}")
        if series.floors:
            # Above the axes, where it hides no point.
            axes.legend(frameon=False, fontsize=7, loc="lower left", bbox_to_anchor=(-0.02, 0.98), borderaxespad=0)
        axes.set_title(series.name.replace("_", " "), loc="left", fontsize=9, pad=26 if series.floors else 6)
        axes.set_xlabel("step", fontsize=7.5)
        axes.locator_params(axis="x", nbins=5, integer=True)
        axes.locator_params(axis="y", nbins=5)
        axes.grid(color="#8888", linewidth=0.3)
        buffer = io.StringIO()
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    # Without the XML prologue it can stand in a page; ids of groups would repeat from chart to chart.
    return _GROUP_ID.sub("", text[text.index("<svg") :]).replace(INK, "currentColor")
