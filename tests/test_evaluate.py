"""A small model judged on small shards."""

import json
import threading
from typing import Any

import pytest
import torch

from storydist.data.settings import DataConfig
from storydist.model import HEADS, ModelConfig, StoryModel, data_facts
from storydist.verdict.assemble import MEANINGS, beats, verdict
from storydist.verdict.evaluate import evaluate
from storydist.verdict.predict import predict, summary, write_predictions
from storydist.verdict.settings import EvaluationConfig, with_overrides
from tests.tiny_shards import write_shards

CPU = torch.device("cpu")
CONFIG = EvaluationConfig(batch_stories=2, generate_windows=5, num_examples=2, resamples=20)
TINY = ModelConfig(
    width=16, frame_channels=(8, 8), latent_width=8, text_embedding=8, text_hidden=8, text_target_width=32, tag_width=4
)


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    index = write_shards(tmp_path_factory.mktemp("shards"))
    data = DataConfig(shards=str(index.root), max_wordpieces=12)
    torch.manual_seed(0)
    return StoryModel(TINY, HEADS, data_facts(index, data)).eval(), index, data


@pytest.fixture(scope="module")
def evaluation(setting):
    model, index, data = setting
    return evaluate(model, index, "test", data=data, config=CONFIG, device=CPU, step=7)


def test_every_metric_is_beside_a_floor(evaluation):
    assert evaluation["metrics"].keys() == MEANINGS.keys()
    assert json.loads(json.dumps(evaluation, allow_nan=False)) == evaluation
    for name, metric in evaluation["metrics"].items():
        assert metric["floors"], name
        assert metric["better"] != "closest" or metric["reference"] is not None, name
        assert (metric["interval"] is None) == (not name.startswith("score")), name
    assert evaluation["step"] == 7 and evaluation["num_stories"] == 6
    assert evaluation["metrics"]["text R@10"]["floors"]["chance"] == pytest.approx(10 / evaluation["num_windows"])


@pytest.mark.parametrize("world_size", [2, 3, 4, 5, 6, 7, 8])
def test_all_ranks_together_judge_as_one(setting, evaluation, world_size):
    """Ranks are threads; six stories in batches of two leave most of them without a story at the end."""
    model, index, data = setting
    barrier = threading.Barrier(world_size)
    slots: list[Any] = [None] * world_size
    results: list[Any] = [None] * world_size
    num_between = 0

    def run(rank: int) -> None:
        def gather(value):
            slots[rank] = value
            barrier.wait(60)
            everyone = list(slots)
            barrier.wait(60)
            return everyone

        def between():
            nonlocal num_between
            assert gather("between") == ["between"] * world_size
            num_between += rank == 0

        results[rank] = evaluate(
            model,
            index,
            "test",
            data=data,
            config=CONFIG,
            device=CPU,
            rank=rank,
            world_size=world_size,
            gather=gather,
            between=between,
        )

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert num_between > 2
    assert all(result == results[0] for result in results)
    for name, metric in evaluation["metrics"].items():
        found = results[0]["metrics"][name]
        assert found["value"] == pytest.approx(metric["value"], rel=1e-6, abs=1e-7), name
        assert found["floors"] == pytest.approx(metric["floors"], rel=1e-6, abs=1e-7), name


def test_heads_that_are_off_are_left_out(setting):
    _, index, data = setting
    model = StoryModel(TINY, {"next_frame"}, data_facts(index, data)).eval()
    found = evaluate(model, index, "test", data=data, config=CONFIG, device=CPU)
    assert set(found["metrics"]) == {name for name in MEANINGS if name.startswith(("image", "frame"))} | {
        "spread",
        "sharpness",
    }
    assert found["examples"][0]["generated_text"] is None and found["examples"][0]["score_predicted"] is None


def test_kept_floors_are_used_while_they_fit(setting, evaluation, tmp_path, monkeypatch):
    model, index, data = setting
    path = tmp_path / "floors-test.json"
    first = evaluate(model, index, "test", data=data, config=CONFIG, device=CPU, step=7, floors_path=path)
    assert first == evaluation and path.exists()
    monkeypatch.setattr("storydist.verdict.evaluate.fit_floors", lambda *a, **k: pytest.fail("fitted again"))
    assert evaluate(model, index, "test", data=data, config=CONFIG, device=CPU, step=7, floors_path=path) == evaluation
    other = CONFIG.model_copy(update={"seed": 1})
    with pytest.raises(pytest.fail.Exception, match="fitted again"):
        evaluate(model, index, "test", data=data, config=other, device=CPU, floors_path=path)


def test_the_wrong_target_text_is_noticed(setting):
    _, index, data = setting
    model = StoryModel(TINY, HEADS, data_facts(index, data)).eval()
    forward = model.forward

    def shifted(batch, **options):
        # The known defect: the description of the last input instead of the one after it.
        batch.target_M, batch.target_lengths_M = batch.windows_MK[:, -1], batch.lengths_N[batch.windows_MK[:, -1]]
        return forward(batch, **options)

    model.forward = shifted  # type: ignore[method-assign, assignment]
    with pytest.raises(ValueError, match="scored on"):
        evaluate(model, index, "test", data=data, config=CONFIG, device=CPU)


def test_a_split_that_cannot_be_judged(setting, tmp_path):
    model, index, data = setting
    with pytest.raises(ValueError, match=r"no split 'dev'; it has train, test"):
        evaluate(model, index, "dev", data=data, config=CONFIG, device=CPU)
    short = write_shards(tmp_path, test=1)
    with pytest.raises(ValueError, match="no story of more than 4 frames"):
        evaluate(model, short, "test", data=data, config=CONFIG, device=CPU)


def test_overrides_are_checked():
    assert with_overrides(CONFIG, {"batch_stories": 3, "seed": None}).batch_stories == 3
    with pytest.raises(ValueError, match=r"--batch-stories: .* found 0"):
        with_overrides(CONFIG, {"batch_stories": 0})


def metric(value, better, floors, reference=None):
    return {"value": value, "better": better, "floors": floors, "reference": reference}


def test_verdict_counts_no_oracle_and_no_tie():
    assert (
        verdict(metric(0.10, "lower", {"median image": 0.2, "best of 4 inputs (oracle)": 0.05})) == "beats all floors"
    )
    assert verdict(metric(0.2, "lower", {"median image": 0.2})) == "no"
    assert verdict(metric(0.5, "higher", {"train mean": 0.0, "bag-of-tags ridge": 0.6})) == "beats constants"
    assert verdict(metric(0.1, "closest", {"median image": 0.0}, 0.2)) == "beats all floors"
    assert verdict(metric(0.5, "closest", {"median image": 0.0}, 0.2)) == "no"
    assert (
        verdict(metric(0.5, "higher", {})) == ""
        and beats(metric(None, "higher", {"chance": 0.1}), constant=True) is None
    )


def test_examples_are_random_then_best_then_worst(evaluation):
    picks = [example["pick"] for example in evaluation["examples"]]
    assert picks == sorted(picks, key=["random", "best", "worst"].index) and picks.count("random") == 2
    best, worst = ([e["image_l1"] for e in evaluation["examples"] if e["pick"] == p] for p in ("best", "worst"))
    assert best == sorted(best) and worst == sorted(worst, reverse=True) and max(best) <= min(worst)
    assert all(isinstance(e["generated_text"], str) and len(e["input_frames"]) == 4 for e in evaluation["examples"])


def test_predictions_are_written(setting, tmp_path):
    model, index, data = setting
    found = predict(model, index, "test", 3, data=data, config=CONFIG, device=CPU)
    assert found == predict(model, index, "test", 3, data=data, config=CONFIG, device=CPU)
    folder = write_predictions(tmp_path / "predictions" / "test", found)
    write_predictions(folder, found[:2])
    assert sorted(path.name for path in folder.iterdir()) == ["000.png", "001.png", "predictions.jsonl"]
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert [line["story_id"] for line in lines] == [record["story_id"] for record in found[:2]]
    assert {"input_texts", "target_text", "generated_text", "score_true", "score_predicted"} <= lines[0].keys()
    assert found[0]["target_text"] in summary(found[0]).replace("\n" + " " * 14, " ")
