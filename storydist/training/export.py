"""What is taken out of a run's checkpoints: a table of them, one file of weights, a mean of several."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from storydist.command import message_of
from storydist.data.files import make_folder, sync
from storydist.training.checkpoint import (
    EMA,
    MODEL,
    OPTIMIZER,
    Identity,
    read_manifest,
    read_tensors,
    write_tensors,
)
from storydist.training.keep import checkpoint_path, list_steps, pick, problem_of

AVERAGED = "module."  # what torch's AveragedModel puts before the name of each weight


@dataclass(frozen=True)
class Facts:
    """A checkpoint as a table shows it."""

    step: int
    problem: str | None  # None: whole
    num_bytes: int
    is_best: bool
    age_s: float


def survey(run: Path) -> list[Facts]:
    """Every checkpoint of a run, read and hashed, ascending. Raises FileNotFoundError when there is none."""
    facts = []
    best = None
    for step in list_steps(run):
        folder = checkpoint_path(run, step)
        try:
            files = [path.stat() for path in folder.iterdir()]
        except FileNotFoundError:  # the run has just removed it
            continue
        problem = _problem(run, step)
        if problem is None:
            best = read_manifest(folder).state.best_step  # the newest whole one knows best
        age_s = time.time() - max((file.st_mtime for file in files), default=folder.stat().st_mtime)
        facts.append(Facts(step, problem, sum(file.st_size for file in files), False, age_s))
    if not facts:
        raise FileNotFoundError(f"{run} has no checkpoints")
    return [replace(found, is_best=found.step == best) for found in facts]


def table(checkpoints: Sequence[Facts]) -> str:
    """A line for each checkpoint, under a heading."""
    rows = [("step", "size", "age", "", "")]
    for facts in checkpoints:
        size, best = f"{facts.num_bytes / 1e6:.1f} MB", "best" if facts.is_best else ""
        rows.append((str(facts.step), size, _told(facts.age_s), best, facts.problem or "whole"))
    return "\n".join(
        f"{step:>9} {size:>12} {age:>9}  {best:4}  {state}".rstrip() for step, size, age, best, state in rows
    )


def _told(seconds: float) -> str:
    for unit, length_s in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length_s:
            return f"{seconds / length_s:.0f} {unit}"
    return f"{seconds:.0f} s"


def _problem(run: Path, step: int) -> str | None:
    try:
        return problem_of(run, step)
    except (ValueError, OSError) as error:  # of another version; not readable
        return message_of(error)


def export(run: Path, which: str, out: Path, ema: bool) -> int:
    """Writes the weights of the "latest" or "best" checkpoint, or of a step, as one safetensors file; returns the step.

    `ema`: the moving average in their place, under the model's own names. The file's metadata tell step, settings and
    data, as JSON under "storydist". Raises FileNotFoundError, ValueError when there is no such checkpoint, it is
    damaged, or it has no average.
    """
    step, _ = pick(run, which)
    folder = checkpoint_path(run, step)
    manifest = read_manifest(folder)
    if ema and EMA not in manifest.files:
        raise ValueError(f"{folder} has no moving average of the weights (optim.ema_decay was 0)")
    tensors = _read(folder, EMA if ema else MODEL)
    if ema:
        # AveragedModel's own counter is no weight.
        tensors = {n.removeprefix(AVERAGED): tensor for n, tensor in tensors.items() if n.startswith(AVERAGED)}
    _write(out, tensors, manifest.identity, {"step": step, "weights": "moving average" if ema else "weights"})
    return step


def average(run: Path, steps: Sequence[int], out: Path) -> None:
    """Writes the mean of the weights of several steps, taken in float64 and rounded once.

    What was not trained (buffers, frozen weights) has to be the same in all of them. Raises ValueError naming the
    tensor that differs, or the step that is damaged or named twice; FileNotFoundError when a step is not there.
    """
    if len(set(steps)) < max(2, len(steps)):
        raise ValueError(f"a mean needs two or more steps, each named once, found {' '.join(map(str, steps))}")
    folders = [checkpoint_path(run, pick(run, step)[0]) for step in steps]
    trained = set[str]().union(*map(_trained, folders))
    first = _read(folders[0], MODEL)
    sums = {name: first[name].double() for name in first.keys() & trained}
    for folder in folders[1:]:
        tensors = _read(folder, MODEL)
        _require_alike(first, tensors, trained, f"{folders[0]} and {folder}")
        for name in sums:
            sums[name] += tensors[name].double()
    mean = {name: (total / len(steps)).to(first[name].dtype) for name, total in sums.items()}
    identity = read_manifest(folders[0]).identity
    _write(out, first | mean, identity, {"steps": list(steps), "weights": "mean"})


def _read(folder: Path, name: str) -> dict[str, Tensor]:
    return read_tensors(folder, read_manifest(folder), name)


def _trained(folder: Path) -> set[str]:
    """Names of the weights that the optimizer keeps moments of."""
    return {name.rpartition(".")[0] for name in _read(folder, OPTIMIZER)}


def _require_alike(one: Mapping[str, Tensor], other: Mapping[str, Tensor], trained: set[str], places: str) -> None:
    """Raises ValueError where two sets of weights have no mean."""
    for name in sorted(one.keys() | other.keys()):
        if name not in one or name not in other:
            raise ValueError(f"{places}: only one of them has {name}")
        if (one[name].shape, one[name].dtype) != (other[name].shape, other[name].dtype):
            raise ValueError(f"{places}: {name} is of another shape or type")
        if name not in trained and not torch.equal(one[name], other[name]):
            raise ValueError(f"{places}: {name} was not trained and yet differs, so it has no mean")


def _write(out: Path, tensors: Mapping[str, Tensor], identity: Identity, told: Mapping[str, Any]) -> None:
    # One entry, because safetensors writes several in a random order.
    metadata = {"storydist": json.dumps({**told, **asdict(identity)})}
    make_folder(out.parent)
    beside = out.with_name(f".{out.name}.tmp-{os.getpid()}")
    try:
        write_tensors(beside, tensors, metadata)
        beside.replace(out)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync(out.parent)
