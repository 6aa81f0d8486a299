"""Samples that could not be used while training: agreed by all ranks, kept in the run's state, told in its logs.

A sample is bad because of its bytes, so whoever reads it again finds the same. The list therefore decides nothing: it
tells, and a run that resumes at an earlier step finds anew what was found after it.
"""

import json
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object

from storydist.data.batch import Batch
from storydist.data.files import write_atomic
from storydist.training.checkpoint import TrainState

QUARANTINE = "quarantine.jsonl"


def num_bad(micro_batches: list[Batch]) -> int:
    """Samples of this rank's step that could not be used."""
    return sum(len(batch.bad) for batch in micro_batches)


def admit(micro_batches: list[Batch], state: TrainState) -> list[dict[str, Any]]:
    """Counts the step's bad samples of all ranks in `state`; returns those that are new to its list. Collective."""
    own = [
        {"shard": bad.shard, "story_id": bad.story_id, "frames": [start, stop], "reason": bad.reason}
        for batch in micro_batches
        for (_, start, stop), bad in batch.bad
    ]
    found = gather_object(own)
    state.skipped_samples += len(found)
    listed = {(entry["story_id"], *entry["frames"]) for entry in state.quarantine}
    new = [entry | {"step": state.step + 1} for entry in found if (entry["story_id"], *entry["frames"]) not in listed]
    state.quarantine += new
    return new


def require_few(state: TrainState, num_samples: int, most: float) -> None:
    """Raises ValueError when more than the share `most` of the samples seen, or of an epoch, was skipped: then not a
    sample is bad but the disk or the whole set, and training on what is left would waste the run.
    """
    seen = max(state.samples_seen, num_samples)
    if state.skipped_samples > most * seen:
        last = state.quarantine[-1]
        raise ValueError(
            f"{state.skipped_samples} of {seen} samples could not be used, more than data.max_skipped {most:g} allows; "
            f"the last: {last['shard']}: story {last['story_id']!r}, {last['reason']}"
        )


def write(run: Path, state: TrainState) -> None:
    """RUN/quarantine.jsonl: a line a sample, as the state has it; no file while there is none."""
    path = run / QUARANTINE
    if state.quarantine or path.exists():
        write_atomic(path, "".join(json.dumps(entry) + "\n" for entry in state.quarantine).encode())
