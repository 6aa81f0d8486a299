"""Hugging Face datasets, streaming: https://github.com/huggingface/datasets. Parquet files, a shuffle buffer."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import load_dataset
from torch.utils.data import DataLoader

from benchmarks.loader_data import NUM_SHARDS
from benchmarks.peers.batch import SHUFFLE_BUFFER, STORIES_PER_BATCH, Batch, Reading, pack, unpack
from storydist.data.sample import Sample


def prepare(samples: Iterable[Sample], folder: Path) -> None:
    rows = [pack(sample) for sample in samples]
    per_file = -(-len(rows) // NUM_SHARDS)
    for number, start in enumerate(range(0, len(rows), per_file)):
        table = pa.Table.from_pylist(rows[start : start + per_file])
        pq.write_table(table, folder / f"train-{number:05d}.parquet", row_group_size=100)


def batches(reading: Reading) -> Iterator[Batch]:
    paths = [str(path) for path in sorted(reading.folder.glob("*.parquet"))]
    dataset = load_dataset("parquet", data_files={"train": paths}, split="train", streaming=True)
    dataset = dataset.shuffle(seed=reading.seed, buffer_size=SHUFFLE_BUFFER)
    dataset = dataset.map(lambda row: {"story": unpack(row, reading.decoder)}, remove_columns=dataset.column_names)
    loader = DataLoader(
        dataset,
        batch_size=STORIES_PER_BATCH,
        num_workers=reading.workers,
        collate_fn=lambda rows: reading.collate([row["story"] for row in rows]),
    )
    for epoch in range(reading.epochs):
        dataset.set_epoch(epoch)
        yield from loader
