"""No loader: the frames of storydist's raw tars, memory-mapped, shuffled and copied into batches. What a reader of raw
frames could reach at most: no checks, no texts, no read-ahead, and a batch's memory is used again BUFFERS batches
later, because new memory costs more than the copy (a page fault for every 4 KiB).
"""

import mmap
from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.peers.batch import HEIGHT, STORIES_PER_BATCH, WIDTH, WINDOW, Batch, Reading, window_rows
from storydist.data.index import ShardIndex
from storydist.data.npy import from_npy

WINDOWS_PER_BATCH = 32
BUFFERS = 4


def batches(reading: Reading) -> Iterator[Batch]:
    stories = _mapped(ShardIndex.open(reading.folder))
    generator, memory = np.random.default_rng(reading.seed), _Memory()
    if reading.unit == "story":
        samples, per_batch, whole = stories, STORIES_PER_BATCH, True
    else:
        samples = [frames[start : start + WINDOW] for frames in stories for start in range(len(frames) - WINDOW + 1)]
        per_batch, whole = WINDOWS_PER_BATCH, False
    for _ in range(reading.epochs):
        order = generator.permutation(len(samples)).tolist()
        for start in range(0, len(order), per_batch):
            chosen = [samples[number] for number in order[start : start + per_batch]]
            frames, counts = memory.filled(chosen), [len(each) for each in chosen]
            batch = {"frames": torch.from_numpy(frames), "num_frames": len(frames), "num_windows": len(chosen)}
            if whole:
                windows = window_rows(counts)
                batch |= {"windows": torch.from_numpy(windows), "num_windows": len(windows)}
            else:
                batch["frames"] = batch["frames"].view(-1, WINDOW, HEIGHT, WIDTH, 3)
            yield batch


class _Memory:
    """Room for batches, handed out in turn."""

    def __init__(self) -> None:
        self.buffers = [np.empty((0, HEIGHT, WIDTH, 3), np.uint8)] * BUFFERS

    def filled(self, arrays: list[np.ndarray]) -> np.ndarray:
        """The arrays end to end."""
        size = sum(map(len, arrays))
        buffer = self.buffers.pop(0)
        if len(buffer) < size:
            buffer = np.empty((size, HEIGHT, WIDTH, 3), np.uint8)
        self.buffers.append(buffer)
        return np.concatenate(arrays, out=buffer[:size])


def _mapped(index: ShardIndex) -> list[np.ndarray]:
    maps = []
    for shard in index.info.shards:
        with (index.root / shard.name).open("rb") as file:
            maps.append(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
    stories = []
    for story in index.split("train"):
        members = {suffix: (offset, size) for suffix, offset, size, _ in index.members_of(story)}
        offset, size = members["frames.npy"]
        shard = maps[int(index.stories[story]["shard"])]
        stories.append(from_npy(shard[offset : offset + size], "|u1", (None, None, None, 3)))
    return stories
