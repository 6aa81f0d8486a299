"""Score floors: tags only, training split only."""

from typing import Any

import numpy as np
import pytest

from storydist.data.frame_runs import SampleReader
from storydist.verdict.score_baselines import (
    BAG,
    BINS,
    SHUFFLED,
    TRAIN_MEAN,
    ridge_prediction,
    score_floors,
    tag_features,
)
from storydist.verdict.score_metrics import score_errors
from storydist.verdict.windows import texts_and_tags
from tests.small_runs import data_config
from tests.tiny_shards import write_shards


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"), train=120, test=30)


def test_counts_fall_into_their_bins(index):
    stories = list(index.split("train"))[:5]
    features = tag_features(index, stories, data_config(index), 6)
    for row, sample in zip(features, texts_and_tags(SampleReader(index, data_config(index)), stories), strict=True):
        assert sample is not None
        plain = np.zeros((4, 6))
        for frame, tag, _ in sample.tags:
            plain[0, tag] += 1
            if frame >= 0:
                plain[1 + frame * 3 // len(sample.lengths), tag] += 1
        assert row[:, :-1].tolist() == plain.tolist()
        assert row[0, -1] == len(sample.lengths) == row[1:, -1].sum()


def test_only_the_order_tells_so_only_bins_know(index):
    floors = score_floors(index, "test", data_config(index), seed=0)
    stories = index.split("test")
    true = index.stories[stories.start : stories.stop]["score"].astype(float)
    r2: dict[str, Any] = {name: score_errors(predicted, true)["score R2"] for name, predicted in floors.items()}
    assert r2[BINS] > 0.9
    assert r2[TRAIN_MEAN] <= 0 and r2[BAG] < 0.1 and r2[SHUFFLED] < 0.2


def test_training_mean_is_of_the_training_split(index):
    floors = score_floors(index, "test", data_config(index), seed=0)
    train = index.split("train")
    assert floors[TRAIN_MEAN] == pytest.approx(np.full(30, index.stories[train.start : train.stop]["score"].mean()))


def test_ridge_chooses_the_better_reading():
    generator = np.random.default_rng(0)
    useless, useful = generator.normal(size=(60, 3)), generator.normal(size=(60, 3))
    target = useful @ [1.0, -2.0, 3.0]
    found = ridge_prediction([useless[:40], useful[:40]], target[:40], [useless[40:], useful[40:]])
    assert found == pytest.approx(target[40:], abs=0.05)


def test_no_scores_no_floors(tmp_path):
    index = write_shards(tmp_path, scored=False)
    assert score_floors(index, "test", data_config(index), seed=0) == {}


def test_too_few_stories_for_a_regression(tmp_path):
    index = write_shards(tmp_path, train=5)
    assert list(score_floors(index, "test", data_config(index), seed=0)) == [TRAIN_MEAN]
