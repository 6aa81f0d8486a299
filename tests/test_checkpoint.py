import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from storydist.training import checkpoint
from storydist.training.checkpoint import CheckpointConfig, Identity, TrainState

IDENTITY = Identity(config={"train": {"steps": 5, "log_every": 1}}, fingerprint="f" * 64, code="test")


def trained(steps: int = 2) -> tuple[nn.Module, torch.optim.AdamW]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    optimizer = torch.optim.AdamW([{"params": model[1].parameters()}, {"params": model[0].parameters()}])
    for _ in range(steps):
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()
    return model, optimizer


def save(run: Path, step: int) -> Path:
    model, optimizer = trained()
    return checkpoint.save(run, TrainState(step=step, samples_seen=10 * step), IDENTITY, model, optimizer, None)


def go_on(model: nn.Module, optimizer: torch.optim.AdamW) -> list[torch.Tensor]:
    """Parameters after one more update."""
    optimizer.zero_grad()
    model(torch.full((2, 3), 0.5)).sum().backward()
    optimizer.step()
    return list(model.parameters())


def test_what_is_restored_goes_on_bit_for_bit(tmp_path):
    model, optimizer = trained()
    folder = checkpoint.save(tmp_path, TrainState(step=2), IDENTITY, model, optimizer, None)
    other, other_optimizer = trained(0)
    checkpoint.restore(folder, other, other_optimizer, None)
    assert all(torch.equal(a, b) for a, b in zip(go_on(model, optimizer), go_on(other, other_optimizer), strict=True))


def test_state_comes_back(tmp_path):
    state, identity = checkpoint.read_state(save(tmp_path, 3))
    assert (state, identity) == (TrainState(step=3, samples_seen=30), IDENTITY)


@pytest.mark.parametrize("name", [checkpoint.MODEL, checkpoint.OPTIMIZER, checkpoint.STATE, checkpoint.MANIFEST])
@pytest.mark.parametrize("harm", ["flip", "cut", "delete"])
def test_a_damaged_checkpoint_is_named_and_passed_over(tmp_path, name, harm):
    save(tmp_path, 1)
    path = save(tmp_path, 2) / name
    data = bytearray(path.read_bytes())
    if harm == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif harm == "cut":
        path.write_bytes(data[: len(data) // 2])
    else:
        path.unlink()
    told: list[str] = []
    assert checkpoint.newest_valid(tmp_path, told.append) == 1
    assert len(told) == 1 and "step 2 is damaged" in told[0]


def test_half_a_save_is_no_checkpoint(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "sync", fail)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 2)
    assert checkpoint.list_steps(tmp_path) == [1]
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


def test_pruning_keeps_the_last_and_the_best(tmp_path):
    for step in range(1, 6):
        save(tmp_path, step)
    (tmp_path / "checkpoints" / ".step-00000009.tmp-1").mkdir()
    checkpoint.prune(tmp_path, CheckpointConfig(keep_last=2), TrainState(step=5, best_step=2))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [f"step-{s:08d}" for s in (2, 4, 5)]


def test_other_settings_or_shards_are_refused_by_name(tmp_path):
    other = Identity(config={"train": {"steps": 9, "log_every": 7}}, fingerprint="e" * 64, code="test")
    with pytest.raises(
        ValueError, match=r"train\.steps was 5, is 9; fingerprint of the shards was ffffffffffff, is eeeeeeeeeeee"
    ):
        checkpoint.require_same(IDENTITY, other, (), tmp_path)
    checkpoint.require_same(IDENTITY, other, ("train.steps", "fingerprint"), tmp_path)


def test_another_model_is_refused(tmp_path):
    folder = save(tmp_path, 1)
    with pytest.raises(ValueError, match=r"model\.safetensors does not fit the model"):
        checkpoint.load_weights(folder / checkpoint.MODEL, nn.Linear(2, 2))


def test_saving_a_step_again_replaces_it(tmp_path):
    first = save(tmp_path, 1)
    (first / "leftover").write_text("x")
    save(tmp_path, 1)
    assert not (first / "leftover").exists()
    shutil.rmtree(first)
    assert checkpoint.newest_valid(tmp_path, lambda _: None) is None


def test_pruning_never_removes_what_was_just_saved(tmp_path):
    for step in (2, 3, 4):
        save(tmp_path, step)
    for step in (3, 4):  # damaged, so the run went on from step 2
        (checkpoint.checkpoint_path(tmp_path, step) / checkpoint.MODEL).unlink()
    checkpoint.prune(tmp_path, CheckpointConfig(keep_last=1), TrainState(step=2))
    assert checkpoint.newest_valid(tmp_path, lambda _: None) == 2
    assert checkpoint.list_steps(tmp_path) == [2]
