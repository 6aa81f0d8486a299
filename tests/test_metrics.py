"""Metrics against slow plain versions; any split over batches and ranks gives one answer."""

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from sklearn.metrics import f1_score, r2_score

from storydist.verdict.assemble import MEANINGS
from storydist.verdict.metrics import (
    Mean,
    Moments,
    Rows,
    absolute_error,
    f1_counts,
    frame_descriptor,
    input_error,
    laplacian_variance,
    recall_at,
    retrieval_ranks,
)
from storydist.verdict.score_metrics import bootstrap_intervals, score_errors
from storydist.verdict.tally import Tally, merged
from storydist.verdict.text_metrics import cross_entropy_sum, derangement, distinct_ngrams, overlap, variety
from storydist.verdict.truth import Guess, Truth

GENERATOR = np.random.default_rng(0)


def pictures(*shape: int) -> torch.Tensor:
    return torch.from_numpy(GENERATOR.random(shape, dtype=np.float32))


def test_absolute_error_is_the_mean_over_pixels():
    predicted, target = pictures(3, 3, 4, 5), pictures(3, 3, 4, 5)
    plain = [
        np.mean([abs(float(a) - float(b)) for a, b in zip(p.flatten(), t.flatten(), strict=True)])
        for p, t in zip(predicted, target, strict=True)
    ]
    assert absolute_error(predicted, target).numpy() == pytest.approx(plain, rel=1e-6)
    with pytest.raises(ValueError, match="must be equal"):
        absolute_error(predicted, target[:, :, :2])


def test_input_error_is_the_error_of_each_input():
    inputs, target = pictures(3, 4, 3, 4, 5), pictures(3, 3, 4, 5)
    each = torch.stack([absolute_error(inputs[:, k], target) for k in range(4)], dim=1)
    assert torch.allclose(input_error(inputs, target), each)


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_spread_is_the_standard_deviation_in_any_split(offset):
    values = torch.from_numpy(GENERATOR.random((50, 3, 4, 5))) + offset
    expected = values.numpy().std(0).mean()
    for cuts in ([50], [1, 49], [7, 13, 30], [0, 25, 25]):
        ranks = []
        for part in values.split(cuts):
            ranks.append(Moments())
            ranks[-1].add(part)
        total = Moments()
        for rank in reversed(ranks):
            total.merge(rank)
        assert total.spread == pytest.approx(expected, rel=1e-6)
    assert Moments().spread is None


def test_constant_predictions_have_no_spread():
    moments = Moments()
    for _ in range(3):
        moments.add(torch.full((5, 3, 2, 2), 0.3))
    assert moments.spread == 0


def test_laplacian_variance_against_scipy():
    frames = pictures(2, 3, 9, 11)
    plain = [ndimage.laplace(f.mean(0).double().numpy())[1:-1, 1:-1].var() for f in frames]
    assert laplacian_variance(frames).numpy() == pytest.approx(plain, rel=1e-5)


def test_descriptor_averages_areas():
    frames = pictures(2, 3, 12, 24)
    plain = frames.reshape(2, 3, 6, 2, 12, 2).mean((3, 5)).flatten(1)
    assert torch.allclose(frame_descriptor(frames), plain, atol=1e-6)
    assert frame_descriptor(pictures(1, 3, 60, 125)).shape == (1, 216)


def plain_ranks(predicted, target):
    mean, ranks = target.mean(0), []
    for i, guess in enumerate(predicted - mean):
        cosines = [guess @ (t - mean) / np.linalg.norm(guess) / np.linalg.norm(t - mean) for t in target]
        ranks.append(sum(c >= cosines[i] for c in cosines))
    return ranks


def test_ranks_against_a_plain_loop():
    target = GENERATOR.normal(size=(40, 8)) + 5
    predicted = target + GENERATOR.normal(size=target.shape)
    ranks, size = retrieval_ranks(predicted, target, np.arange(40))
    assert ranks.tolist() == plain_ranks(predicted, target) and size == 40
    assert recall_at(ranks, 10) == np.mean([r <= 10 for r in ranks])


def test_equal_targets_stand_in_the_gallery_once():
    target = np.eye(6)[[0, 1, 1, 2, 3]]
    ranks, size = retrieval_ranks(target, target, np.array([10, 11, 11, 12, 13]))
    assert ranks.tolist() == [1] * 5 and size == 4


def test_a_prediction_that_says_nothing_ranks_last():
    target = np.eye(5)
    ranks, size = retrieval_ranks(np.tile(target.mean(0), (5, 1)), target, np.arange(5))
    assert ranks.tolist() == [size] * 5


def test_one_constant_prediction_earns_chance():
    target = GENERATOR.normal(size=(100, 8))
    ranks, _ = retrieval_ranks(np.tile(GENERATOR.normal(size=8), (100, 1)), target, np.arange(100))
    assert recall_at(ranks, 10) == pytest.approx(0.1)


def test_f1_is_micro_over_known_characters():
    predicted, present, mask = (torch.from_numpy(GENERATOR.random((20, 4)) < 0.5) for _ in range(3))
    mean = Mean()
    mean.add(*f1_counts(predicted[:7], present[:7], mask[:7]))
    mean.add(*f1_counts(predicted[7:], present[7:], mask[7:]))
    assert mean.value == pytest.approx(f1_score(present[mask].numpy(), predicted[mask].numpy()))


def test_nothing_counted_is_not_zero():
    assert Mean().value is None and Tally().figures() == {}


def test_cross_entropy_against_log_softmax():
    logits, target = torch.randn(5000, 7), torch.randint(0, 7, (5000,))
    plain = -torch.log_softmax(logits.double(), 1)[torch.arange(5000), target]
    assert torch.allclose(cross_entropy_sum(logits, target), plain, atol=1e-5)
    assert len(cross_entropy_sum(logits[:0], target[:0])) == 0
    with pytest.raises(ValueError, match="must be as many"):
        cross_entropy_sum(logits, target[1:])


def test_derangement_moves_every_valid_window_and_no_other():
    valid = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    for seed in range(20):
        order = derangement(valid, torch.Generator().manual_seed(seed))
        assert order is not None and sorted(order.tolist()) == list(range(6))
        assert [int(o) == i for i, o in enumerate(order)] == [v == 0 for v in valid.tolist()]
    assert derangement(torch.tensor([1.0, 0.0]), torch.Generator()) is None


def test_overlap_and_variety():
    texts = ["anna walks into the dark room .", "the tension rises in the old car ."]
    same = overlap(texts, texts)
    assert same["BLEU"] == pytest.approx(100) and same["ROUGE-L"] == 1
    assert overlap(["xyz", "abc"], texts) == {"BLEU": 0, "ROUGE-L": 0}
    assert distinct_ngrams(["a b a b"], 1) == 0.5 and distinct_ngrams(["a b a b"], 2) == pytest.approx(2 / 3)
    assert variety(texts)['stock phrase "the tension"'] == 0.5 and distinct_ngrams([], 2) == 0
    with pytest.raises(ValueError, match="as many"):
        overlap(texts, texts[:1])


def test_score_errors_against_libraries():
    true = GENERATOR.normal(size=30) * 3 + 50
    predicted = true + GENERATOR.normal(size=30)
    found = score_errors(predicted, true)
    assert found["score MAE"] == pytest.approx(np.abs(predicted - true).mean())
    assert found["score RMSE"] == pytest.approx(math.sqrt(((predicted - true) ** 2).mean()))
    assert found["score R2"] == pytest.approx(r2_score(true, predicted))
    assert found["score Pearson"] == pytest.approx(stats.pearsonr(predicted, true)[0])
    assert found["score Spearman"] == pytest.approx(stats.spearmanr(predicted, true)[0])


def test_undefined_score_metrics_are_none():
    constant = score_errors(np.full(5, 0.1), np.arange(5.0))
    assert constant["score Pearson"] is None and constant["score R2"] is not None
    assert score_errors(np.arange(5.0), np.full(5, 0.1))["score R2"] is None
    assert set(score_errors(np.ones(1), np.ones(1)).values()) == {None}
    assert set(bootstrap_intervals(np.ones(1), np.ones(1)).values()) == {None}


def test_bootstrap_is_seeded_and_holds_the_value():
    true = GENERATOR.normal(size=60)
    predicted = true + GENERATOR.normal(size=60)
    first, again = (bootstrap_intervals(predicted, true, resamples=200, seed=1) for _ in range(2))
    assert first == again and first != bootstrap_intervals(predicted, true, resamples=200, seed=2)
    for name, value in score_errors(predicted, true).items():
        interval = first[name]
        assert interval is not None and value is not None and interval[0] < value < interval[1]


def test_rows_come_out_in_one_order():
    rows, other = Rows(), Rows()
    rows.add({"story": np.array([2, 1]), "position": np.array([4, 5]), "x": np.array([24, 15])})
    other.add({"story": np.array([1]), "position": np.array([4]), "x": np.array([14])})
    rows.merge(other)
    assert rows.columns()["x"].tolist() == [14, 15, 24] and Rows().columns() == {}


def random_truth(num_windows: int, num_stories: int) -> tuple[Truth, Guess]:
    target, inputs = pictures(num_windows, 3, 12, 24), pictures(num_windows, 4, 3, 12, 24)
    inputs[::3, 1] = target[::3] + 0.01
    errors = input_error(inputs, target)
    flags = [torch.from_numpy(GENERATOR.random((num_windows, 3)) < 0.5) for _ in range(2)]
    rows = np.arange(num_windows)
    truth = Truth(
        story_M=rows // 3,
        position_M=4 + rows % 3,
        inputs_MKCHW=inputs,
        target_MCHW=target,
        input_error_MK=errors,
        near_M=(errors <= 0.06).any(1),
        frame_key_M=rows,
        text_key_M=rows // 2,
        input_texts_MK=[],
        target_texts_M=[],
        wordpieces_T=torch.zeros(num_windows, dtype=torch.int64),
        target_embedding_ME=pictures(num_windows, 5)[rows // 2],
        last_embedding_ME=pictures(num_windows, 5),
        characters_MKP=torch.zeros(num_windows, 4, 3, dtype=torch.bool),
        target_characters_MP=flags[0],
        character_mask_MP=torch.ones(num_windows, 3, dtype=torch.bool),
        story_B=np.arange(num_stories),
        score_B=np.where(np.arange(num_stories) == 1, np.nan, GENERATOR.random(num_stories)),
    )
    guess = Guess(
        frame_MCHW=pictures(num_windows, 3, 12, 24),
        embedding_ME=pictures(num_windows, 5),
        wordpiece_losses_T=pictures(num_windows).double(),  # one wordpiece a window
        shuffle_losses_T=pictures(num_windows).double(),
        characters_MP=flags[1],
        score_B=GENERATOR.random(num_stories),
        texts={m: f"text {m} of the tension" for m in range(num_windows)},
    )
    return truth, guess


def cut(thing, windows: slice, stories: slice):
    """The same Truth or Guess with only these windows and stories."""
    changed = {}
    for field in fields(thing):
        value, suffix = getattr(thing, field.name), field.name.rpartition("_")[2]
        if field.name == "texts":
            changed[field.name] = {m - windows.start: value[m] for m in range(windows.start, windows.stop)}
        else:
            changed[field.name] = value[stories if suffix == "B" else windows]
    return replace(thing, **changed)


def test_any_split_over_batches_and_ranks_gives_one_answer():
    truth, guess = random_truth(30, 10)
    references = {m: f"text {m} of the room" for m in range(30)}
    whole = Tally()
    whole.add(truth, guess, references)
    expected = whole.figures(resamples=50)
    assert expected["image L1, near copies"].value is not None
    assert expected.keys() == MEANINGS.keys()
    for size in (3, 12):
        ranks = [Tally(), Tally()]
        for number, start in enumerate(range(0, 30, size)):
            windows, stories = slice(start, min(30, start + size)), slice(start // 3, min(10, (start + size) // 3))
            part = {m - start: references[m] for m in range(windows.start, windows.stop)}
            ranks[number % 2].add(cut(truth, windows, stories), cut(guess, windows, stories), part)
        found = merged(reversed(ranks)).figures(resamples=50)
        assert found.keys() == expected.keys()
        for name, figure in expected.items():
            assert found[name].value == pytest.approx(figure.value, rel=1e-9), name
            assert (found[name].interval is None) == (figure.interval is None)
            assert figure.interval is None or found[name].interval == pytest.approx(figure.interval, rel=1e-9)


def test_near_copies_and_cuts_add_up_to_all():
    truth, guess = random_truth(30, 10)
    tally = Tally()
    tally.add(truth, guess)
    assert 0 < tally.l1_near.count < 30 and tally.l1_near.count + tally.l1_cut.count == tally.l1.count
    assert tally.l1_near.total + tally.l1_cut.total == pytest.approx(tally.l1.total)
