"""What a run's folder holds besides checkpoints and logs: its settings and what it was made with; and how to open one
again.
"""

import json
import platform
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
import yaml
from torch.optim.swa_utils import AveragedModel

from storydist.config import Config, parse_config
from storydist.data.files import remove_leftovers, write_atomic
from storydist.data.index import ShardIndex
from storydist.data.storage import CacheConfig
from storydist.model import StoryModel, data_facts
from storydist.training import checkpoint
from storydist.training.keep import checkpoint_path, pick

CONFIG, ENVIRONMENT = "config.yaml", "environment.json"
PACKAGES = (
    "storydist",
    "torch",
    "torchvision",
    "accelerate",
    "transformers",
    "tokenizers",
    "datasets",
    "webdataset",
    "deepspeed",
    "numpy",
    "pillow",
)


@dataclass(frozen=True)
class LoadedRun:
    """A run as it was saved. The model is in evaluation mode, with averaged weights where the run keeps them."""

    model: StoryModel
    config: Config
    index: ShardIndex
    step: int
    notes: list[str]  # damaged checkpoints that were passed over


def load_run(
    run_dir: str | Path, which: str | int = "latest", device: torch.device | None = None, shards: str | None = None
) -> LoadedRun:
    """Opens a run at its "latest" or "best" checkpoint, or at a step. `shards`: where they lie now, if they were moved.

    Raises FileNotFoundError when there is no run or no whole checkpoint, ValueError when the shards are others than it
    was trained on.
    """
    run = Path(run_dir)
    config = read_config(run)
    step, notes = pick(run, which)
    folder = checkpoint_path(run, step)
    index = _open_shards(shards or config.data.shards, config.data.cache)
    manifest = checkpoint.read_manifest(folder)
    identity = manifest.identity
    if identity.fingerprint != index.info.fingerprint:
        raise ValueError(
            f"{folder} was trained on other shards than {index}: fingerprint "
            f"{identity.fingerprint[:12]}, found {index.info.fingerprint[:12]}"
        )
    model = StoryModel(config.model, config.losses.heads(), data_facts(index, config.data))
    if checkpoint.EMA in manifest.files:
        averaged = AveragedModel(model)
        stored = checkpoint.read_tensors(folder, manifest, checkpoint.EMA)
        checkpoint.load_weights(stored, averaged, folder / checkpoint.EMA)
        model = averaged.module  # type: ignore[assignment]
    else:
        stored = checkpoint.read_tensors(folder, manifest, checkpoint.MODEL)
        checkpoint.load_weights(stored, model, folder / checkpoint.MODEL)
    return LoadedRun(model.to(device or torch.device("cpu")).eval(), config, index, step, notes)


def _open_shards(location: str, cache: CacheConfig) -> ShardIndex:
    try:
        return ShardIndex.open(location, cache)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; if the run's shards were moved, name them with --shards") from None


def read_config(run: Path) -> Config:
    """The resolved settings of a run."""
    path = run / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{run} is not a run (it has no {CONFIG}); launch/train.py makes one")
    return parse_config(yaml.safe_load(path.read_text(encoding="utf-8")), source=str(path))


def write_facts(run: Path, config: Config) -> None:
    """Saves the resolved settings, library versions, machine and state of the code beside the run."""
    run.mkdir(parents=True, exist_ok=True)
    settings = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    for name in (CONFIG, ENVIRONMENT):
        remove_leftovers(run / name)
    write_atomic(run / CONFIG, f"# Resolved settings of this run.\n{settings}".encode())
    write_atomic(run / ENVIRONMENT, json.dumps(environment(), indent=1).encode())


def environment() -> dict[str, object]:
    """Versions of the libraries, kind of machine, commit and whether the checkout differs from it."""
    return {
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "python": platform.python_version(),
        "system": platform.platform(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "commit": _git("rev-parse", "HEAD"),
        "changed_files": (_git("status", "--porcelain") or "").splitlines(),
    }


def code_version() -> str:
    """Version and commit, for a checkpoint to tell."""
    commit = _git("rev-parse", "--short", "HEAD") or "unknown"
    return f"storydist {_version('storydist') or 'from a checkout'}, commit {commit}"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    here = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "-C", str(here), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
