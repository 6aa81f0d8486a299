"""No loader: the frames of storydist's raw tars, memory-mapped, shuffled and copied into batches. What a reader of raw
frames could reach at most: no checks, no texts, no read-ahead.
"""

import mmap
from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.peers.batch import HEIGHT, STORIES_PER_BATCH, WIDTH, WINDOW, Batch, Reading, window_rows
from storydist.data.index import ShardIndex
from storydist.data.npy import from_npy

WINDOWS_PER_BATCH = 32


def batches(reading: Reading) -> Iterator[Batch]:
    stories = _mapped(ShardIndex.open(reading.folder))
    generator = np.random.default_rng(reading.seed)
    for _ in range(reading.epochs):
        if reading.unit == "story":
            order = generator.permutation(len(stories))
            for start in range(0, len(order), STORIES_PER_BATCH):
                yield _whole([stories[number] for number in order[start : start + STORIES_PER_BATCH]])
        else:
            windows = [
                frames[start : start + WINDOW] for frames in stories for start in range(len(frames) - WINDOW + 1)
            ]
            order = generator.permutation(len(windows))
            for start in range(0, len(order), WINDOWS_PER_BATCH):
                yield _windows([windows[number] for number in order[start : start + WINDOWS_PER_BATCH]])


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


def _whole(stories: list[np.ndarray]) -> Batch:
    frames, windows = np.concatenate(stories), window_rows([len(story) for story in stories])
    tensors = {"frames": torch.from_numpy(frames), "windows": torch.from_numpy(windows)}
    return {**tensors, "num_frames": len(frames), "num_windows": len(windows)}


def _windows(windows: list[np.ndarray]) -> Batch:
    frames = np.empty((len(windows), WINDOW, HEIGHT, WIDTH, 3), np.uint8)
    for row, window in zip(frames, windows, strict=True):
        row[:] = window
    return {"frames": torch.from_numpy(frames), "num_frames": len(windows) * WINDOW, "num_windows": len(windows)}
