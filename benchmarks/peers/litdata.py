"""LitData: https://github.com/Lightning-AI/litData. Its own format (optimized chunks), a StreamingDataLoader.

`optimize` cannot store a list of byte strings whose length differs between stories, so a story's frames are one.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from litdata import StreamingDataLoader, StreamingDataset, optimize

from benchmarks.loader_data import NUM_SHARDS
from benchmarks.peers.batch import STORIES_PER_BATCH, Batch, Reading, Story, pack, unpack
from storydist.data.sample import Sample


def prepare(samples: Iterable[Sample], folder: Path) -> None:
    stories = list(samples)
    per_chunk = -(-len(stories) // NUM_SHARDS)
    optimize(pack, stories, output_dir=str(folder), chunk_size=per_chunk, num_workers=1, verbose=False)


def batches(reading: Reading) -> Iterator[Batch]:
    loader = StreamingDataLoader(
        _Stories(reading), batch_size=STORIES_PER_BATCH, num_workers=reading.workers, collate_fn=reading.collate
    )
    for _ in range(reading.epochs):
        yield from loader


class _Stories(StreamingDataset):
    def __init__(self, reading: Reading) -> None:
        super().__init__(str(reading.folder), shuffle=True, seed=reading.seed, drop_last=False)
        self.decoder = reading.decoder

    def __getitem__(self, at: Any) -> Story:
        return unpack(super().__getitem__(at), self.decoder)
