"""MosaicML streaming: https://github.com/mosaicml/streaming. Its own format (MDS), in a DataLoader."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from streaming import MDSWriter, StreamingDataset
from streaming.base.util import clean_stale_shared_memory
from torch.utils.data import DataLoader

from benchmarks.loader_data import NUM_SHARDS
from benchmarks.peers.batch import STORIES_PER_BATCH, Batch, Reading, Story, pack, unpack
from storydist.data.sample import Sample

COLUMNS = {"key": "str", "frames": "bytes", "sizes": "bytes", "wordpieces": "bytes", "lengths": "bytes"}


def prepare(samples: Iterable[Sample], folder: Path) -> None:
    rows = [pack(sample) for sample in samples]
    total = sum(len(row["frames"]) for row in rows)
    with MDSWriter(out=str(folder), columns=COLUMNS, size_limit=max(total // NUM_SHARDS, 1 << 20)) as writer:
        for row in rows:
            writer.write(row)


def batches(reading: Reading) -> Iterator[Batch]:
    clean_stale_shared_memory()
    dataset = _Stories(reading)
    loader = DataLoader(dataset, batch_size=STORIES_PER_BATCH, num_workers=reading.workers, collate_fn=reading.collate)
    for _ in range(reading.epochs):
        yield from loader


class _Stories(StreamingDataset):
    def __init__(self, reading: Reading) -> None:
        super().__init__(
            local=str(reading.folder), shuffle=True, shuffle_seed=reading.seed, batch_size=STORIES_PER_BATCH
        )
        self.decoder = reading.decoder

    def __getitem__(self, at: Any) -> Story:
        return unpack(super().__getitem__(at), self.decoder)
