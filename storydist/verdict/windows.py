"""Chosen windows and stories of a split, read without walking through all of it."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from storydist.data.batch import Batch, FrameRun
from storydist.data.frame_runs import SampleReader
from storydist.data.index import ShardIndex
from storydist.data.reader import BadSample
from storydist.data.settings import DataConfig
from storydist.data.stream import collate_runs, read_batch, special_pieces
from storydist.verdict.truth import select_windows

Place = tuple[int, int]  # story number in the index, position of the target frame in its story


def choose_windows(index: ShardIndex, split: str, *, context: int, limit: int, seed: int) -> list[Place]:
    """At most `limit` windows of a split, drawn by `seed` without replacement, in stored order."""
    stories = index.split(split)
    num_frames = index.stories[stories.start : stories.stop]["num_frames"].astype(np.int64)
    ends = np.cumsum(np.maximum(num_frames - context, 0))
    num_windows = int(ends[-1]) if len(ends) else 0
    drawn = np.arange(num_windows)
    if limit < num_windows:
        drawn = np.sort(np.random.default_rng(seed).choice(num_windows, limit, replace=False))
    story = np.searchsorted(ends, drawn, side="right")
    # Counted from the end of its story, a window's place needs no second table.
    position = num_frames[story] - (ends[story] - drawn)
    return [(stories.start + int(s), int(p)) for s, p in zip(story, position, strict=True)]


def choose_stories(index: ShardIndex, split: str, *, limit: int, seed: int) -> list[int]:
    """At most `limit` story numbers of a split, drawn by `seed` without replacement, ascending."""
    stories = index.split(split)
    if len(stories) <= limit:
        return list(stories)
    drawn = np.random.default_rng(seed).choice(len(stories), limit, replace=False)
    return sorted(stories.start + int(i) for i in drawn)


def window_batches(index: ShardIndex, places: Sequence[Place], data: DataConfig, batch_stories: int) -> Iterator[Batch]:
    """Batches that hold exactly these windows, with their whole stories; `batch_stories` each, in stored order."""
    reader, special = SampleReader(index, data), special_pieces(index)
    wanted: dict[int, set[int]] = {}
    for story, position in places:
        wanted.setdefault(story, set()).add(position)
    stories = sorted(wanted)
    for start in range(0, len(stories), batch_stories):
        batch = read_batch(reader, [reader.whole(story) for story in stories[start : start + batch_stories]], special)
        story_M, position_M = batch.story_B[batch.window_story_M], batch.position_N[batch.target_M]
        targets = zip(story_M.tolist(), position_M.tolist(), strict=True)
        rows = [row for row, (story, position) in enumerate(targets) if position in wanted[story]]
        yield select_windows(batch, torch.tensor(rows, dtype=torch.int64))


def texts_and_tags(reader: SampleReader, stories: Sequence[int]) -> Iterator[FrameRun | None]:
    """Each story without its pictures; None for one that cannot be used, where the settings say to skip it."""
    for story in stories:
        try:
            yield reader.read_texts(story)
        except BadSample:
            if reader.config.on_bad_sample == "stop":
                raise
            yield None


def text_batches(
    index: ShardIndex, stories: Sequence[int], data: DataConfig, batch_stories: int = 64
) -> Iterator[Batch]:
    """These stories as batches with black 1 x 1 frames: texts cut exactly as in training, no picture decoded."""
    reader, special = SampleReader(index, data), special_pieces(index)
    for start in range(0, len(stories), batch_stories):
        runs = [run for run in texts_and_tags(reader, stories[start : start + batch_stories]) if run is not None]
        if runs:
            yield collate_runs(runs, data, special)
