import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from storydist.cluster import folders
from storydist.cluster.place import Place
from storydist.cluster.rank import Rank
from storydist.model import StoryModel, data_facts
from storydist.training.checkpoint import live_tensors
from storydist.training.keep import checkpoint_path
from storydist.training.optim import build_optimizer
from storydist.training.strategy import build_average
from tests.small_runs import small_config


@pytest.fixture
def config(tiny_index, tmp_path):
    return small_config(tiny_index, tmp_path, checkpoint={"keep_last": 2})


def disk(monkeypatch, *, free: int, files: int = 0, files_free: int = 0) -> None:
    status = SimpleNamespace(f_bavail=free, f_frsize=1, f_files=files, f_favail=files_free)
    monkeypatch.setattr(folders.os, "statvfs", lambda _: status)


def test_room_is_needed_for_the_last_the_best_and_the_one_being_written(config, monkeypatch):
    disk(monkeypatch, free=399)
    (found,) = folders.room(config, 100)
    assert found.level == "FAIL" and found.what.startswith("4 more checkpoint(s)")
    disk(monkeypatch, free=400)
    assert folders.room(config, 100)[0].level == "ok"


def test_checkpoints_that_are_there_have_their_room(config, monkeypatch):
    for step in (1, 2):
        checkpoint_path(Path(config.run.dir), step).mkdir(parents=True)
    disk(monkeypatch, free=200)
    assert folders.room(config, 100)[0].level == "ok"


def test_used_up_inodes_fail_and_a_file_system_without_any_does_not(config, monkeypatch):
    disk(monkeypatch, free=10**9, files=1000, files_free=3)
    assert "inodes are used up" in folders.room(config, 100)[0].remedy
    disk(monkeypatch, free=10**9, files=0, files_free=0)
    assert folders.room(config, 100)[0].level == "ok"


def test_a_checkpoint_takes_what_its_tensors_take(tiny_index, tmp_path):
    config = small_config(tiny_index, tmp_path / "run", optim={"ema_decay": 0.9})
    rank = Rank(Place(), lambda: config, None)
    rank.settings()
    rank.open_index()
    rank.model()
    model = StoryModel(config.model, config.losses.heads(), data_facts(tiny_index, config.data))
    optimizer = build_optimizer(model, config.optim)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    tensors = live_tensors(model, optimizer, build_average(model, config.optim))
    found = sum(tensor.nbytes for content in tensors.values() for tensor in content.values())
    told = folders.checkpoint_bytes(config, rank.weight_bytes)
    assert found <= told <= 1.1 * found  # what is frozen has no moments


def test_little_scratch_is_a_warning(tmp_path, monkeypatch):
    disk(monkeypatch, free=1000)
    (found,) = folders.scratch(tmp_path)
    assert found.level == "warn" and "set TMPDIR" in found.remedy


def test_a_cache_that_the_disk_cannot_hold_is_a_warning(tiny_index, tmp_path, monkeypatch):
    cache = {"dir": str(tmp_path / "cache"), "max_gb": 1e-6}
    config = small_config(tiny_index, tmp_path, data={"shards": str(tiny_index.root), "cache": cache})
    disk(monkeypatch, free=999)
    assert folders.cache(config, [5000])[0].level == "warn"  # 1000 of them are allowed
    assert folders.cache(config, [600])[0].level == "ok"
    assert not list((tmp_path / "cache").iterdir())


def test_a_full_disk_is_found_although_its_folder_may_be_written_to(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "none", str(small)], check=False)
    if os.geteuid() != 0 or mounted.returncode:
        pytest.skip("only root mounts file systems")
    try:
        (found,) = folders.writable("run folder", small / "run", "run.dir")
        assert found.level == "FAIL" and "No space left on device" in found.what
        assert not list((small / "run").iterdir())
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_read_only_disk_is_found(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", str(small)], check=False)
    if os.geteuid() != 0 or mounted.returncode:
        pytest.skip("only root mounts file systems")
    try:
        (found,) = folders.writable("run folder", small / "run", "run.dir")
        assert found.level == "FAIL" and str(small) in found.what
    finally:
        subprocess.run(["umount", str(small)], check=True)
