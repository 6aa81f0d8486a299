"""What is taken out of checkpoints is what is in them."""

import json
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from storydist.training import checkpoint
from storydist.training.checkpoint import TrainState
from storydist.training.export import average, export, survey, table
from storydist.training.keep import checkpoint_path
from tests.test_checkpoint import IDENTITY, change_manifest


class Net(nn.Module):
    """A weight that is trained, one that is frozen, and buffers."""

    def __init__(self, value: float, frozen: float = 7.0, count: int = 3):
        super().__init__()
        self.trained = nn.Parameter(torch.full((2,), value))
        self.frozen = nn.Parameter(torch.full((2,), frozen), requires_grad=False)
        self.register_buffer("count", torch.tensor(count))


def save(run: Path, step: int, model: nn.Module, ema: bool = False, best: int | None = None) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0)
    sum(p.sum() for p in model.parameters() if p.requires_grad).backward()  # type: ignore[union-attr]
    optimizer.step()  # makes moments; the rate is 0
    averaged = AveragedModel(model)
    with torch.no_grad():
        next(averaged.parameters()).fill_(0.5)
    tensors = checkpoint.live_tensors(model, optimizer, averaged if ema else None)
    checkpoint.write(checkpoint_path(run, step), TrainState(step=step, best_step=best), IDENTITY, tensors)


def harm(run: Path, step: int) -> None:
    (checkpoint_path(run, step) / checkpoint.MODEL).write_bytes(b"x")


def test_a_table_tells_step_size_best_and_what_is_damaged(tmp_path):
    for step in (1, 2, 3, 4):
        save(tmp_path, step, Net(1.0), best=2 if step > 1 else None)
    harm(tmp_path, 3)
    change_manifest(checkpoint_path(tmp_path, 1), format=9)
    facts = survey(tmp_path)
    assert [(f.step, f.is_best) for f in facts] == [(1, False), (2, True), (3, False), (4, False)]
    assert [f.problem is None for f in facts] == [False, True, False, True]
    assert facts[0].problem is not None and "has format 9" in facts[0].problem
    assert facts[1].num_bytes == sum(p.stat().st_size for p in checkpoint_path(tmp_path, 2).iterdir())
    lines = table(facts).splitlines()
    assert "best  whole" in lines[2] and "model.safetensors has 1 bytes" in lines[3]


def test_a_run_without_checkpoints_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no checkpoints"):
        survey(tmp_path)


@pytest.mark.parametrize(("which", "step"), [("latest", 3), ("best", 2), ("1", 1)])
def test_exported_weights_are_those_of_the_step(tmp_path, which, step):
    for number in (1, 2, 3):
        save(tmp_path, number, Net(float(number)), best=2)
    out = tmp_path / "new" / "weights.safetensors"
    assert export(tmp_path, which, out, ema=False) == step
    model = Net(0.0, 0.0, 0)
    model.load_state_dict(safetensors.torch.load_file(out))
    assert model.trained.tolist() == [step, step] and model.frozen.tolist() == [7, 7]
    with safetensors.safe_open(out, "pt") as file:
        told = json.loads(file.metadata()["storydist"])
    assert (told["step"], told["config"], told["fingerprint"]) == (step, IDENTITY.config, IDENTITY.fingerprint)


def test_the_moving_average_is_exported_under_the_model_s_names(tmp_path):
    save(tmp_path, 1, Net(1.0), ema=True)
    export(tmp_path, "latest", tmp_path / "out", ema=True)
    model = Net(0.0)
    model.load_state_dict(safetensors.torch.load_file(tmp_path / "out"))
    assert model.trained.tolist() == [0.5, 0.5]


def test_a_moving_average_that_is_not_there_is_told(tmp_path):
    save(tmp_path, 1, Net(1.0))
    with pytest.raises(ValueError, match="has no moving average"):
        export(tmp_path, "latest", tmp_path / "out", ema=True)


def test_a_damaged_step_is_not_exported(tmp_path):
    save(tmp_path, 1, Net(1.0))
    save(tmp_path, 2, Net(1.0))
    harm(tmp_path, 2)
    with pytest.raises(ValueError, match="step 2 is damaged"):
        export(tmp_path, "2", tmp_path / "out", ema=False)
    assert not (tmp_path / "out").exists()


def test_the_same_export_gives_the_same_bytes(tmp_path):
    save(tmp_path, 1, Net(1.0))
    for name in ("one", "other"):
        export(tmp_path, "1", tmp_path / name, ema=False)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_a_mean_is_rounded_once(tmp_path):
    """In float32 the sum would lose the small one."""
    values = (1.0, 2.0**-24, 2.0**-24)
    for step, value in enumerate(values, start=1):
        save(tmp_path, step, Net(value))
    average(tmp_path, [1, 2, 3], tmp_path / "out")
    tensors = safetensors.torch.load_file(tmp_path / "out")
    expected = torch.tensor(sum(values) / 3, dtype=torch.float64).float()
    assert torch.equal(tensors["trained"], expected.expand(2)) and tensors["trained"].dtype == torch.float32
    assert tensors["count"] == 3 and tensors["frozen"].tolist() == [7, 7]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (Net(1.0, frozen=8.0), "frozen was not trained and yet differs"),
        (Net(1.0, count=4), "count was not trained and yet differs"),
        (Net(1.0).double(), "frozen is of another shape or type"),
        (nn.Linear(1, 1), "only one of them has bias"),
    ],
    ids=["frozen", "buffer", "type", "names"],
)
def test_what_has_no_mean_is_named(tmp_path, other, words):
    save(tmp_path, 1, Net(1.0))
    save(tmp_path, 2, other)
    with pytest.raises(ValueError, match=f"step-00000001 and .*step-00000002: {words}"):
        average(tmp_path, [1, 2], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_mean_needs_different_steps(tmp_path):
    for steps in ([1], [1, 1]):
        with pytest.raises(ValueError, match="two or more steps, each named once"):
            average(tmp_path, steps, tmp_path / "out")
