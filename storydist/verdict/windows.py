"""Chosen windows and stories of a split, read without walking through all of it."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from storydist.data.batch import Batch, FrameRun
from storydist.data.index import ShardIndex
from storydist.data.reader import ShardReader
from storydist.data.sample import TEXT_SUFFIXES, Sample, decode
from storydist.data.settings import DataConfig
from storydist.data.stream import SampleReader, collate_runs, special_pieces
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
        runs = [reader.read(story) for story in stories[start : start + batch_stories]]
        batch = collate_runs(runs, data, special)
        story_M, position_M = batch.story_B[batch.window_story_M], batch.position_N[batch.target_M]
        targets = zip(story_M.tolist(), position_M.tolist(), strict=True)
        rows = [row for row, (story, position) in enumerate(targets) if position in wanted[story]]
        yield select_windows(batch, torch.tensor(rows, dtype=torch.int64))


def samples(index: ShardIndex, stories: Sequence[int]) -> Iterator[Sample]:
    """Samples of these stories without their long texts; encoded or raw frames are not touched."""
    reader = ShardReader(index, verify=False)
    for story in stories:
        yield decode(index.story_id(story), reader.read(story, skip=TEXT_SUFFIXES))


def text_batches(
    index: ShardIndex, stories: Sequence[int], data: DataConfig, batch_stories: int = 64
) -> Iterator[Batch]:
    """These stories as batches with black 1 x 1 frames: texts cut exactly as in training, no picture decoded."""
    special = special_pieces(index)
    for start in range(0, len(stories), batch_stories):
        chunk = stories[start : start + batch_stories]
        runs = [_without_pixels(story, sample) for story, sample in zip(chunk, samples(index, chunk), strict=True)]
        yield collate_runs(runs, data, special)


def _without_pixels(story: int, sample: Sample) -> FrameRun:
    ends = np.cumsum(sample.lengths)
    return FrameRun(
        story=story,
        story_id=sample.key,
        frames=np.zeros((sample.num_frames, 1, 1, 3), dtype=np.uint8),
        wordpieces=[sample.wordpieces[end - n : end] for end, n in zip(ends, sample.lengths, strict=True)],
        tags=sample.tags,
        characters=sample.characters,
        times_s=sample.times_s,
        first_position=0,
        score=np.nan if sample.score is None else sample.score,
    )
