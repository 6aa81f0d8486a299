"""Floors: fitted on training data alone, judged like a model."""

from typing import Any

import numpy as np
import pytest
import torch

from storydist.data.frame_runs import SampleReader
from storydist.data.settings import DataConfig
from storydist.data.stream import evaluation_batches
from storydist.verdict.baselines import (
    COPY_LAST,
    fit_floors,
    fit_texts,
    floor_guesses,
    floor_texts,
    nearest,
    target_images,
)
from storydist.verdict.metrics import absolute_error
from storydist.verdict.tally import Tally
from storydist.verdict.truth import truth_of
from tests.tiny_shards import write_shards

CPU = torch.device("cpu")


def count_words(wordpieces_NL: torch.Tensor) -> torch.Tensor:
    """A frozen embedding for tests: how often each wordpiece occurs."""
    return torch.nn.functional.one_hot(wordpieces_NL, 128).sum(1).float()[:, 5:]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    index = write_shards(tmp_path_factory.mktemp("shards"))
    return index, DataConfig(shards=str(index.root))


@pytest.fixture(scope="module")
def fitted(shards):
    return fit_floors(shards[0], "test", shards[1], count_words, device=CPU, seed=0)


@pytest.fixture(scope="module")
def truths(shards):
    return [truth_of(batch, count_words) for batch in evaluation_batches(shards[0], "test", shards[1], batch_stories=4)]


def training_targets(index, data):
    runs = [SampleReader(index, data).read(story) for story in index.split("train")]
    texts = [np.split(run.wordpieces, np.cumsum(run.lengths)[:-1]) for run in runs]
    return [(run.frames[s], text[s]) for run, text in zip(runs, texts, strict=True) for s in range(4, len(run.frames))]


def test_images_are_those_of_the_training_targets(shards):
    median, mean = target_images(shards[0], shards[1], 0)
    frames = np.stack([frame for frame, _ in training_targets(*shards)]) / 255
    assert median == pytest.approx(np.median(frames, 0).transpose(2, 0, 1), abs=1e-6)
    assert mean == pytest.approx(frames.mean(0).transpose(2, 0, 1), abs=1e-6)


def test_large_frames_are_sampled(shards, monkeypatch):
    monkeypatch.setattr("storydist.verdict.baselines.MAX_IMAGE_BYTES", 12 * 24 * 3 * 2)
    median, mean = target_images(shards[0], shards[1], 0)
    assert median == pytest.approx(mean, abs=1e-6)  # of two pictures
    assert not np.allclose(median, target_images(shards[0], shards[1], 1)[0])


def test_unigram_counts_training_targets_and_nothing_else(shards):
    index, data = shards
    text = fit_texts(index, data, count_words, device=CPU, seed=0)
    counts = np.ones(shards[0].info.vocabulary_size)
    for _, wordpieces in training_targets(*shards):
        np.add.at(counts, [*wordpieces, 3], 1)  # [SEP] is 3
    assert text.unigram_V == pytest.approx(-np.log(counts / counts.sum()))
    assert np.exp(-text.unigram_V).sum() == pytest.approx(1)


def test_every_floor_speaks_and_is_judged(fitted, truths):
    tallies: dict[str, Tally] = {}
    for truth in truths:
        for name, guess in floor_guesses(truth, fitted).items():
            tallies.setdefault(name, Tally()).add(truth, guess)
    figures: dict[str, Any] = {
        name: {m: f.value for m, f in tally.figures().items()} for name, tally in tallies.items()
    }
    assert figures["best of 4 inputs (oracle)"]["image L1"] <= figures[COPY_LAST]["image L1"]
    assert figures["median image"]["spread"] == pytest.approx(0, abs=1e-7)
    assert figures[COPY_LAST]["image L1, near copies"] < 0.06 < figures["median image"]["image L1, near copies"]
    assert figures["uniform"]["text CE"] == pytest.approx(np.log(len(fitted.text.unigram_V)))
    assert figures["unigram"]["text CE"] < figures["uniform"]["text CE"]
    assert figures["train mean"]["score R2"] <= 0 and figures["train mean"]["score Pearson"] is None
    assert {"retrieval", "any seen", "same as frame 3", "same as frame 4", "in at least two of 4"} <= figures.keys()


def test_character_floors_follow_their_rule(fitted, truths):
    truth = truths[0]
    guesses: dict[str, Any] = floor_guesses(truth, fitted)
    for m, seen in enumerate(truth.characters_MKP.tolist()):
        for p in range(3):
            column = [frame[p] for frame in seen]
            assert guesses["same as frame 4"].characters_MP[m, p] == column[3]
            assert guesses["same as frame 3"].characters_MP[m, p] == column[2]
            assert guesses["any seen"].characters_MP[m, p] == any(column)
            assert guesses["in at least two of 4"].characters_MP[m, p] == (sum(column) >= 2)


def test_oracle_takes_the_closest_input(fitted, truths):
    guesses: dict[str, Any] = floor_guesses(truths[0], fitted)
    frames = guesses["best of 4 inputs (oracle)"].frame_MCHW
    assert torch.equal(absolute_error(frames, truths[0].target_MCHW), truths[0].input_error_MK.amin(1))


def test_nearest_finds_itself():
    bank = np.random.default_rng(0).normal(size=(30, 6)) + 3
    assert nearest(bank[[4, 17]] * 1.0, bank).tolist() == [4, 17]


def test_text_floors_say_training_texts_whatever_the_batch(shards, fitted, truths):
    def spell(ids: list[int]) -> str:
        return " ".join(map(str, ids))

    training = {spell(text.tolist()) for text in fitted.text.texts_Q}
    said: dict[tuple[int, int], str] = {}
    for size in (1, 4):
        for batch in evaluation_batches(shards[0], "test", shards[1], batch_stories=size):
            truth = truth_of(batch, count_words)
            floors: dict[str, Any] = floor_texts(truth, fitted.text, spell, seed=0)
            for m, place in enumerate(zip(truth.story_M.tolist(), truth.position_M.tolist(), strict=True)):
                assert (
                    said.setdefault(place, floors["random description"].texts[m])
                    == floors["random description"].texts[m]
                )
                assert (
                    floors["retrieval"].texts[m] in training
                    and floors["most frequent description"].texts[m] in training
                )
                assert floors[COPY_LAST].texts[m] == spell(truth.input_texts_MK[m][-1].tolist())


def test_shards_without_training_windows_are_refused(tmp_path):
    index = write_shards(tmp_path, train=1, test=2)  # the first story is too short
    with pytest.raises(ValueError, match="no training story has more than 4 frames"):
        fit_floors(index, "test", DataConfig(shards=str(tmp_path)), count_words, device=CPU, seed=0)
