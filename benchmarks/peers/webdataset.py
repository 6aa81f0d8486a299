"""webdataset: https://github.com/webdataset/webdataset. Plain tars, shards and then a buffer of stories shuffled.

Its own tars hold only what a batch needs; on storydist's tars, which hold more, it skips the other members.
"""

import io
import re
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import webdataset as wds
from PIL import Image

from benchmarks.loader_data import NUM_SHARDS
from benchmarks.peers.batch import SHUFFLE_BUFFER, STORIES_PER_BATCH, Batch, Reading, Story, pixels, resized
from storydist.data.sample import Sample, encode

WANTED = re.compile(r"(\d{3}\.jpg|(frames|wordpieces|lengths)\.npy)")
IMAGE = re.compile(r"\d{3}\.jpg")


def prepare(samples: Iterable[Sample], folder: Path) -> None:
    """NUM_SHARDS tars of KEY.000.jpg ... or KEY.frames.npy, KEY.wordpieces.npy and KEY.lengths.npy."""
    stories = list(samples)
    per_shard = -(-len(stories) // NUM_SHARDS)
    with wds.ShardWriter(str(folder / "train-%06d.tar"), maxcount=per_shard, verbose=0) as writer:
        for sample in stories:
            members = {suffix: data for suffix, data in encode(sample) if WANTED.fullmatch(suffix)}
            writer.write({"__key__": sample.key, **members})


def batches(reading: Reading) -> Iterator[Batch]:
    dataset = wds.WebDataset(
        [str(path) for path in sorted(reading.folder.glob("*.tar"))],
        shardshuffle=NUM_SHARDS,
        seed=reading.seed,
        select_files=lambda name: WANTED.fullmatch(name.partition(".")[2]) is not None,
        empty_check=False,
    )
    decoders = {"pil": ("pil",), "fast": (_encoded,), "raw": ()}[reading.decoder]
    dataset = (
        dataset.shuffle(SHUFFLE_BUFFER)
        .decode(*decoders)
        .map(partial(story_of, decoder=reading.decoder))
        .batched(STORIES_PER_BATCH, collation_fn=reading.collate)
    )
    loader = wds.WebLoader(dataset, batch_size=None, num_workers=reading.workers)
    for _ in range(reading.epochs):
        yield from loader


def _encoded(key: str, data: bytes) -> bytes | None:
    """Leaves JPEG files as they are."""
    return data if key.endswith(".jpg") else None


def story_of(sample: dict[str, Any], decoder: str) -> Story:
    """The story of a sample whose images are encoded or PIL's, whose arrays are encoded or NumPy's."""
    wordpieces, lengths = (_array(sample[name]) for name in ("wordpieces.npy", "lengths.npy"))
    if "frames.npy" in sample:
        return Story(_array(sample["frames.npy"]), wordpieces, lengths)
    images = [sample[suffix] for suffix in sorted(filter(IMAGE.fullmatch, sample))]
    if isinstance(images[0], Image.Image):
        return Story(np.stack([resized(image) for image in images]), wordpieces, lengths)
    return Story(pixels(images, decoder), wordpieces, lengths)


def _array(value: bytes | np.ndarray) -> np.ndarray:
    return value if isinstance(value, np.ndarray) else np.load(io.BytesIO(value), allow_pickle=False)
