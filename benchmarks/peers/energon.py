"""Megatron Energon: https://github.com/NVIDIA/Megatron-Energon. webdataset's tars, indexed by `energon prepare`."""

import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from megatron.energon import (
    Cooker,
    DefaultTaskEncoder,
    WorkerConfig,
    basic_sample_keys,
    get_loader,
    get_train_dataset,
    stateless,
)

from benchmarks.peers import webdataset
from benchmarks.peers.batch import SHUFFLE_BUFFER, STORIES_PER_BATCH, Batch, Reading
from storydist.data.sample import Sample

PREPARE = "from megatron.energon.cli.main import main; main()"


def prepare(samples: Iterable[Sample], folder: Path) -> None:
    webdataset.prepare(samples, folder)
    options = ("--non-interactive", "--split-ratio", "1,0,0", "--sample-type", "CrudeWebdataset", "--no-progress")
    subprocess.run([sys.executable, "-c", PREPARE, "prepare", *options, str(folder)], check=True)


def batches(reading: Reading) -> Iterator[Batch]:
    config = WorkerConfig(rank=0, world_size=1, num_workers=reading.workers, seed_offset=reading.seed)
    dataset = get_train_dataset(
        reading.folder,
        worker_config=config,
        batch_size=STORIES_PER_BATCH,
        shuffle_buffer_size=SHUFFLE_BUFFER,
        max_samples_per_sequence=SHUFFLE_BUFFER,
        task_encoder=_Encoder(reading),
        repeat=False,  # an epoch; in its training mode, without end, the first 600 stories held 488 different ones
    )
    loader = get_loader(dataset)
    for _ in range(reading.epochs):
        yield from loader


@stateless
def _cook(sample: dict[str, Any]) -> dict[str, Any]:
    return sample


class _Encoder(DefaultTaskEncoder):
    cookers = (Cooker(_cook),)
    decoder = None  # members arrive as bytes

    def __init__(self, reading: Reading) -> None:
        super().__init__()
        self.reading = reading

    @stateless
    def encode_sample(self, sample: dict[str, Any]) -> dict[str, Any]:
        story = webdataset.story_of(sample, self.reading.decoder)
        return {**basic_sample_keys(sample), "story": story}

    @stateless
    def batch(self, samples: list[dict[str, Any]]) -> Batch:
        return self.reading.collate([sample["story"] for sample in samples])
