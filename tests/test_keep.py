"""The checkpoints of a run: the newest whole one is found, and pruning keeps what could be needed."""

import contextlib
import errno
import os
from pathlib import Path

import pytest

from storydist.training import checkpoint
from storydist.training.checkpoint import TrainState
from storydist.training.keep import CheckpointConfig, checkpoint_path, list_steps, newest_valid, prune, set_aside
from tests.test_checkpoint import change_manifest, write


def save(run: Path, *steps: int) -> None:
    for step in steps:
        write(checkpoint_path(run, step), step)


def harm(run: Path, *steps: int) -> None:
    for step in steps:
        path = checkpoint_path(run, step) / checkpoint.MODEL
        path.write_bytes(path.read_bytes()[:-1] + b"?")


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_damaged_checkpoints_are_named_and_passed_over(tmp_path):
    save(tmp_path, 1, 2, 3)
    harm(tmp_path, 2, 3)
    told: list[str] = []
    assert newest_valid(tmp_path, told.append) == 1
    assert [line.split(":")[0] for line in told] == [
        "checkpoint step 3 is damaged and passed over",
        "checkpoint step 2 is damaged and passed over",
    ]


def test_a_folder_that_was_renamed_is_passed_over(tmp_path):
    save(tmp_path, 1, 2)
    checkpoint_path(tmp_path, 1).rename(checkpoint_path(tmp_path, 3))
    told: list[str] = []
    assert newest_valid(tmp_path, told.append) == 2
    assert told == [f"checkpoint step 3 is damaged and passed over: {checkpoint_path(tmp_path, 3)} holds step 1"]


@pytest.mark.parametrize(("number", "passed_over"), [(errno.EIO, True), (errno.ESTALE, False), (errno.EACCES, False)])
def test_only_what_is_broken_is_passed_over_and_removed(tmp_path, monkeypatch, number, passed_over):
    save(tmp_path, 1, 2, 3)
    read = checkpoint.sha256_file

    def fail(path: Path) -> str:
        if path.parent.name == "step-00000002":
            raise OSError(number, os.strerror(number), str(path))
        return read(path)

    monkeypatch.setattr(checkpoint, "sha256_file", fail)
    with contextlib.nullcontext() if passed_over else pytest.raises(OSError, match=os.strerror(number)):
        prune(tmp_path, CheckpointConfig(keep_last=2), TrainState(step=3), print)
    assert names(tmp_path) == [f"step-{step:08d}" for step in ((1, 3) if passed_over else (1, 2, 3))]
    checkpoint_path(tmp_path, 3).rename(tmp_path / "away")
    with contextlib.nullcontext() if passed_over else pytest.raises(OSError, match=os.strerror(number)):
        assert newest_valid(tmp_path, print) == 1


def test_a_newer_version_s_checkpoint_is_not_passed_over(tmp_path):
    save(tmp_path, 1, 2)
    change_manifest(checkpoint_path(tmp_path, 2), format=2)
    with pytest.raises(ValueError, match=r"step-00000002/manifest\.json has format 2"):
        newest_valid(tmp_path, print)


def test_only_checkpoints_are_listed(tmp_path):
    save(tmp_path, 7)
    for name in (".step-00000009.tmp-1", "step-9", "step-00000010.damaged", "step-0000001²", "step-000000011", "steps"):
        (tmp_path / "checkpoints" / name).mkdir()
    checkpoint_path(tmp_path, 123456789).mkdir()
    assert list_steps(tmp_path) == [7, 123456789]


def test_pruning_keeps_the_last_and_the_best_and_removes_what_kills_have_left(tmp_path):
    save(tmp_path, 1, 2, 3, 4, 5)
    for leftover in (".step-00000009.tmp-1", ".step-00000001.removed-1", "step-00000008.damaged"):
        (tmp_path / "checkpoints" / leftover).mkdir()
    (checkpoint_path(tmp_path, 4) / ".manifest.json.tmp-1").touch()
    prune(tmp_path, CheckpointConfig(keep_last=2), TrainState(step=5, best_step=2), print)
    assert names(tmp_path) == [f"step-{step:08d}" for step in (2, 4, 5)]
    assert len(list(checkpoint_path(tmp_path, 4).iterdir())) == 3


def test_the_best_is_kept_only_if_asked_for(tmp_path):
    save(tmp_path, 1, 2)
    prune(tmp_path, CheckpointConfig(keep_last=1, keep_best=False), TrainState(step=2, best_step=1), print)
    assert list_steps(tmp_path) == [2]


def test_damaged_ones_do_not_count_among_the_last(tmp_path):
    save(tmp_path, 1, 2, 3, 4, 5)
    harm(tmp_path, 3, 4)
    told: list[str] = []
    prune(tmp_path, CheckpointConfig(keep_last=2), TrainState(step=5), told.append)
    assert list_steps(tmp_path) == [2, 5]
    assert len(told) == 2 and "step 4 is damaged and removed" in told[0]


def test_nothing_is_removed_when_what_was_just_saved_is_not_whole(tmp_path):
    save(tmp_path, 1, 2, 3)
    harm(tmp_path, 3)
    with pytest.raises(OSError, match="the checkpoint just saved is not whole, so no other one is removed"):
        prune(tmp_path, CheckpointConfig(keep_last=1), TrainState(step=3), print)
    assert list_steps(tmp_path) == [1, 2, 3]


def test_what_a_run_passed_over_is_never_taken_again(tmp_path):
    save(tmp_path, 2, 3, 4)
    whole = (checkpoint_path(tmp_path, 4) / checkpoint.MODEL).read_bytes()
    harm(tmp_path, 3, 4)
    set_aside(tmp_path, after=2)
    for path in (tmp_path / "checkpoints").glob(f"*4*/{checkpoint.MODEL}"):
        path.write_bytes(whole)  # the disk has come to its senses
    assert newest_valid(tmp_path, print) == 2
    assert names(tmp_path) == ["step-00000002", "step-00000003.damaged", "step-00000004.damaged"]
    save(tmp_path, 3)
    harm(tmp_path, 3)
    set_aside(tmp_path, after=2)  # the same step, once more
    save(tmp_path, 3)
    prune(tmp_path, CheckpointConfig(keep_last=1), TrainState(step=3), print)
    assert names(tmp_path) == ["step-00000003"]
