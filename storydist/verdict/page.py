"""The report: one HTML file that opens without a network and asks nothing of one."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment
from markupsafe import Markup

from storydist.data.index import read_info
from storydist.data.location import is_remote, local_folder
from storydist.verdict.assemble import grouped, ordered_floors, verdict
from storydist.verdict.curves import Series, chart, evaluation_series, training_series
from storydist.verdict.report import (
    FOOTER,
    LABELS,
    SENTENCES,
    arrow,
    evaluation_path,
    number,
    others_text,
    read_evaluation,
    read_metrics,
    standings,
)

TEMPLATE = Path(__file__).with_name("page.html")
HEADLINES = ("image L1", "spread", "text R@10", "condition gap", "character F1", "score R2")
KINDS = {"beats all floors": "good", "level": "fair", "beats constants": "fair", "no": "bad", "": ""}  # CSS classes
PICKS = {
    "random": ("Drawn at random", "by the seed, from all windows of the split"),
    "best": ("Best", "lowest image L1 of the split"),
    "worst": ("Worst", "highest image L1 of the split"),
}


def render_page(
    name: str,
    evaluation: Mapping[str, Any] | None,
    entries: Sequence[Mapping[str, Any]],
    *,
    settings: str,
    versions: Mapping[str, Any],
    data: Mapping[str, Any],
    goodput: str = "",
) -> str:
    """The page as text. `evaluation` None: curves only; `entries`: lines of metrics.jsonl.

    `settings`: the resolved configuration as YAML; `versions`, `data`: what is listed under these heads; `goodput`:
    where the time went, in a line. All of it is escaped. Raises ValueError if there is neither an evaluation nor a line
    of metrics.
    """
    if evaluation is None and not entries:
        raise ValueError(
            f"{name} has neither an evaluation nor metrics; train it, then: python launch/evaluate.py {name}"
        )
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": number}
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        name=name,
        evaluation=evaluation,
        headlines=[] if evaluation is None else _headlines(evaluation),
        standings=[] if evaluation is None else _standings(evaluation),
        tables=[] if evaluation is None else _tables(evaluation),
        curves=_curves(entries),
        examples=[] if evaluation is None else _grouped(evaluation.get("examples", [])),
        footer=FOOTER,
        settings=settings,
        versions=versions,
        data=data,
        goodput=goodput,
    )


def page_of_run(run: Path, split: str, goodput: str = "") -> tuple[str, bool]:
    """The page of a run from the files in its folder, and whether it was evaluated on that split. `goodput`: a line on
    where its time went.

    Raises FileNotFoundError if there is no such run, ValueError if it holds nothing to show or a file is damaged.
    """
    if not run.is_dir():
        raise FileNotFoundError(f"{run}: there is no such run")
    evaluated = evaluation_path(run, split).is_file()
    settings = run / "config.yaml"
    text = render_page(
        run.resolve().name,
        read_evaluation(run, split) if evaluated else None,
        read_metrics(run),
        settings=settings.read_text(encoding="utf-8") if settings.is_file() else "",
        versions=_flat(_read_json_object(run / "environment.json")),
        data=_data_summary(settings),
        goodput=goodput,
    )
    return text, evaluated


def _read_json_object(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found if isinstance(found, dict) else {}


def _flat(values: Mapping[str, Any]) -> dict[str, str]:
    """One level of names; lists joined, empty values left out."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value)
        elif value:
            flat[name.replace("_", " ")] = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return flat


def _data_summary(settings: Path) -> dict[str, str]:
    """What the run's shards hold; {} unless they lie on this machine where the settings say: a report can be made
    elsewhere, and asks nothing of a network.
    """
    values = yaml.safe_load(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    location = str(((values or {}).get("data") or {}).get("shards", ""))
    if is_remote(location) or not (local_folder(location) / "index.json").is_file():
        return {}
    info = read_info(local_folder(location))
    size = "as found" if info.height is None else f"{info.height} x {info.width}"
    summary = {name: f"{split.num_stories} stories, {split.num_frames} frames" for name, split in info.splits.items()}
    summary["frames"] = f"{info.frames}, {size}"
    summary["tokenizer"] = f"{info.tokenizer}, {info.vocabulary_size} wordpieces"
    summary["tags"] = f"{max(0, len(info.tag_vocabulary) - 2)} in the training split"
    if info.score is not None:
        summary["score"] = (
            f"{info.score.mean:.3g} ± {info.score.std:.3g}, {info.score.min:.3g} to {info.score.max:.3g}, "
            f"{info.score.count} training stories"
        )
    summary["fingerprint"] = info.fingerprint
    return summary


def _curves(entries: Sequence[Mapping[str, Any]]) -> list[tuple[str, bool, list[Markup]]]:
    """(title, whether it is open from the start, charts); empty groups are left out."""
    judged, trained = evaluation_series(entries), training_series(entries)
    main = [series for series in judged if series.name.partition(": ")[2] in HEADLINES]
    groups = [
        ("Loss while training", True, [series for series in trained if series.name.startswith("loss")]),
        ("Judged while training", True, main),
        ("Other metrics while training", False, [series for series in judged if series not in main]),
        ("Speed and optimizer", False, [series for series in trained if not series.name.startswith("loss")]),
    ]
    return [(title, opened, _charts(series)) for title, opened, series in groups if series]


def _charts(series: Sequence[Series]) -> list[Markup]:
    # Safe to insert as it is: matplotlib escapes every text it draws.
    return [Markup(chart(one)) for one in series]


def _tables(evaluation: Mapping[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """(title of a group of metrics, its rows)."""
    metrics = evaluation["metrics"]
    return [(title, [_row(name, metrics[name]) for name in names]) for title, names in grouped(metrics).items()]


def _row(name: str, metric: Mapping[str, Any]) -> dict[str, Any]:
    judged = verdict(metric)
    return {
        "name": name,
        "arrow": arrow(metric),
        "value": number(metric["value"]),
        "interval": metric.get("interval"),
        "strongest": [(number(value), floor) for floor, value in ordered_floors(metric)[:1]],
        "others": others_text(metric),
        "own": None if metric.get("reference") is None else number(metric["reference"]),
        "verdict": LABELS[judged],
        "kind": KINDS[judged],
        "about": f"{metric['about']} ({metric['unit']})",
    }


def _headlines(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The few figures by which a run is judged at a glance."""
    metrics = evaluation["metrics"]
    return [_row(name, metrics[name]) for name in HEADLINES if name in metrics]


def _standings(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The answer: in how many metrics every floor is beaten, and which ones are not."""
    found = standings(evaluation)
    return [
        {"kind": KINDS[judged], "text": SENTENCES.get(judged, "beats every floor"), "names": names, "size": len(names)}
        for judged, names in found.items()
    ]


def _grouped(examples: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, list[Mapping[str, Any]]]]:
    """(title, which windows these are, the windows)."""
    groups = [(*told, [e for e in examples if e["pick"] == pick]) for pick, told in PICKS.items()]
    return [group for group in groups if group[2]]
