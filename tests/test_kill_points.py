"""A tiny training whose checkpoints are interrupted at each of their file operations in turn: killed, cut off from
power, refused by the system. Whatever happens, the run goes on from its newest checkpoint as if nothing had.
"""

import errno
import filecmp
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from storydist.data.files import sync
from storydist.training import checkpoint, writer
from storydist.training.checkpoint import Identity, TrainState, damage, read_manifest, read_tensors
from storydist.training.keep import CheckpointConfig, checkpoint_path, list_steps, newest_valid, set_aside
from storydist.training.log import METRICS, _truncate
from storydist.training.writer import CheckpointWriter
from tests.faulty_files import REMOVING, Files, KilledError, lose_power

IDENTITY = Identity(config={}, fingerprint="f", code="test")
KEEP = CheckpointConfig(keep_last=2)
FIRST, LAST = 3, 6  # the steps between are interrupted


def session(run: Path, last: int, told: list[int]) -> None:
    """Goes on from the newest checkpoint to step `last`, as the loop does: a line of metrics and a checkpoint each
    step, at even ones an evaluation and the same checkpoint again. Appends to `told` what is said to be saved.
    """
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    state = TrainState()
    newest = newest_valid(run, lambda text: None)
    if newest is not None:
        folder = checkpoint_path(run, newest)
        manifest = read_manifest(folder)
        checkpoint.restore(folder, manifest, model, optimizer, ema)
        set_aside(run, after=newest)
        state = manifest.state
    _truncate(run / METRICS, state)

    def say(text: str, shown: bool = True) -> None:
        if "saved in" in text:
            told.append(int(text.split()[1]))

    def flush() -> None:
        sync(run / METRICS)
        sync(run)

    with ExitStack() as stack:
        metrics = stack.enter_context(open(run / METRICS, "a"))
        saving = stack.enter_context(CheckpointWriter(run, KEEP, state.step, flush, say))
        if state.owes_evaluation:
            evaluate(state, saving, model, optimizer, ema)
        while state.step < last:
            model(torch.full((2, 3), state.step / 10)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            ema.update_parameters(model)
            state.step += 1
            state.samples_seen += 10
            metrics.write(json.dumps({"step": state.step, "kind": "train"}) + "\n")
            metrics.flush()
            state.owes_evaluation = state.step % 2 == 0
            saving.save(state, IDENTITY, model, optimizer, ema)
            if state.owes_evaluation:
                evaluate(state, saving, model, optimizer, ema)
        saving.finish()


def evaluate(state: TrainState, saving: CheckpointWriter, *tensors: Any) -> None:
    state.owes_evaluation = False
    if state.step == 2:
        state.best_value, state.best_step = 1.0, 2
    saving.save(state, IDENTITY, *tensors)


@pytest.fixture(autouse=True)
def no_flushing(monkeypatch):
    """It is slow, and what lacks without it is acted out."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder in memory, where there is one: thousands of files come and go."""
    shared = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=shared if os.access(shared, os.W_OK) else None))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def straight(place) -> dict[int, Path]:
    """Undisturbed runs to each step."""
    folder = place / "straight"
    runs = {step: folder / str(step) for step in range(1, LAST + 2)}
    for step, run in runs.items():
        run.mkdir(parents=True)
        session(run, step, [])
    return runs


@pytest.fixture(scope="module")
def begun(place) -> Path:
    """A run at step FIRST, its newest checkpoint damaged, with something that a killed process has left."""
    run = place / "begun"
    run.mkdir()
    session(run, FIRST, [])
    path = checkpoint_path(run, FIRST) / checkpoint.MODEL
    path.write_bytes(path.read_bytes()[:-1])
    leftover = run / "checkpoints" / ".step-00000009.tmp-1"
    leftover.mkdir()
    (leftover / checkpoint.MODEL).touch()
    return run


def interrupted(begun: Path, run: Path, files: Files) -> tuple[int, bool]:
    """A copy of `begun` that went on until `files` stopped it; the last checkpoint it told of, and whether it ended."""
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(begun, run)
    told = [FIRST - 1]
    with files.installed():
        try:
            session(run, LAST, told)
        except (OSError, KilledError):
            return told[-1], False
    return told[-1], True


def problems(run: Path, saved: int, straight: dict[int, Path]) -> list[str]:
    """What is wrong with an interrupted run that told `saved` to be its last checkpoint."""
    named = [step for step in list_steps(run) if step != FIRST]  # that one was damaged on purpose
    found = [f"step {step} has its name but {what}" for step in named if (what := damage(checkpoint_path(run, step)))]
    newest = newest_valid(run, lambda text: None)
    if newest is None or newest < saved:
        return [*found, f"step {saved} was said to be saved, the newest is {newest}"]
    folder = checkpoint_path(run, newest)
    manifest = read_manifest(folder)
    if manifest.files != read_manifest(checkpoint_path(straight[newest], newest)).files:
        found.append(f"step {newest} has not the tensors it should have")
    for name in manifest.files:
        read_tensors(folder, manifest, name)
    session(run, newest + 1, [])
    return found + [f"after going on: {what}" for what in differences(straight[newest + 1], run)]


def differences(one: Path, other: Path) -> list[str]:
    names, others = ({str(path.relative_to(run)) for path in run.rglob("*")} for run in (one, other))
    files = [name for name in names & others if (one / name).is_file()]
    return [f"only in one of both: {name}" for name in names ^ others] + [
        f"{name} differs" for name in files if not filecmp.cmp(one / name, other / name, shallow=False)
    ]


def survey(begun: Path, straight: dict[int, Path], place: Path) -> Iterator[list[str]]:
    """Interrupts ahead of every operation; yields what was found wrong at each."""
    run = place / "run"
    for number in itertools.count(1):
        files = Files(number, KilledError())
        saved, ended = interrupted(begun, run, files)
        if ended:
            return
        found, copies = [], ["killed"]
        if files.unflushed != type(files.unflushed)():
            copies += ["power lost", "power lost, renames kept"]
        for name in copies:
            copy = place / name
            shutil.copytree(run, copy)
            if name != "killed":
                lose_power(run, copy, files.unflushed, renames=name == "power lost")
            found += [f"{name} at {number}: {problem}" for problem in problems(copy, saved, straight)]
            shutil.rmtree(copy)
        yield found


def test_killed_or_without_power_at_any_operation(begun, straight, place):
    found = list(survey(begun, straight, place))
    assert [problem for problems in found for problem in problems] == []
    assert len(found) >= 100


def test_the_survey_finds_what_is_not_flushed(begun, straight, place, monkeypatch):
    monkeypatch.setattr(checkpoint, "sync", lambda path: None)
    assert "power lost" in next(filter(None, survey(begun, straight, place)))[0]


def test_the_survey_finds_a_step_that_is_moved_away_to_be_written_again(begun, straight, place, monkeypatch):
    def write_again(folder: Path, *content: Any) -> None:
        aside = folder.rename(folder.with_name(".step-aside"))
        checkpoint.write_state(aside, *content)
        aside.rename(folder)

    monkeypatch.setattr(writer, "write_state", write_again)
    first = next(filter(None, survey(begun, straight, place)))
    assert "step 4 was said to be saved, the newest is 3" in first[0]


@pytest.mark.parametrize(
    ("error", "once", "stride"),
    [(errno.ENOSPC, False, 1), (errno.EIO, True, 2), (errno.EROFS, False, 9)],
    ids=["full disk", "one failure", "read-only"],
)
def test_refused_at_any_operation(begun, straight, place, error, once, stride):
    found: list[str] = []
    for number in itertools.count(1, stride):
        files = Files(number, OSError(error, os.strerror(error)), once)
        saved, ended = interrupted(begun, place / "run", files)
        if ended and set(files.refused) - set(REMOVING):  # what cannot be removed now is removed another time
            found.append(f"at {number}: nobody was told")
        found += [f"at {number}: {problem}" for problem in problems(place / "run", saved, straight)]
        if files.count < number:
            break
    assert found == []
