"""The checkpoints of a run: which there are, which is taken, which are kept."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from pydantic import Field

from storydist.data.files import sync
from storydist.settings import Settings
from storydist.training.checkpoint import TrainState, damage, read_manifest

FOLDER = "checkpoints"


class CheckpointConfig(Settings):
    """Which checkpoints are kept."""

    keep_last: int = Field(2, ge=1)
    keep_best: bool = Field(True, description="keep the one that judged best, besides")
    best_metric: str = Field("text R@10", description="of the validation split; where its head is off, none is best")


def checkpoint_path(run: Path, step: int) -> Path:
    return run / FOLDER / f"step-{step:08d}"


def list_steps(run: Path) -> list[int]:
    """Steps of which there is a checkpoint folder, ascending, valid or not."""
    names = [path.name for path in (run / FOLDER).glob("step-*")]
    return sorted(int(name[5:]) for name in names if re.fullmatch(r"step-([0-9]{8}|[1-9][0-9]{8,})", name))


def require_free(run: Path) -> None:
    """Raises ValueError when a folder already holds a run that a new one would mix with."""
    steps = list_steps(run)
    if steps:
        raise ValueError(
            f"{run} already holds a run at step {steps[-1]}; add --resume to go on, or choose another run.dir"
        )


def problem_of(run: Path, step: int) -> str | None:
    """What is wrong with the checkpoint of a step, or None. Raises as storydist.training.checkpoint.damage."""
    folder = checkpoint_path(run, step)
    problem = damage(folder)
    if problem is None and (found := read_manifest(folder).state.step) != step:
        return f"{folder} holds step {found}"  # a folder that was renamed
    return problem


def newest_valid(run: Path, report: Callable[[str], None]) -> int | None:
    """Step of the newest whole checkpoint, or None when there is none; every damaged one met on the way is reported.

    Raises ValueError for an intact one of another version, OSError for one that cannot be read now: these are not for
    passing over.
    """
    for step in reversed(list_steps(run)):
        problem = problem_of(run, step)
        if problem is None:
            return step
        report(f"checkpoint step {step} is damaged and passed over: {problem}")
    return None


def pick(run: Path, which: str | int) -> tuple[int, list[str]]:
    """The step of the "latest" or "best" checkpoint, or of a number; and what is damaged beside it.

    Raises FileNotFoundError when there is none, ValueError when it is damaged or nothing was judged.
    """
    notes: list[str] = []
    newest = newest_valid(run, notes.append)
    if newest is None:
        raise FileNotFoundError("; ".join([f"{run} has no whole checkpoint", *notes]))
    if which == "latest":
        return newest, notes
    if which == "best":
        best = read_manifest(checkpoint_path(run, newest)).state.best_step
        if best is None:
            raise ValueError(f"{run} was never judged while it trained (train.evaluate_every), so none is best")
        which = best
    if not str(which).isdecimal():
        raise ValueError(f"checkpoint {which!r} is neither latest nor best nor a step")
    step, steps = int(which), list_steps(run)
    if step not in steps:
        raise FileNotFoundError(f"{run} has no checkpoint of step {step}; it has {', '.join(map(str, steps))}")
    problem = problem_of(run, step)
    if problem:
        raise ValueError(f"checkpoint step {step} is damaged: {problem}")
    return step, notes


def set_aside(run: Path, after: int) -> None:
    """Renames the checkpoints behind the step `after`, from which a run goes on: they were damaged, and must not be
    taken for its own should they ever be readable again. The next save removes them.
    """
    for step in list_steps(run):
        if step > after:
            path = checkpoint_path(run, step)
            aside = path.with_name(f"{path.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)


def prune(run: Path, config: CheckpointConfig, state: TrainState, report: Callable[[str], None]) -> None:
    """Removes all checkpoints but the last whole ones and the best one, and what killed runs have left.

    Every checkpoint that is counted as one of the last is read again first. Raises OSError, and removes nothing, when
    that of `state.step`, which was just saved, is not whole.
    """
    steps = list_steps(run)
    best = {state.best_step} if config.keep_best and state.best_step is not None else set()
    if set(steps) - best - set(steps[-config.keep_last :]) or steps[-1:] != [state.step]:
        kept = _last_whole(run, config.keep_last, state.step, report) | best
        for step in set(steps) - kept:
            path = checkpoint_path(run, step)
            # Whatever interrupts the removal must leave no half of a checkpoint under its name.
            path.rename(path.with_name(f".{path.name}.removed-{os.getpid()}"))
        sync(run / FOLDER)
    for pattern in (".step-*", "step-*.damaged"):
        for leftover in (run / FOLDER).glob(pattern):
            shutil.rmtree(leftover, ignore_errors=True)
    for leftover in (run / FOLDER).glob("step-*/.*.tmp-*"):
        leftover.unlink(missing_ok=True)


def _last_whole(run: Path, count: int, newest: int, report: Callable[[str], None]) -> set[int]:
    problem = problem_of(run, newest)
    if problem:
        raise OSError(f"the checkpoint just saved is not whole, so no other one is removed: {problem}")
    kept = {newest}
    for step in reversed([step for step in list_steps(run) if step < newest]):
        if len(kept) == count:
            break
        problem = problem_of(run, step)
        if problem:
            report(f"checkpoint step {step} is damaged and removed: {problem}")
        else:
            kept.add(step)
    return kept
