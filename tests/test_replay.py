"""A step that came to nothing finite is kept, and made again elsewhere it names what began it."""

import contextlib
import io
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from launch import replay
from storydist.command import run_command
from storydist.losses import all_losses
from storydist.training.failure import failure_path, list_failures
from storydist.training.trainer import build_run, train
from tests.small_runs import batch_of, small_config, small_model


@pytest.fixture(autouse=True)
def fresh_accelerate():
    AcceleratorState._reset_state(reset_partial_state=True)


def replayed(run: Path, step: int, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """Exit code of the command, and what it printed."""
    AcceleratorState._reset_state(reset_partial_state=True)
    out = io.StringIO()
    monkeypatch.setattr(sys, "argv", ["replay.py", str(run), "--step", str(step)])
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = run_command(replay.main)
    return code, out.getvalue()


def failed_run(index, folder: Path, spoil, **train_settings) -> None:
    """A run of two micro-batches a step; `spoil` changes them from the third step on."""
    settings = {"global_batch": 4, "micro_batch": 2, **train_settings}
    run = build_run(small_config(index, folder, train=settings), index, "test")
    load = run.stream.load_step

    def spoilt(samples_seen: int):
        batches = load(samples_seen)
        if samples_seen >= 8:
            spoil(batches)
        return batches

    run.stream.load_step = spoilt  # type: ignore[method-assign]
    with pytest.raises(FloatingPointError, match=rf"launch/replay\.py {folder} --step 3"):
        train(run)


def spoil_one(batches) -> None:
    batches[1].seconds_N[batches[1].frame_story_N == 1] = float("inf")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_story_that_did_it_is_named(tiny_index, tmp_path, monkeypatch, precision):
    failed_run(tiny_index, tmp_path, spoil_one, precision=precision)
    facts = json.loads((failure_path(tmp_path, 3) / "rank-0" / "facts.json").read_text())
    guilty, innocent = facts["stories"][1][1], facts["stories"][1][0]
    code, told = replayed(tmp_path, 3, monkeypatch)
    assert code == 0, told
    assert "rank 0, micro-batch 0 (2 stories): all finite" in told
    assert f"guilty: story {guilty!r}, frames 0 to" in told and f"story {innocent!r}" not in told
    assert "not finite in the data: seconds_N" in told and "first in the output of " in told


def test_a_gradient_that_is_not_finite_is_named_by_head_and_parameter(tiny_index, tmp_path, monkeypatch):
    # The square root of nothing has an infinite slope, though its value is fine.
    def score(prediction, batch, score_std):
        known_B = batch.valid_B * batch.score_known_B
        return ((prediction.score_B - prediction.score_B).sqrt() * known_B).sum(), known_B.sum()

    monkeypatch.setattr("storydist.losses.score", score)
    run = build_run(small_config(tiny_index, tmp_path), tiny_index, "test")
    with pytest.raises(FloatingPointError):
        train(run)
    code, told = replayed(tmp_path, 1, monkeypatch)
    assert code == 0 and "loss score is finite, but the gradient of " in told, told


def test_weights_that_were_broken_before_are_told(tiny_index, tmp_path, monkeypatch):
    run = build_run(small_config(tiny_index, tmp_path), tiny_index, "test")
    with torch.no_grad():
        run.model.text_decoder.bias[0] = float("nan")
    with pytest.raises(FloatingPointError):
        train(run)
    code, told = replayed(tmp_path, 1, monkeypatch)
    assert code == 0 and "the weights before the step: text_decoder.bias not finite" in told


def test_what_is_not_there_is_told(tiny_index, tmp_path, monkeypatch):
    failed_run(tiny_index, tmp_path, spoil_one)
    assert list_failures(tmp_path) == [3]
    code, told = replayed(tmp_path, 2, monkeypatch)
    assert code == 2 and "keeps no failure of step 2 (it has: 3)" in told
    shutil.rmtree(failure_path(tmp_path, 3) / "rank-0")
    code, told = replayed(tmp_path, 3, monkeypatch)
    assert code == 2 and "rank 0 was ended before it had kept its part" in told


def test_a_story_taken_out_of_a_batch_has_the_loss_it_had_in_it(tiny_index):
    model, batch = small_model(tiny_index), batch_of(tiny_index, 1, 2, 3, 5)
    config = small_config(tiny_index, Path("unused")).losses
    with torch.no_grad():
        whole = all_losses(config, model(batch), batch, 1.0)
        parts = [all_losses(config, model(story), story, 1.0) for story in (batch.story(row) for row in range(4))]
    for head, (total, count) in whole.items():
        assert sum(float(part[head][1]) for part in parts) == float(count)
        assert sum(float(part[head][0]) for part in parts) == pytest.approx(float(total), rel=1e-4), head
