"""Checkpoints are written beside the loop, one at a time, and no error is lost."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from storydist.training import checkpoint
from storydist.training.checkpoint import TrainState, damage, read_manifest
from storydist.training.keep import CheckpointConfig, checkpoint_path, list_steps
from storydist.training.writer import CheckpointWriter, HostCopies
from tests.test_checkpoint import IDENTITY, trained


class Loop:
    """What a loop has: a model that trains on while its checkpoints are written. `gate` holds the writing back."""

    def __init__(self, run: Path):
        self.run, self.told, self.gate = run, list[str](), threading.Event()
        self.model, self.optimizer = trained()
        self.state = TrainState(step=2)
        self.gate.set()

    def writer(self) -> CheckpointWriter:
        return CheckpointWriter(self.run, CheckpointConfig(keep_last=9), 0, self.flush, self.say)

    def flush(self) -> None:
        assert self.gate.wait(60)

    def say(self, text: str, shown: bool = True) -> None:
        self.told.append(text)

    def save(self, writer: CheckpointWriter) -> None:
        writer.save(self.state, IDENTITY, self.model, self.optimizer, None)

    def step(self) -> None:
        self.model(torch.ones(2, 3)).sum().backward()
        self.optimizer.step()
        self.state.step += 1
        self.state.interval.append([1.0, 1.0])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def block(run: Path) -> None:
    """No checkpoint can be written: their folder is a file."""
    run.mkdir(exist_ok=True)
    (run / "checkpoints").touch()


def test_what_is_written_is_what_was_there_when_it_was_asked_for(tmp_path):
    loop = Loop(tmp_path / "beside")
    tensors = checkpoint.live_tensors(loop.model, loop.optimizer, None)
    checkpoint.write(tmp_path / "plain", loop.state, IDENTITY, tensors)
    loop.gate.clear()
    with loop.writer() as writer:
        loop.save(writer)
        loop.step()
        loop.gate.set()
    assert contents(checkpoint_path(loop.run, 2)) == contents(tmp_path / "plain")


def test_a_checkpoint_exists_and_is_told_only_when_it_is_whole(tmp_path):
    loop = Loop(tmp_path)
    loop.gate.clear()
    with loop.writer() as writer:
        loop.save(writer)
        assert (loop.told, list_steps(tmp_path)) == ([], [])
        loop.gate.set()
        writer.finish()
        assert loop.told[0].startswith("step 2 saved in ") and list_steps(tmp_path) == [2]


def test_a_second_one_waits_for_the_first_and_says_how_long(tmp_path):
    loop = Loop(tmp_path)
    loop.gate.clear()
    release = threading.Timer(0.2, loop.gate.set)
    with loop.writer() as writer:
        loop.save(writer)
        loop.step()
        release.start()
        loop.save(writer)
        assert list_steps(tmp_path) == [2]
    waited = [float(text.split("waited ")[1].split()[0]) for text in loop.told]
    assert waited[0] < 0.1 < waited[1]
    assert [damage(checkpoint_path(tmp_path, step)) for step in list_steps(tmp_path)] == [None, None]


def test_an_error_is_raised_by_the_next_save(tmp_path):
    loop = Loop(tmp_path)
    block(tmp_path)
    with pytest.raises(FileExistsError, match="checkpoints"), loop.writer() as writer:
        loop.save(writer)
        loop.step()
        loop.save(writer)


@pytest.mark.parametrize("end", [lambda writer: writer.finish(), lambda writer: None], ids=["finish", "leaving"])
def test_an_error_is_raised_at_the_end(tmp_path, end: Callable[[CheckpointWriter], None]):
    loop = Loop(tmp_path)
    block(tmp_path)
    with pytest.raises(FileExistsError), loop.writer() as writer:
        loop.save(writer)
        end(writer)


def test_an_error_beside_another_is_told(tmp_path):
    loop = Loop(tmp_path)
    block(tmp_path)
    with pytest.raises(FloatingPointError), loop.writer() as writer:
        loop.save(writer)
        raise FloatingPointError
    assert loop.told == [f"the last checkpoint was not written: {tmp_path / 'checkpoints'}: File exists"]


def test_leaving_by_an_error_waits_for_the_checkpoint(tmp_path):
    loop = Loop(tmp_path)
    loop.gate.clear()
    threading.Timer(0.2, loop.gate.set).start()
    with pytest.raises(KeyboardInterrupt), loop.writer() as writer:
        loop.save(writer)
        raise KeyboardInterrupt
    assert damage(checkpoint_path(tmp_path, 2)) is None


def test_a_step_that_is_saved_already_only_gets_its_state(tmp_path):
    loop = Loop(tmp_path)
    with loop.writer() as writer:
        loop.save(writer)
        writer.finish()
        before = (checkpoint_path(tmp_path, 2) / checkpoint.MODEL).stat().st_mtime_ns
        loop.state.best_step = 2
        loop.save(writer)
    folder = checkpoint_path(tmp_path, 2)
    assert damage(folder) is None and read_manifest(folder).state.best_step == 2
    assert (folder / checkpoint.MODEL).stat().st_mtime_ns == before


def test_copies_lie_in_the_same_memory_each_time():
    model = nn.Linear(3, 3)
    copies = HostCopies()
    tensors = checkpoint.live_tensors(model, torch.optim.AdamW(model.parameters()), None)
    first = copies.copy(tensors)[checkpoint.MODEL]["weight"]
    with torch.no_grad():
        model.weight.fill_(1)
    assert not torch.equal(first, model.weight)
    second = copies.copy(tensors)[checkpoint.MODEL]["weight"]
    assert torch.equal(second, model.weight) and first.data_ptr() == second.data_ptr()


@pytest.mark.gpu
def test_copies_of_a_gpu_s_tensors_are_whole_when_they_are_handed_over():
    big = {"file": {"big": torch.ones(1 << 26, device="cuda")}}
    copies = HostCopies()
    for value in range(3):
        big["file"]["big"].fill_(value)
        assert (copies.copy(big)["file"]["big"] == value).all()
