"""One checkpoint: what is written comes back bit for bit, and nothing that was changed since is taken for it."""

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from storydist.training import checkpoint
from storydist.training.checkpoint import Identity, TrainState, damage, read_manifest
from storydist.training.writer import HostCopies

IDENTITY = Identity(config={"train": {"steps": 5, "log_every": 1}}, fingerprint="f" * 64, code="test 1.0")


def trained(steps: int = 2) -> tuple[nn.Module, torch.optim.AdamW]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    optimizer = torch.optim.AdamW([{"params": model[1].parameters()}, {"params": model[0].parameters()}])
    for _ in range(steps):
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()
    return model, optimizer


def write(folder: Path, step: int = 2, ema: bool = False) -> Path:
    model, optimizer = trained()
    tensors = checkpoint.live_tensors(model, optimizer, AveragedModel(model) if ema else None)
    checkpoint.write(folder, TrainState(step=step, samples_seen=10 * step), IDENTITY, tensors)
    return folder


def go_on(model: nn.Module, optimizer: torch.optim.AdamW) -> list[torch.Tensor]:
    """Parameters after one more update."""
    optimizer.zero_grad()
    model(torch.full((2, 3), 0.5)).sum().backward()
    optimizer.step()
    return list(model.parameters())


def change_manifest(folder: Path, **sections: object) -> None:
    """As another version of the code might have written it: the hash is right."""
    content = json.loads((folder / checkpoint.MANIFEST).read_text())
    del content["sha256"]
    content |= sections
    (folder / checkpoint.MANIFEST).write_text(json.dumps(content | {"sha256": checkpoint._digest(content)}))


def test_what_is_restored_goes_on_bit_for_bit(tmp_path):
    model, optimizer = trained()
    folder = write(tmp_path / "step")
    other, other_optimizer = trained(0)
    checkpoint.restore(folder, read_manifest(folder), other, other_optimizer, None)
    assert all(torch.equal(a, b) for a, b in zip(go_on(model, optimizer), go_on(other, other_optimizer), strict=True))


def test_state_comes_back(tmp_path):
    manifest = read_manifest(write(tmp_path / "step", 3))
    assert (manifest.state, manifest.identity) == (TrainState(step=3, samples_seen=30), IDENTITY)


def test_any_state_hashes_to_itself(tmp_path):
    """Settings may hold what JSON turns into something else: tuples, whole numbers as keys."""
    identity = Identity(config={"sizes": (1, 2), "by number": {10: "a", 9: "b"}}, fingerprint="f", code="test")
    model, optimizer = trained()
    state = TrainState(step=1, best_value=0.1 + 0.2, interval=[[float("nan"), float("inf")]])
    checkpoint.write(tmp_path / "step", state, identity, checkpoint.live_tensors(model, optimizer, None))
    assert read_manifest(tmp_path / "step").state.best_value == 0.1 + 0.2


def test_the_same_content_gives_the_same_bytes(tmp_path):
    one, other = write(tmp_path / "one", ema=True), write(tmp_path / "other", ema=True)
    assert {p.name: p.read_bytes() for p in one.iterdir()} == {p.name: p.read_bytes() for p in other.iterdir()}


FILES = [checkpoint.MODEL, checkpoint.EMA, checkpoint.OPTIMIZER, checkpoint.MANIFEST]


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_bit_is_noticed(tmp_path, name):
    """A bit of every byte. White space of the manifest may change: it says nothing."""
    path = write(tmp_path / "step", ema=True) / name
    data, manifest = path.read_bytes(), read_manifest(tmp_path / "step")
    for place in range(0, len(data), max(1, len(data) // 400)):
        path.write_bytes(data[:place] + bytes([data[place] ^ (1 << place % 8)]) + data[place + 1 :])
        problem = damage(tmp_path / "step")
        if name != checkpoint.MANIFEST or problem is None:
            assert problem is not None or read_manifest(tmp_path / "step") == manifest
            assert problem is not None or data[place : place + 1].isspace()
        if name != checkpoint.MANIFEST:
            with pytest.raises(checkpoint.DamagedCheckpointError, match=name):
                checkpoint.read_tensors(tmp_path / "step", manifest, name)
    path.write_bytes(data)
    assert damage(tmp_path / "step") is None


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", ["empty", "cut", "longer", "deleted", "a folder", "swapped", "of another step"])
def test_a_harmed_file_is_named(tmp_path, name, harm):
    folder = write(tmp_path / "step", ema=True)
    path, data = folder / name, (folder / name).read_bytes()
    if harm == "swapped":
        other = folder / FILES[FILES.index(name) - 1]
        path.write_bytes(other.read_bytes())
        other.write_bytes(data)
    elif harm in ("deleted", "a folder"):
        path.unlink()
        if harm == "a folder":
            path.mkdir()
    elif harm == "of another step":
        model, optimizer = trained(3)
        tensors = checkpoint.live_tensors(model, optimizer, AveragedModel(model))
        checkpoint.write(tmp_path / "other", TrainState(step=3), IDENTITY, tensors)
        shutil.copy(tmp_path / "other" / name, path)
    else:
        path.write_bytes({"empty": b"", "cut": data[:-1], "longer": data + b"\0"}[harm])
    problem = damage(folder)
    assert problem is not None and (name in problem or harm in ("swapped", "of another step"))


def test_a_manifest_cannot_point_out_of_its_folder(tmp_path):
    folder = write(tmp_path / "step")
    files = json.loads((folder / checkpoint.MANIFEST).read_text())["files"]
    change_manifest(folder, files=files | {"../../secret": files[checkpoint.MODEL]})
    assert "../../secret" in (damage(folder) or "")


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"format": 2}, r"has format 2, this version of storydist reads 1"),
        ({"state": {"step": 1, "momentum": 3}}, r"state has momentum, unknown here and lacks best_step, best_value"),
        ({"identity": {"config": {}, "code": "storydist 7"}}, r"lacks fingerprint; it was written by storydist 7"),
    ],
    ids=["format", "state", "identity"],
)
def test_another_version_s_checkpoint_is_an_error_not_damage(tmp_path, sections, words):
    folder = write(tmp_path / "step")
    change_manifest(folder, **sections)
    with pytest.raises(ValueError, match=words) as error:
        damage(folder)
    assert not isinstance(error.value, checkpoint.DamagedCheckpointError)


def test_a_checkpoint_without_manifest_hash_is_damaged(tmp_path):
    folder = write(tmp_path / "step")
    (folder / checkpoint.MANIFEST).write_text(json.dumps({checkpoint.MODEL: "f" * 64}))
    assert "is no manifest" in (damage(folder) or "")


def test_saving_a_step_again_changes_its_state_alone(tmp_path):
    folder = write(tmp_path / "step")
    before = (folder / checkpoint.MODEL).stat()
    checkpoint.write_state(folder, TrainState(step=2, best_step=2), IDENTITY)
    assert damage(folder) is None and read_manifest(folder).state.best_step == 2
    assert (folder / checkpoint.MODEL).stat().st_mtime_ns == before.st_mtime_ns


def test_a_checkpoint_never_replaces_another(tmp_path):
    folder = write(tmp_path / "step")
    with pytest.raises(OSError, match="not empty"):
        write(folder, 5)
    assert read_manifest(folder).state.step == 2 and [p.name for p in tmp_path.iterdir()] == ["step"]


def test_a_write_that_the_system_refuses_leaves_nothing(tmp_path):
    """A real one: files may not grow beyond a few bytes."""
    resource = pytest.importorskip("resource")
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, former[1]))
    try:
        with pytest.raises(OSError, match=r"model\.safetensors.*File too large"):
            write(tmp_path / "step")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (
            nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 1)),
            r"0\.bias is float32 \[4\], in the model float32 \[5\]; 0\.we",
        ),
        (nn.Sequential(nn.Linear(3, 4)), r"1\.bias is not in the model; 1\.weight is not in the model"),
        (nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1), nn.Linear(1, 1)), r"2\.bias is missing; 2\.weight is missing"),
        (
            nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1)).double(),
            r"0\.bias is float32 \[4\], in the model float64 \[4",
        ),
    ],
    ids=["shape", "too few", "too many", "type"],
)
def test_another_model_is_refused_by_the_tensors_that_differ(tmp_path, other, words):
    folder = write(tmp_path / "step")
    before = [p.clone() for p in other.parameters()]
    with pytest.raises(ValueError, match=rf"step/model\.safetensors does not fit the model: {words}"):
        checkpoint.restore(folder, read_manifest(folder), other, torch.optim.AdamW(other.parameters()), None)
    assert all(torch.equal(a, b) for a, b in zip(before, other.parameters(), strict=True))


def test_an_average_that_begins_at_a_checkpoint_begins_at_its_weights(tmp_path):
    folder = write(tmp_path / "step")
    model, optimizer = trained(0)
    ema = AveragedModel(model)
    checkpoint.restore(folder, read_manifest(folder), model, optimizer, ema)
    assert all(torch.equal(a, b) for a, b in zip(ema.module.parameters(), trained()[0].parameters(), strict=True))


def test_a_tensor_that_several_parts_share_is_stored_once_and_a_part_of_one_is_not_lost(tmp_path):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(3, 3, bias=False)
            self.same = self.one
            self.register_buffer("first_row", self.one.weight.detach()[:1])
            self.register_buffer("empty", torch.empty(0))
            self.register_buffer("also_empty", torch.empty(0, 2))

    model = Tied()
    tensors = checkpoint.live_tensors(model, torch.optim.AdamW(model.parameters()), None)
    stored = HostCopies().copy(tensors)[checkpoint.MODEL]
    assert sorted(stored) == ["also_empty", "empty", "first_row", "one.weight"]
    checkpoint.write_tensors(tmp_path / "file", stored)
    other = Tied()
    checkpoint.load_weights(safetensors.torch.load_file(tmp_path / "file"), other, tmp_path / "file")
    assert torch.equal(other.same.weight, model.one.weight)
    assert torch.equal(other.get_buffer("first_row"), model.one.weight[:1])
