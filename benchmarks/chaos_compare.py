"""Whether a run that was killed ended as the one that nobody touched: bit for bit, or as near as rounding lets it."""

import json
from pathlib import Path
from typing import Any

import torch

from storydist.training.checkpoint import MODEL, read_manifest, read_tensors
from storydist.training.difference import first_difference
from storydist.training.keep import checkpoint_path, list_steps
from storydist.training.log import METRICS

RELATIVE = 1e-5  # of losses in float32, where ranks and strategies have changed


def difference(straight: Path, run: Path) -> str | None:
    """Where they differ: at their last checkpoint, in a line of metrics, or at another checkpoint that both keep."""
    found = first_difference(straight, run)
    for step in sorted(set(list_steps(straight)) & set(list_steps(run))):
        files = [read_manifest(checkpoint_path(folder, step)).files for folder in (straight, run)]
        found = found or (None if files[0] == files[1] else f"checkpoint of step {step}: {files[0]} and {files[1]}")
    return found


def distance(straight: Path, run: Path) -> tuple[str | None, float, float]:
    """What is further apart than rounding explains; the largest relative distance of a loss that was logged; and that
    of the weights, all together. (By themselves, those that no loss depends on drift: of nothing but rounding in their
    gradient, AdamW makes steps of full size.)
    """
    one, other = _train_lines(straight), _train_lines(run)
    if [line["step"] for line in one] != [line["step"] for line in other]:
        return "they logged other steps", 0.0, 0.0
    if any(a["samples_seen"] != b["samples_seen"] for a, b in zip(one, other, strict=True)):
        return "they have seen other numbers of samples", 0.0, 0.0
    losses = max(
        abs(a[key] - b[key]) / abs(a[key])
        for a, b in zip(one, other, strict=True)
        for key in a
        if key.startswith("loss")
    )
    first, second = _weights(straight), _weights(run)
    weights = float(torch.dist(first, second) / first.norm())
    return (f"losses are {losses:.1e} apart" if losses > RELATIVE else None), losses, weights


def _train_lines(run: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (run / METRICS).read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line["kind"] == "train"]


def _weights(run: Path) -> torch.Tensor:
    """All of them in a row, float64 [weights]."""
    folder = checkpoint_path(run, list_steps(run)[-1])
    tensors = read_tensors(folder, read_manifest(folder), MODEL)
    return torch.cat([tensors[name].double().flatten() for name in sorted(tensors)])
