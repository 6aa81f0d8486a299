"""Two runs are the same to the last bit, or the first thing that differs is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from storydist.training import checkpoint
from storydist.training.checkpoint import TrainState, read_manifest
from storydist.training.difference import first_difference
from storydist.training.keep import checkpoint_path
from storydist.training.log import METRICS
from tests.test_checkpoint import IDENTITY, trained


def save(run: Path, change: Callable[[nn.Module], None] = lambda model: None, ema: bool = True) -> None:
    model, optimizer = trained()
    with torch.no_grad():
        change(model)
    tensors = checkpoint.live_tensors(model, optimizer, AveragedModel(model) if ema else None)
    shutil.rmtree(checkpoint_path(run, 2), ignore_errors=True)
    checkpoint.write(checkpoint_path(run, 2), TrainState(step=2, interval=[[float("nan"), 1.0]]), IDENTITY, tensors)


def log(run: Path, *losses: float, speed: float = 1.0) -> None:
    lines = [
        {"step": step, "kind": "train", "loss": loss, "samples_per_s": speed}
        for step, loss in enumerate(losses, start=1)
    ]
    (run / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def runs(tmp_path) -> tuple[Path, Path]:
    """Two that differ in what a clock says only."""
    one, other = tmp_path / "one", tmp_path / "other"
    for run, speed in ((one, 1.0), (other, 2.0)):
        save(run)
        log(run, 0.5, float("nan"), speed=speed)
    return one, other


def test_what_a_clock_says_is_no_difference(runs):
    assert first_difference(*runs) is None


def test_the_last_bit_of_a_weight_is_named_with_its_place(runs):
    def change(model: nn.Module) -> None:
        weight = model.get_parameter("0.weight")
        weight[2, 1] = torch.nextafter(weight[2, 1], torch.tensor(9.0))

    value = trained()[0].get_parameter("0.weight")[2, 1]
    save(runs[1], change)
    other = torch.nextafter(value, torch.tensor(9.0)).item()
    assert first_difference(*runs) == f"model.safetensors: 0.weight[2, 1]: {value.item()!r} and {other!r}"


def test_a_zero_s_sign_is_a_difference(runs):
    for run, zero in zip(runs, (0.0, -0.0), strict=True):
        save(run, lambda model, zero=zero: model.get_parameter("1.bias").fill_(zero))  # type: ignore[misc]
    assert first_difference(*runs) == "model.safetensors: 1.bias[0]: 0.0 and -0.0"


def test_a_moment_and_a_number_without_a_place_are_named(runs):
    model, optimizer = trained()
    optimizer.state[model.get_parameter("0.bias")]["step"] += 1
    tensors = checkpoint.live_tensors(model, optimizer, AveragedModel(model))
    shutil.rmtree(checkpoint_path(runs[1], 2))
    checkpoint.write(checkpoint_path(runs[1], 2), TrainState(step=2), IDENTITY, tensors)
    assert first_difference(*runs) == "optimizer.safetensors: 0.bias.step: 2.0 and 3.0"


def test_an_average_that_only_one_has_is_named(runs):
    save(runs[1], ema=False)
    assert first_difference(*runs) == "ema.safetensors: only one run has it"


def test_another_state_is_named(runs):
    folder = checkpoint_path(runs[1], 2)
    state = read_manifest(folder).state
    state.interval = [[float("nan"), 2.0]]
    checkpoint.write_state(folder, state, IDENTITY)
    assert first_difference(*runs) == "manifest.json: state: interval: [[nan, 1.0]] and [[nan, 2.0]]"


def test_other_lines_of_metrics_are_named(runs):
    log(runs[1], 0.5, 0.25)
    assert first_difference(*runs) == "metrics.jsonl line 2 (step 2, train): loss: nan and 0.25"
    log(runs[1], 0.5)
    assert first_difference(*runs) == "metrics.jsonl: 2 lines and 1 lines"


def test_another_end_is_named(runs):
    shutil.move(checkpoint_path(runs[1], 2), checkpoint_path(runs[1], 3))
    assert first_difference(*runs) == "last checkpoint: step 2 and step 3"
    shutil.rmtree(runs[1] / "checkpoints")
    with pytest.raises(FileNotFoundError, match="other has no checkpoints"):
        first_difference(*runs)


def test_a_damaged_checkpoint_is_not_compared(runs):
    (checkpoint_path(runs[0], 2) / checkpoint.MODEL).write_bytes(b"x")
    with pytest.raises(checkpoint.DamagedCheckpointError):
        first_difference(*runs)
