"""Story scores: what in a story they reward, in parts that are written down beside them.

A score is MEAN + tags + order + pixels + noise, clipped to [0, 10]. Each part has mean 0 over stories and about this
standard deviation: the noise alone is in nothing that a model sees.
"""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from shards.synthetic.plot import make_story, third
from shards.synthetic.state import StoryState

MEAN = 5.0
STD = {"tags": 0.75, "order": 1.4, "pixels": 0.6, "noise": 0.55}
# A story that goes from dark to bright scores high; the other way round it holds the same actions and scores low.
THIRD_WEIGHTS = (-1.0, 0.15, 1.0)
# Standard deviation of each part before scaling, measured over 20,000 stories; the means are 0 by symmetry.
RAW_STD = {"tags": 0.356, "order": 0.88, "pixels": 0.8175}
_UNSEEN = 1 << 40  # stories from this number on are in no data set


class ScoreParts(NamedTuple):
    """In score units; `total` has two decimals and lies in [0, 10]."""

    tags: float
    order: float
    pixels: float
    noise: float
    total: float


def score_story(story: StoryState) -> ScoreParts:
    """The parts and the score of a story."""
    raw = raw_parts(story)
    tags, order, pixels = (STD[name] * value / RAW_STD[name] for name, value in raw.items())
    noise = Random(f"{story.key}/noise").gauss(0, STD["noise"])
    return ScoreParts(tags, order, pixels, noise, _total(tags + order + pixels + noise))


def raw_parts(story: StoryState) -> dict[str, float]:
    """The parts before scaling.

    tags: mean valence of the actions. order: mean valence in each third, weighted. pixels: how the light changes.
    """
    valences = [frame.figures[0].action.valence for frame in story.frames]
    means = []
    for part in range(3):
        inside = [value for frame, value in enumerate(valences) if third(frame, len(valences)) == part]
        means.append(sum(inside) / len(inside))
    return {
        "tags": sum(valences) / len(valences),
        "order": sum(weight * mean for weight, mean in zip(THIRD_WEIGHTS, means, strict=True)),
        "pixels": story.brightening / 0.6 + story.warming / 0.7,
    }


def score_noise(seed: int, split: str, number: int) -> ScoreParts:
    """A score of the same distribution that depends on nothing in the story: it is another, unseen story's."""
    total = score_story(make_story(seed, split, _UNSEEN + number)).total
    return ScoreParts(0.0, 0.0, 0.0, total - MEAN, total)


def _total(deviation: float) -> float:
    return round(min(10.0, max(0.0, MEAN + deviation)), 2)
