"""Checkpoints: written beside, flushed, hashed in a manifest, renamed. What has a name is whole.

    RUN/checkpoints/step-00000200/
        model.safetensors       weights
        ema.safetensors         their moving average, where the run keeps one
        optimizer.safetensors   `<parameter>.<moment>`
        state.json              step, samples seen, ... ; what they were made with
        manifest.json           SHA-256 of each of the above

Nothing is unpickled on loading. A folder whose manifest does not hold is named and passed over.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from pydantic import Field
from torch import Tensor, nn

from storydist.data.files import sha256_file, sync
from storydist.settings import Settings

FOLDER = "checkpoints"
MODEL, EMA, OPTIMIZER, STATE, MANIFEST = (
    "model.safetensors",
    "ema.safetensors",
    "optimizer.safetensors",
    "state.json",
    "manifest.json",
)
# May differ between a checkpoint and the run that resumes it: where, when and how fast, which changes rounding at most.
FREE_KEYS = (
    *(
        "run.",
        "checkpoint.",
        "data.shards",
        "data.threads",
        "data.prefetch",
        "data.verify",
        "data.cache",
        "data.max_skipped",
    ),
    *("train.threads", "train.device", "train.strategy", "train.log_every", "train.save_every", "train.evaluate_every"),
)


class CheckpointConfig(Settings):
    """Which checkpoints are kept."""

    keep_last: int = Field(2, ge=1)
    keep_best: bool = Field(True, description="keep the one that judged best, besides")
    best_metric: str = Field("text R@10", description="of the validation split; where its head is off, none is best")


@dataclass
class TrainState:
    """Where a run stands. samples_seen counts what the optimizer consumed, over all ranks."""

    step: int = 0
    samples_seen: int = 0
    best_value: float | None = None
    best_step: int | None = None
    skipped_steps: int = 0  # updates that fp16 loss scaling left out
    skipped_in_a_row: int = 0  # of them, since the last that was made
    skipped_samples: int = 0  # how often a sample could not be used, over all ranks
    quarantine: list[dict[str, Any]] = field(default_factory=list)  # those samples, each once
    owes_evaluation: bool = False  # the evaluation of this step is due and not yet made
    scaler: dict[str, float] = field(default_factory=dict)
    interval: list[list[float]] = field(default_factory=list)  # (sum, count) of each loss since the last logged line


@dataclass(frozen=True)
class Identity:
    """What a checkpoint belongs to: a resumed run has to agree with it."""

    config: dict[str, Any]
    fingerprint: str  # of the shard index
    code: str  # version and commit, told but not compared


def checkpoint_path(run: Path, step: int) -> Path:
    return run / FOLDER / f"step-{step:08d}"


def list_steps(run: Path) -> list[int]:
    """Steps of which there is a checkpoint folder, ascending, valid or not."""
    return sorted(int(path.name[5:]) for path in (run / FOLDER).glob("step-*") if path.name[5:].isdigit())


def save(
    run: Path,
    state: TrainState,
    identity: Identity,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: nn.Module | None,
) -> Path:
    """Writes the checkpoint of `state.step`; returns its folder, replacing one that exists. One process calls this."""
    final = checkpoint_path(run, state.step)
    beside = final.with_name(f".{final.name}.tmp-{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        safetensors.torch.save_file(_weights(model), beside / MODEL)
        if ema is not None:
            safetensors.torch.save_file(_weights(ema), beside / EMA)
        safetensors.torch.save_file(_moments(model, optimizer), beside / OPTIMIZER)
        (beside / STATE).write_text(json.dumps({"state": asdict(state), "identity": asdict(identity)}, indent=1))
        names = sorted(path.name for path in beside.iterdir())
        (beside / MANIFEST).write_text(json.dumps({name: sha256_file(beside / name) for name in names}, indent=1))
        for name in (*names, MANIFEST):
            sync(beside / name)
        sync(beside)
        aside = final.with_name(f".{final.name}.old-{os.getpid()}")
        if final.exists():
            final.rename(aside)
        beside.rename(final)
        sync(final.parent)
        shutil.rmtree(aside, ignore_errors=True)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    return final


def prune(run: Path, config: CheckpointConfig, state: TrainState) -> None:
    """Removes all checkpoints but the last ones and the best one.

    Those behind `state.step`, which was just saved, were damaged or the run would have gone on from them: they go too.
    """
    kept = set([step for step in list_steps(run) if step <= state.step][-config.keep_last :])
    if config.keep_best and state.best_step is not None:
        kept.add(state.best_step)
    for step in set(list_steps(run)) - kept:
        shutil.rmtree(checkpoint_path(run, step))
    for leftover in (*(run / FOLDER).glob(".step-*.tmp-*"), *(run / FOLDER).glob(".step-*.old-*")):
        shutil.rmtree(leftover, ignore_errors=True)


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None when every file is there and hashes to what the manifest says."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        for name, digest in manifest.items():
            if sha256_file(folder / name) != digest:
                return f"{folder / name} does not hash to what {MANIFEST} says"
        if not {MODEL, OPTIMIZER, STATE} <= set(manifest):
            return f"{folder / MANIFEST} does not list all files"
    except (OSError, ValueError, AttributeError) as error:
        return f"{folder}: {error}"
    return None


def newest_valid(run: Path, report: Callable[[str], None]) -> int | None:
    """Step of the newest whole checkpoint, or None when there is none; every damaged one met on the way is reported."""
    for step in reversed(list_steps(run)):
        problem = damage(checkpoint_path(run, step))
        if problem is None:
            return step
        report(f"checkpoint step {step} is damaged and passed over: {problem}")
    return None


def read_state(folder: Path) -> tuple[TrainState, Identity]:
    """What state.json says."""
    content = json.loads((folder / STATE).read_text())
    return TrainState(**content["state"]), Identity(**content["identity"])


def require_same(found: Identity, wanted: Identity, allow_change: tuple[str, ...], folder: Path) -> None:
    """Raises ValueError naming every setting in which a resumed run would differ from its checkpoint."""
    old, new = flatten(found.config), flatten(wanted.config)
    differing = [
        key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key) and not key.startswith(FREE_KEYS)
    ]
    problems = [f"{key} was {old.get(key)!r}, is {new.get(key)!r}" for key in differing if key not in allow_change]
    if found.fingerprint != wanted.fingerprint and "fingerprint" not in allow_change:
        problems.append(f"fingerprint of the shards was {found.fingerprint[:12]}, is {wanted.fingerprint[:12]}")
    if problems:
        raise ValueError(
            f"{folder} was made with other settings: {'; '.join(problems)}; "
            "give the former values, or allow each by name with --allow-change KEY"
        )


def restore(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, ema: nn.Module | None) -> None:
    """Loads weights, moments and moving average in place. Raises ValueError when they do not fit the model."""
    load_weights(folder / MODEL, model)
    if ema is not None:
        load_weights(folder / EMA, ema)
    moments = safetensors.torch.load_file(folder / OPTIMIZER)
    for name, parameter in model.named_parameters():
        state = {
            key: moments.pop(f"{name}.{key}") for key in ("step", "exp_avg", "exp_avg_sq") if f"{name}.{key}" in moments
        }
        if state:
            # AdamW keeps its step counter on the CPU and the moments beside the weights.
            optimizer.state[parameter] = {
                key: value if key == "step" else value.to(parameter.device) for key, value in state.items()
            }
    if moments:
        raise ValueError(
            f"{folder / OPTIMIZER} has moments of unknown parameters ({next(iter(moments))}); the model was another"
        )


def load_weights(path: Path, model: nn.Module) -> None:
    """Loads a safetensors file. Raises ValueError naming the file when it does not fit."""
    try:
        stored = safetensors.torch.load_file(path)
        model.load_state_dict({name: stored[first] for name, first in _first_names(model).items() if first in stored})
    except (RuntimeError, safetensors.SafetensorError) as error:
        raise ValueError(f"{path} does not fit the model: {' '.join(str(error).split())[:300]}") from None
    unknown = stored.keys() - set(_first_names(model).values())
    if unknown:
        raise ValueError(f"{path} does not fit the model: it also holds {', '.join(sorted(unknown)[:5])}")


def _first_names(model: nn.Module) -> dict[str, str]:
    """{name: the first name of the same tensor}: an embedding that several parts share is stored once.

    (safetensors' own `save_model` does that too, but lists the names in a random order, so equal weights would differ
    in their files.)
    """
    first: dict[int, str] = {}
    return {name: first.setdefault(tensor.data_ptr(), name) for name, tensor in model.state_dict().items()}


def _weights(model: nn.Module) -> dict[str, Tensor]:
    tensors = model.state_dict()
    return {name: tensors[name].contiguous().cpu() for name in sorted(set(_first_names(model).values()))}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{dotted key: value} of nested settings."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def _moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    states = optimizer.state
    return {
        f"{name}.{key}": value.detach().contiguous().cpu()
        for name, parameter in model.named_parameters()
        for key, value in states.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }
