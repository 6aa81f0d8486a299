"""What a step that came to nothing finite was made of, kept so that launch/replay.py can make it again.

RUN/failures/step-37/
    config.yaml, model.safetensors    the run's settings; the weights before the update (by rank 0)
    rank-0/micro-batch-0.safetensors  the tensors of each micro-batch, as they went into the model
    rank-0/facts.json                 everything else; written last: without it the rank's part is not whole
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import yaml
from torch import Tensor

from storydist.data.batch import Batch
from storydist.data.files import write_atomic

if TYPE_CHECKING:
    from storydist.training.trainer import Run

FOLDER, FACTS, WEIGHTS, SETTINGS = "failures", "facts.json", "model.safetensors", "config.yaml"


@dataclass(frozen=True)
class RankPart:
    """What one rank put into the step. `seeds`: of torch, one a micro-batch. `global_counts`: of each head's loss, over
    all ranks and micro-batches.
    """

    rank: int
    facts: dict[str, Any]
    micro_batches: list[Batch]

    @property
    def seeds(self) -> list[int]:
        return self.facts["seeds"]

    @property
    def global_counts(self) -> dict[str, float]:
        return self.facts["global_counts"]


def failure_path(run: Path, step: int) -> Path:
    return run / FOLDER / f"step-{step}"


def list_failures(run: Path) -> list[int]:
    """Steps of which there is a bundle, ascending."""
    return sorted(int(path.name[5:]) for path in (run / FOLDER).glob("step-*") if path.name[5:].isdigit())


@contextmanager
def kept(run: "Run", micro_batches: Sequence[Batch], global_counts: Tensor, seeds: Sequence[int]) -> Iterator[None]:
    """A FloatingPointError raised inside is raised on with the place of the bundle that was written of the step. Every
    rank raises it, before the weights change.
    """
    try:
        yield
    except FloatingPointError as error:
        step = run.state.step + 1
        told = f"replay it: launch/replay.py {run.path} --step {step}"
        try:
            _write(run, micro_batches, global_counts, seeds, str(error))
        except OSError as disk:
            told = f"it cannot be replayed, for the bundle was not written: {disk}"
        error.args = (f"{error}; {told}",)
        raise


def _write(run: "Run", micro_batches: Sequence[Batch], global_counts: Tensor, seeds: Sequence[int], told: str) -> None:
    accelerator, step = run.accelerator, run.state.step + 1
    model = run.strategy.full_state(moments=False).model  # collective, so ahead of what may fail on one rank
    folder = failure_path(run.path, step)
    part = _part(folder, accelerator.process_index)
    part.mkdir(parents=True, exist_ok=True)
    (part / FACTS).unlink(missing_ok=True)
    if accelerator.is_main_process:
        settings = yaml.safe_dump(run.config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        write_atomic(folder / SETTINGS, settings.encode())
        _save(model.state_dict(), folder / WEIGHTS)
    for number, batch in enumerate(micro_batches):
        tensors = {name: value for name, value in vars(batch).items() if isinstance(value, Tensor)}
        _save(tensors, _micro_batch_path(part, number))
    facts = {
        "step": step,
        "told": told,
        "world_size": accelerator.num_processes,
        "device": str(accelerator.device),
        "fingerprint": run.identity.fingerprint,
        "samples_seen": run.state.samples_seen,
        "seeds": list(seeds),
        "global_counts": dict(zip(run.config.losses.heads(), global_counts.tolist(), strict=True)),
        "stories": [batch.ids for batch in micro_batches],
        "frames": [_frames(batch) for batch in micro_batches],
    }
    write_atomic(part / FACTS, json.dumps(facts, indent=1).encode())


def read_parts(run: Path, step: int) -> list[RankPart]:
    """Every rank's part of a step. Raises FileNotFoundError when there is no bundle of it, or a part is missing."""
    folder = failure_path(run, step)
    if not folder.is_dir():
        kept_steps = ", ".join(map(str, list_failures(run))) or "none"
        raise FileNotFoundError(
            f"{run} keeps no failure of step {step} (it has: {kept_steps}); a step is kept when its loss or gradient "
            "was not finite"
        )
    parts = [_read_part(folder, 0)]
    return parts + [_read_part(folder, rank) for rank in range(1, parts[0].facts["world_size"])]


def _read_part(folder: Path, rank: int) -> RankPart:
    path = _part(folder, rank)
    if not (path / FACTS).is_file():
        raise FileNotFoundError(f"{path / FACTS} is missing: rank {rank} was ended before it had kept its part")
    facts = json.loads((path / FACTS).read_text())
    batches = []
    for number, ids in enumerate(facts["stories"]):
        tensors: dict[str, Any] = safetensors.torch.load_file(_micro_batch_path(path, number))
        missing = {field.name for field in fields(Batch)} - {"ids", "bad"} - tensors.keys()
        if missing:
            raise ValueError(f"{_micro_batch_path(path, number)} lacks {', '.join(sorted(missing))}")
        batches.append(Batch(ids=ids, **tensors))
    return RankPart(rank, facts, batches)


def _part(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank}"


def _micro_batch_path(part: Path, number: int) -> Path:
    return part / f"micro-batch-{number}.safetensors"


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    # Copies: safetensors refuses tensors that share memory, as an embedding of two parts does.
    write_atomic(path, safetensors.torch.save({n: value.cpu().contiguous().clone() for n, value in tensors.items()}))


def _frames(batch: Batch) -> list[tuple[int, int]]:
    """First frame and last frame + 1, in its story, of each row."""
    spans = []
    for row in range(len(batch.ids)):
        positions = batch.position_N[batch.frame_story_N == row]
        spans.append((int(positions[0]), int(positions[-1]) + 1))
    return spans
