"""Figures of model and floors -> the metrics of an Evaluation, each with unit, direction and a line of explanation."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from storydist.verdict.baselines import (
    CHANCE,
    CONSTANT_FLOORS,
    COPY_LAST,
    IGNORES_INPUT,
    ORACLE,
    RANDOM_TEXT,
    RETRIEVAL,
)
from storydist.verdict.metrics import DESCRIPTOR_SIZE, NEAR_COPY_L1
from storydist.verdict.tally import RECALLS, Tally
from storydist.verdict.text_metrics import STOCK_PHRASE, variety

STOCK = f'stock phrase "{STOCK_PHRASE}"'
_CELLS = f"{DESCRIPTOR_SIZE[0]} x {DESCRIPTOR_SIZE[1]} colour cells"


class Meaning(NamedTuple):
    """What a metric is. better: lower, higher or closest (to the targets' own figure)."""

    unit: str
    better: str
    about: str


MEANINGS = {
    "image L1": Meaning("pixel range 0-1", "lower", "mean absolute pixel error of the predicted frame"),
    "image L1, near copies": Meaning(
        "pixel range 0-1", "lower", f"on windows where some input is within L1 {NEAR_COPY_L1} of the target"
    ),
    "image L1, cuts": Meaning("pixel range 0-1", "lower", "on all other windows"),
    "spread": Meaning(
        "pixel range 0-1",
        "closest",
        "standard deviation of predictions over windows, mean over pixels; 0: one constant image",
    ),
    "frame R@1": Meaning(
        "share", "higher", f"true frame ranked first among all targets, by cosine of {_CELLS}, centred"
    ),
    "frame R@10": Meaning(
        "share", "higher", f"true frame among the first ten of all targets, by cosine of {_CELLS}, centred"
    ),
    "frame median rank": Meaning("rank", "lower", "median rank of the true frame among all targets"),
    "sharpness": Meaning("ratio", "closest", "variance of the Laplacian over the targets'"),
    "character F1": Meaning("share", "higher", "micro F1: which of the story's characters appear in the next frame"),
    "text R@1": Meaning(
        "share", "higher", "true description ranked first among all targets, by cosine of frozen embeddings, centred"
    ),
    "text R@10": Meaning("share", "higher", "true description among the first ten of all targets"),
    "text median rank": Meaning("rank", "lower", "median rank of the true description among all targets"),
    "text CE": Meaning(
        "nats per wordpiece", "lower", "cross entropy of the next description, teacher forced, padding left out"
    ),
    "perplexity": Meaning("wordpieces", "lower", "exp of the text CE"),
    "condition gap": Meaning(
        "nats per wordpiece", "higher", "CE with conditions exchanged between windows minus CE with the true ones"
    ),
    "BLEU": Meaning("0-100", "higher", "corpus BLEU (sacrebleu) of descriptions drawn by nucleus sampling"),
    "ROUGE-L": Meaning("share", "higher", "mean longest-common-subsequence F1 of the same descriptions"),
    "distinct-1": Meaning("share", "closest", "distinct words over all words in the generated descriptions"),
    "distinct-2": Meaning("share", "closest", "distinct pairs of words over all pairs"),
    STOCK: Meaning("share", "closest", "generated descriptions that contain the stock phrase"),
    "score MAE": Meaning("score", "lower", "mean absolute error of the story score"),
    "score RMSE": Meaning("score", "lower", "root mean squared error of the story score"),
    "score R2": Meaning("share", "higher", "share of the score's variance explained"),
    "score Pearson": Meaning("correlation", "higher", "linear correlation of predicted and true score"),
    "score Spearman": Meaning("correlation", "higher", "rank correlation of predicted and true score"),
}
# Title of a group and the first of its metrics; a group ends where the next one begins.
_GROUPS = {
    "image L1": "Next frame",
    "text R@1": "Next description",
    "BLEU": "Generated text",
    "score MAE": "Story score",
}
_SUBSETS = {"image L1, near copies": "near", "image L1, cuts": "cut"}
# Real frames are as varied and sharp as the targets, real descriptions as rich in words: repeating them is no floor.
_REAL_TEXTS = (COPY_LAST, RETRIEVAL, RANDOM_TEXT)
_NOT_A_FLOOR = {
    **dict.fromkeys(("spread", "sharpness"), (COPY_LAST, ORACLE)),
    **dict.fromkeys(("distinct-1", "distinct-2", STOCK), _REAL_TEXTS),
}


def assemble(
    model: Tally, floors: Mapping[str, Mapping[str, float | None]], *, resamples: int, seed: int
) -> dict[str, dict[str, Any]]:
    """{metric: {"value", "unit", "better", "floors", "reference", "subset", "interval", "about"}}, ordered as MEANINGS.

    `floors`: {floor: {metric: value}}. A metric that the model has no figure for, or that is undefined
    (a correlation with a constant), is left out.
    """
    figures = model.figures(resamples=resamples, seed=seed)
    chances, references = _chances(model), _references(model)
    metrics = {}
    for name, meaning in MEANINGS.items():
        if name not in figures or figures[name].value is None:
            continue
        beside = {
            floor: values[name]
            for floor, values in floors.items()
            if _is_floor(name, floor) and values.get(name) is not None
        }
        interval = figures[name].interval
        metrics[name] = {
            "value": figures[name].value,
            "unit": meaning.unit,
            "better": meaning.better,
            "floors": chances.get(name, {}) | beside,
            "reference": references.get(name),
            "subset": _SUBSETS.get(name, "all"),
            "interval": None if interval is None else list(interval),
            "about": meaning.about,
        }
    return metrics


def _is_floor(metric: str, floor: str) -> bool:
    return not any(floor.endswith(ending) for ending in _NOT_A_FLOOR.get(metric, ()))


def _chances(model: Tally) -> dict[str, dict[str, float | None]]:
    """What guessing earns, which follows from the number of distinct targets alone."""
    chances: dict[str, dict[str, float | None]] = {"condition gap": {IGNORES_INPUT: 0.0}}
    for what in ("frame", "text"):
        size = model.gallery_size(what)
        if size:
            chances |= {f"{what} R@{k}": {CHANCE: min(1.0, k / size)} for k in RECALLS}
            chances[f"{what} median rank"] = {CHANCE: (size + 1) / 2}
    return chances


def _references(model: Tally) -> dict[str, float]:
    """The targets' own figures."""
    texts = model.reference_texts()
    spread = {} if model.targets.spread is None else {"spread": model.targets.spread}
    return spread | {"sharpness": 1.0} | (variety(texts) if texts else {})


def grouped(metrics: Mapping[str, Any]) -> dict[str, list[str]]:
    """{title of a group: names of its metrics}, ordered as MEANINGS; names that are unknown here come last."""
    titles, title = {}, ""
    for name in MEANINGS:
        title = _GROUPS.get(name, title)
        titles[name] = title
    groups: dict[str, list[str]] = {}
    for name in [*(known for known in MEANINGS if known in metrics), *(n for n in metrics if n not in MEANINGS)]:
        groups.setdefault(titles.get(name, "Other"), []).append(name)
    return groups


def ordered_floors(metric: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Floors with a figure, hardest to beat first. Oracles are none; see `oracles`."""
    floors = [(name, value) for name, value in _told(metric) if not name.endswith(ORACLE)]
    return sorted(floors, key=lambda floor: -merit(metric, floor[1])) if has_merit(metric) else floors


def oracles(metric: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Predictors that peek at the target: bounds."""
    return [(name, value) for name, value in _told(metric) if name.endswith(ORACLE)]


def _told(metric: Mapping[str, Any]) -> list[tuple[str, float]]:
    return [(name, value) for name, value in metric["floors"].items() if value is not None]


def has_merit(metric: Mapping[str, Any]) -> bool:
    """Whether values of this metric can be ordered: with "closest" only where the reference is known."""
    return metric["better"] != "closest" or metric["reference"] is not None


def merit(metric: Mapping[str, Any], value: float) -> float:
    """A value of this metric turned so that more is better."""
    if metric["better"] == "closest":
        return -abs(value - metric["reference"])
    return value if metric["better"] == "higher" else -value


def choice_merit(metrics: Mapping[str, Any], name: str) -> float | None:
    """By which figure checkpoints are told apart, more being better; None where it is undefined or not finite.

    Raises ValueError for a name that is no metric, and for one that has no better end: predictions as varied as the
    targets may still all be wrong.
    """
    choosable = [known for known, meaning in MEANINGS.items() if meaning.better != "closest"]
    if name not in choosable:
        why = "only has to come close to the targets' own figure" if name in MEANINGS else "is no metric"
        raise ValueError(f"{name!r} cannot choose the best checkpoint, because it {why}; use {', '.join(choosable)}")
    value = metrics[name]["value"] if name in metrics else None
    return merit(metrics[name], value) if value is not None and math.isfinite(value) else None


def beats(metric: Mapping[str, Any], *, constant: bool) -> bool | None:
    """Whether the model is strictly better than every floor; with `constant`, than every constant one.

    None if there is nothing to compare. Oracles are not floors. With "closest", nearer to the reference is better.
    """
    floors = [value for name, value in ordered_floors(metric) if not constant or name in CONSTANT_FLOORS]
    if metric["value"] is None or not floors or not has_merit(metric):
        return None
    return all(merit(metric, metric["value"]) > merit(metric, value) for value in floors)


def verdict(metric: Mapping[str, Any]) -> str:
    """How the model stands: "beats all floors", "level", "beats constants", "no", or "" where there is no floor.

    Level: the strongest floor lies within the model's interval, so that neither is shown to be better. Beats constants:
    but not the floors that were fitted.
    """
    constant, every = beats(metric, constant=True), beats(metric, constant=False)
    if every is None:
        return ""
    interval = metric.get("interval")
    if interval and interval[0] <= ordered_floors(metric)[0][1] <= interval[1]:
        return "level"
    if every:
        return "beats all floors"
    return "beats constants" if constant else "no"
