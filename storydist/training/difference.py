"""Where two runs that should have ended the same first differ, bit for bit."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from storydist.training.checkpoint import EMA, MANIFEST, MODEL, OPTIMIZER, Manifest, read_manifest, read_tensors
from storydist.training.keep import checkpoint_path, list_steps
from storydist.training.log import MEASURED, METRICS


def first_difference(one: Path, other: Path) -> str | None:
    """Names file, tensor or key, place and both values; None when weights, moving average, moments, state and lines of
    metrics of the last checkpoint are the same. What a clock or the machine's memory says is left out.

    Raises FileNotFoundError when a run has no checkpoint, DamagedCheckpointError when it is not whole.
    """
    steps = [list_steps(run)[-1:] for run in (one, other)]
    for run, found in zip((one, other), steps, strict=True):
        if not found:
            raise FileNotFoundError(f"{run} has no checkpoints")
    if steps[0] != steps[1]:
        return f"last checkpoint: step {steps[0][0]} and step {steps[1][0]}"
    folders = [checkpoint_path(run, steps[0][0]) for run in (one, other)]
    manifests = [read_manifest(folder) for folder in folders]
    return (
        _file_difference(folders, manifests)
        or _key_difference(MANIFEST, *({"state": asdict(manifest.state)} for manifest in manifests))
        or _line_difference(one / METRICS, other / METRICS)
    )


def _file_difference(folders: list[Path], manifests: list[Manifest]) -> str | None:
    files = [manifest.files.keys() for manifest in manifests]
    for name in (MODEL, EMA, OPTIMIZER, *sorted(files[0] ^ files[1])):
        if name not in files[0] and name not in files[1]:
            continue
        if name not in files[0] or name not in files[1]:
            return f"{name}: only one run has it"
        tensors = [read_tensors(folder, manifest, name) for folder, manifest in zip(folders, manifests, strict=True)]
        for key in sorted(tensors[0].keys() | tensors[1].keys()):
            if key not in tensors[0] or key not in tensors[1]:
                return f"{name}: {key}: only one run has it"
            found = _tensor_difference(tensors[0][key], tensors[1][key])
            if found:
                return f"{name}: {key}{found}"
    return None


def _tensor_difference(one: Tensor, other: Tensor) -> str | None:
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return f": {one.dtype} {list(one.shape)} and {other.dtype} {list(other.shape)}"
    # Bytes, so that 0 and -0 differ and a NaN is what it is. [elements, bytes of an element]
    differing = (_bytes(one) != _bytes(other)).any(dim=1)
    if not differing.any():
        return None
    place = int(differing.nonzero()[0])
    index = [int(i) for i in torch.unravel_index(torch.tensor(place), one.shape)] if one.dim() else ""
    return f"{index}: {one.flatten()[place].item()!r} and {other.flatten()[place].item()!r}"


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().flatten().view(torch.uint8).view(-1, tensor.element_size())


def _line_difference(one: Path, other: Path) -> str | None:
    lines = [[_comparable(line) for line in path.read_text(encoding="utf-8").splitlines()] for path in (one, other)]
    for number, (a, b) in enumerate(zip(*lines, strict=False), start=1):
        found = _key_difference(f"{METRICS} line {number} (step {a.get('step')}, {a.get('kind')})", a, b)
        if found:
            return found
    if len(lines[0]) != len(lines[1]):
        return f"{METRICS}: {len(lines[0])} lines and {len(lines[1])} lines"
    return None


def _comparable(line: str) -> dict[str, Any]:
    return {key: value for key, value in json.loads(line).items() if key not in MEASURED}


def _key_difference(place: str, one: Any, other: Any) -> str | None:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in [*one, *(key for key in other if key not in one)]:
            if key not in one or key not in other:
                return f"{place}: {key}: only one run has it"
            found = _key_difference(f"{place}: {key}", one[key], other[key])
            if found:
                return found
        return None
    # As text, so that NaN is what it is.
    return None if json.dumps(one) == json.dumps(other) else f"{place}: {one!r} and {other!r}"
