"""Hugging Face datasets, map-style: https://github.com/huggingface/datasets. Arrow files, a shuffled DataLoader."""

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, load_from_disk
from torch.utils.data import DataLoader

from benchmarks.loader_data import NUM_SHARDS
from benchmarks.peers import hf_streaming
from benchmarks.peers.batch import STORIES_PER_BATCH, Batch, Reading, unpack
from storydist.data.sample import Sample


def prepare(samples: Iterable[Sample], folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as beside:
        hf_streaming.prepare(samples, Path(beside))
        paths = [str(path) for path in sorted(Path(beside).glob("*.parquet"))]
        dataset = Dataset.from_parquet(paths, cache_dir=beside)
        dataset.save_to_disk(str(folder), num_shards=min(NUM_SHARDS, len(dataset)))


def batches(reading: Reading) -> Iterator[Batch]:
    def decode(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        stories = [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]
        return {"story": [unpack(story, reading.decoder) for story in stories]}

    loader = DataLoader(
        load_from_disk(str(reading.folder)).with_transform(decode),
        batch_size=STORIES_PER_BATCH,
        shuffle=True,
        generator=torch.Generator().manual_seed(reading.seed),
        num_workers=reading.workers,
        collate_fn=lambda rows: reading.collate([row["story"] for row in rows]),
    )
    for _ in range(reading.epochs):
        yield from loader
