"""The report: one HTML file that opens without a network and asks nothing of one."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment
from markupsafe import Markup

from storydist.data.index import read_info
from storydist.verdict.assemble import beats, verdict
from storydist.verdict.curves import Series, chart, evaluation_series, training_series
from storydist.verdict.report import (
    arrow,
    evaluation_path,
    figure,
    floors_text,
    number,
    read_evaluation,
    read_metrics,
)

TEMPLATE = Path(__file__).with_name("page.html")
HEADLINES = ("image L1", "spread", "text R@10", "condition gap", "character F1", "score R2")
PICKS = {"random": "Drawn at random", "best": "Best by image L1", "worst": "Worst by image L1"}


def render_page(
    name: str,
    evaluation: Mapping[str, Any] | None,
    entries: Sequence[Mapping[str, Any]],
    *,
    settings: str,
    versions: Mapping[str, Any],
    data: Mapping[str, Any],
) -> str:
    """The page as text. `evaluation` None: curves only; `entries`: lines of metrics.jsonl.

    `settings`: the resolved configuration as YAML; `versions`, `data`: what is listed under these heads. All of it is
    escaped. Raises ValueError if there is neither an evaluation nor a line of metrics.
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
        rows=[] if evaluation is None else _rows(evaluation),
        evaluation_curves=_charts(evaluation_series(entries)),
        training_curves=_charts(training_series(entries)),
        examples=[] if evaluation is None else _grouped(evaluation.get("examples", [])),
        settings=settings,
        versions=versions,
        data=data,
    )


def page_of_run(run: Path, split: str) -> tuple[str, bool]:
    """The page of a run from the files in its folder, and whether it was evaluated on that split.

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
    """What the run's shards hold; {} if they do not lie where the settings say: a report can be made elsewhere."""
    values = yaml.safe_load(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    shards = Path(str(((values or {}).get("data") or {}).get("shards", "")))
    if not (shards / "index.json").is_file():
        return {}
    info = read_info(shards)
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


def _charts(series: Sequence[Series]) -> list[Markup]:
    # Safe to insert as it is: matplotlib escapes every text it draws.
    return [Markup(chart(one)) for one in series]


def _rows(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "arrow": arrow(metric),
            "figure": figure(metric),
            "unit": metric["unit"],
            "floors": floors_text(metric),
            "verdict": verdict(metric),
            "about": metric["about"],
        }
        for name, metric in evaluation["metrics"].items()
    ]


def _headlines(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The few figures by which a run is judged at a glance."""
    found = []
    for name in HEADLINES:
        metric = evaluation["metrics"].get(name)
        if metric is not None:
            found.append(
                {
                    "name": name,
                    "figure": number(metric["value"]),
                    "floors": floors_text(metric),
                    "good": beats(metric, constant=True),
                }
            )
    return found


def _grouped(examples: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    groups = [(title, [e for e in examples if e["pick"] == pick]) for pick, title in PICKS.items()]
    return [(title, group) for title, group in groups if group]
