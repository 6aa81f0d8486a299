"""One checkpoint: written beside, flushed, hashed in a manifest, renamed. What has a name is whole.

    RUN/checkpoints/step-00000200/
        model.safetensors       weights
        ema.safetensors         their moving average, where the run keeps one
        optimizer.safetensors   `<parameter>.<moment>`
        manifest.json           size and SHA-256 of each of the above; where the run stood and what it was made with;
                                SHA-256 of itself

Nothing is unpickled on loading, and no byte is used that was not hashed. All that may change once the tensors are
written stands in the manifest, so saving a step again (its evaluation has been made since) replaces one file.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from torch import Tensor, nn

from storydist.command import message_of
from storydist.data.files import make_folder, sha256_file, sync, write_atomic

MODEL, EMA, OPTIMIZER = "model.safetensors", "ema.safetensors", "optimizer.safetensors"
MANIFEST = "manifest.json"
FORMAT = 1  # of the manifest
# What a disk says of a file that is gone or broken. Others (no permission, a stale handle, no memory) prove nothing.
BROKEN = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO, errno.EUCLEAN, errno.EBADMSG)

Tensors = dict[str, dict[str, Tensor]]  # {file of a checkpoint: {name: tensor}}
Section = TypeVar("Section", "TrainState", "Identity")


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


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says of itself."""

    files: dict[str, tuple[int, str]]  # {name: (bytes, SHA-256)}
    state: TrainState
    identity: Identity
    sha256: str  # of all of the above


class DamagedCheckpointError(ValueError):
    """A checkpoint is not what was written: a file is missing, cut or changed."""


def write(folder: Path, state: TrainState, identity: Identity, tensors: Tensors) -> None:
    """Writes a checkpoint, which appears under its name when it is whole and on the disk.

    `folder` must not exist; one process calls this. Raises OSError when it cannot be written; nothing is left behind
    then.
    """
    make_folder(folder.parent)
    beside = folder.with_name(f".{folder.name}.tmp-{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir()
        files = {}
        for name, content in tensors.items():
            write_tensors(beside / name, content)
            files[name] = ((beside / name).stat().st_size, sha256_file(beside / name))
        write_atomic(beside / MANIFEST, _manifest_text(files, state, identity))  # flushes the folder's entries too
        beside.rename(folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    sync(folder.parent)


def write_state(folder: Path, state: TrainState, identity: Identity) -> None:
    """Replaces where the run stood in a checkpoint whose tensors are still those of the run. It is whole at any moment.

    Raises OSError when it cannot be written, DamagedCheckpointError when the manifest is not what was written.
    """
    write_atomic(folder / MANIFEST, _manifest_text(read_manifest(folder).files, state, identity))


def read_manifest(folder: Path) -> Manifest:
    """What the checkpoint says of itself; its tensors are not looked at.

    Raises DamagedCheckpointError, OSError when it cannot be read, and ValueError for an intact one of another version.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_bytes())
        sha256 = content.pop("sha256")
    except (ValueError, AttributeError, KeyError, TypeError):
        raise DamagedCheckpointError(f"{path} is no manifest of a checkpoint") from None
    if _digest(content) != sha256:
        raise DamagedCheckpointError(f"{path} does not hash to what it says itself")
    if content.get("format") != FORMAT:
        raise ValueError(f"{path} has format {content.get('format')}, this version of storydist reads {FORMAT}")
    files = {name: (facts["bytes"], facts["sha256"]) for name, facts in content["files"].items()}
    if not {MODEL, OPTIMIZER} <= files.keys() or any(Path(name).name != name for name in files):
        raise DamagedCheckpointError(f"{path} lists {', '.join(sorted(files))}; needed {MODEL} and {OPTIMIZER}")
    writer = content["identity"].get("code", "another version")
    state = _section(TrainState, content["state"], f"{path}: state", writer)
    return Manifest(files, state, _section(Identity, content["identity"], f"{path}: identity", writer), sha256)


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None when every file is there and hashes to what the manifest says.

    Raises ValueError for an intact one of another version, OSError when it cannot be read and may well be whole.
    """
    try:
        for name, (num_bytes, sha256) in read_manifest(folder).files.items():
            found_bytes = (folder / name).stat().st_size
            if found_bytes != num_bytes:
                return f"{folder / name} has {found_bytes} bytes, {MANIFEST} says {num_bytes}"
            if sha256_file(folder / name) != sha256:
                return f"{folder / name} does not hash to what {MANIFEST} says"
    except DamagedCheckpointError as error:
        return str(error)
    except OSError as error:
        if error.errno not in BROKEN:
            raise
        return message_of(error)
    return None


def read_tensors(folder: Path, manifest: Manifest, name: str) -> dict[str, Tensor]:
    """The tensors of one file, from the very bytes that were hashed. Raises DamagedCheckpointError, OSError."""
    data = (folder / name).read_bytes()
    if (len(data), hashlib.sha256(data).hexdigest()) != manifest.files[name]:
        raise DamagedCheckpointError(f"{folder / name} does not hash to what {MANIFEST} says")
    return safetensors.torch.load(data)


def live_tensors(model: nn.Module, optimizer: torch.optim.Optimizer, ema: nn.Module | None) -> Tensors:
    """The tensors of a checkpoint as they lie in memory, not copied."""
    tensors = {MODEL: _weights(model), OPTIMIZER: _moments(model, optimizer)}
    return tensors if ema is None else tensors | {EMA: _weights(ema)}


def restore(
    folder: Path, manifest: Manifest, model: nn.Module, optimizer: torch.optim.Optimizer, ema: nn.Module | None
) -> None:
    """Loads weights, moments and moving average in place; an average that the checkpoint lacks begins at its weights.

    Raises ValueError when they do not fit the model, DamagedCheckpointError, OSError.
    """
    load_weights(read_tensors(folder, manifest, MODEL), model, folder / MODEL)
    if ema is not None and EMA in manifest.files:
        load_weights(read_tensors(folder, manifest, EMA), ema, folder / EMA)
    elif ema is not None:
        ema.module.load_state_dict(model.state_dict())  # type: ignore[union-attr]
    moments = read_tensors(folder, manifest, OPTIMIZER)
    for name, parameter in model.named_parameters():
        state = {
            key: moments.pop(f"{name}.{key}") for key in ("step", "exp_avg", "exp_avg_sq") if f"{name}.{key}" in moments
        }
        if any(key != "step" and value.shape != parameter.shape for key, value in state.items()):
            raise ValueError(
                f"{folder / OPTIMIZER} does not fit the model: moments of {name} are not of shape "
                f"{list(parameter.shape)}"
            )
        if state:
            # AdamW keeps its step counter on the CPU and the moments beside the weights.
            optimizer.state[parameter] = {
                key: value if key == "step" else value.to(parameter.device) for key, value in state.items()
            }
    if moments:
        raise ValueError(
            f"{folder / OPTIMIZER} has moments of unknown parameters ({next(iter(moments))}); the model was another"
        )


def load_weights(stored: Mapping[str, Tensor], model: nn.Module, path: Path) -> None:
    """Loads weights in place; `path` is where they come from. Raises ValueError, before anything is loaded, that names
    each tensor which does not fit.
    """
    first_names, wanted = _first_names(model), model.state_dict()
    problems = [f"{name} is not in the model" for name in sorted(stored.keys() - set(first_names.values()))]
    for name in sorted(set(first_names.values())):
        if name not in stored:
            problems.append(f"{name} is missing")
        elif _kind(stored[name]) != _kind(wanted[name]):
            problems.append(f"{name} is {_kind(stored[name])}, in the model {_kind(wanted[name])}")
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(f"{path} does not fit the model: {'; '.join(problems[:5])}{more}")
    model.load_state_dict({name: stored[first] for name, first in first_names.items()})


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _first_names(model: nn.Module) -> dict[str, str]:
    """{name: the first name of the same tensor}: an embedding that several parts share is stored once.

    (safetensors' own `save_model` does that too, but lists the names in a random order, so equal weights would differ
    in their files.)
    """
    first: dict[object, str] = {}
    return {
        name: first.setdefault((t.data_ptr(), t.shape, t.stride(), t.dtype) if t.numel() else name, name)
        for name, t in model.state_dict().items()
    }


def _weights(model: nn.Module) -> dict[str, Tensor]:
    tensors = model.state_dict()
    return {name: tensors[name] for name in sorted(set(_first_names(model).values()))}


def _moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    states = optimizer.state
    return {
        f"{name}.{key}": value.detach()
        for name, parameter in model.named_parameters()
        for key, value in states.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file and flushes it. Raises OSError when it cannot be written."""
    try:
        plain = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        safetensors.torch.save_file(plain, path, dict(metadata) if metadata else None)
        sync(path)
    except safetensors.SafetensorError as error:  # what it makes of a full disk
        raise OSError(f"{path} could not be written: {error}") from None


def _manifest_text(files: Mapping[str, tuple[int, str]], state: TrainState, identity: Identity) -> bytes:
    content: dict[str, Any] = {
        "format": FORMAT,
        "files": {name: {"bytes": num_bytes, "sha256": sha256} for name, (num_bytes, sha256) in files.items()},
        "state": asdict(state),
        "identity": asdict(identity),
    }
    content = json.loads(json.dumps(content))  # what a reader will hash
    return json.dumps(content | {"sha256": _digest(content)}, indent=1).encode()


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _section(kind: type[Section], values: dict[str, Any], place: str, writer: str) -> Section:
    """Raises ValueError naming the fields in which another version of the code differs."""
    known = {f.name for f in fields(kind)}
    found = [f"has {', '.join(sorted(values.keys() - known))}, unknown here"] if values.keys() - known else []
    found += [f"lacks {', '.join(sorted(known - values.keys()))}"] if known - values.keys() else []
    if found:
        raise ValueError(f"{place} {' and '.join(found)}; it was written by {writer}: go on with that version")
    return kind(**values)
