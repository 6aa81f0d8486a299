"""Reads samples in order and hands them over as batches.

The stream keeps no state: the batches of a step are a function of the number of samples seen before it. Steps are read
ahead by threads,
so what a trainer has consumed is for the trainer to count, and reading ahead never moves a position.
"""

import threading
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from storydist.data.batch import Batch, FrameRun, SpecialPieces, collate
from storydist.data.frames import decode_frame
from storydist.data.index import ShardIndex
from storydist.data.order import Order, evaluation_slices, rank_slice
from storydist.data.reader import ShardReader
from storydist.data.sample import TEXT_SUFFIXES, decode
from storydist.data.settings import DataConfig
from storydist.data.text import Wordpieces


class SampleReader:
    """Reads single samples of a shard set as FrameRuns. One per thread."""

    def __init__(self, index: ShardIndex, config: DataConfig):
        self.index, self.size = index, frame_size(index, config)
        # A block's shards are open at once, and the next block's beside them at the seam.
        self.shards = ShardReader(index, verify=config.verify, max_open=2 * config.block_shards)

    def read(self, story: int, start: int = 0, stop: int | None = None, valid: float = 1.0) -> FrameRun:
        """Frames start .. stop-1 of a story. Raises ValueError naming story and member for anything that cannot be
        read.
        """
        story_id = self.index.story_id(story)
        sample = decode(story_id, self.shards.read(story, skip=TEXT_SUFFIXES))
        frames = slice(start, sample.num_frames if stop is None else stop)
        ends = np.cumsum(sample.lengths)
        return FrameRun(
            story=story,
            story_id=story_id,
            frames=self._pixels(story_id, sample.frames[frames]),
            wordpieces=[
                sample.wordpieces[end - n : end] for end, n in zip(ends[frames], sample.lengths[frames], strict=True)
            ],
            tags=_tags_between(sample.tags, frames.start, frames.stop),
            characters=sample.characters[frames],
            times_s=sample.times_s[frames],
            first_position=start,
            score=float(self.index.stories[story]["score"]),
            valid=valid,
        )

    def _pixels(self, story_id: str, frames: np.ndarray | tuple[bytes, ...]) -> np.ndarray:
        if isinstance(frames, np.ndarray):
            return frames
        try:
            return np.stack([decode_frame(frame, *self.size) for frame in frames])
        except ValueError as error:
            raise ValueError(f"story {story_id!r}: {error}") from error


def _tags_between(tags: np.ndarray, start: int, stop: int) -> np.ndarray:
    """The story's own tags, and those of frames start .. stop-1 counted from start."""
    frame = tags[:, 0]
    kept = tags[(frame < 0) | ((frame >= start) & (frame < stop))].copy()
    kept[kept[:, 0] >= 0, 0] -= start
    return kept


class Stream:
    """The training samples of one rank, a list of micro-batches per step.

    `accumulation_steps` micro-batches together with those of all other ranks make the global batch. `pin`: batches lie
    in page-locked memory. Raises ValueError when a split is
    empty, no story is long enough, or the global batch cannot be cut evenly.
    """

    def __init__(
        self,
        index: ShardIndex,
        config: DataConfig,
        *,
        split: str = "train",
        seed: int,
        global_batch: int,
        accumulation_steps: int = 1,
        rank: int = 0,
        world_size: int = 1,
        pin: bool = False,
    ):
        self.index, self.config, self.global_batch, self.pin = index, config, global_batch, pin
        self.slices = rank_slice(global_batch, rank, world_size, accumulation_steps)
        self.special = special_pieces(index)
        stories = index.split(split)
        rows = index.stories[stories.start : stories.stop]
        self.first_story = stories.start
        # Sample s of the split belongs to the story whose run of samples holds it. A story too short for a window still
        # counts as a whole: it has a score.
        windows = np.maximum(rows["num_frames"].astype(np.int64) - config.context, 0)
        per_story = windows if config.unit == "window" else np.ones_like(windows)
        self.sample_ends = np.cumsum(per_story)
        shards, shard_row = np.unique(rows["shard"], return_inverse=True)
        samples_per_shard = np.bincount(shard_row, weights=per_story, minlength=len(shards)).astype(np.int64)
        self.order = Order(samples_per_shard, seed=seed, block_shards=config.block_shards, shuffle=config.shuffle)
        self._lock = threading.Lock()  # the order caches its current block
        self._readers = threading.local()

    @property
    def num_samples(self) -> int:
        """Samples in an epoch, over all ranks."""
        return self.order.num_samples

    def locate(self, samples: np.ndarray) -> list[tuple[int, int, int]]:
        """[(story, start, stop)]: the frames of each sample; stop == -1 means all."""
        story = np.searchsorted(self.sample_ends, samples, side="right")
        if self.config.unit == "story":
            return [(self.first_story + int(s), 0, -1) for s in story]
        before = np.concatenate([[0], self.sample_ends])[story]
        starts = samples - before
        return [
            (self.first_story + int(s), int(a), int(a) + self.config.context + 1)
            for s, a in zip(story, starts, strict=True)
        ]

    def samples_of_step(self, samples_seen: int) -> list[list[tuple[int, int, int]]]:
        """This rank's (story, start, stop) for each micro-batch of the step that follows `samples_seen`."""
        located = []
        for start, stop in self.slices:
            with self._lock:
                runs = self.order.take(samples_seen + start, samples_seen + stop)
            located.append([place for _, samples in runs for place in self.locate(samples)])
        return located

    def load_step(self, samples_seen: int) -> list[Batch]:
        """The micro-batches of that step, read and decoded."""
        if not hasattr(self._readers, "reader"):
            self._readers.reader = SampleReader(self.index, self.config)
        reader = self._readers.reader
        return [
            self._collate([reader.read(s, a, None if b < 0 else b) for s, a, b in places])
            for places in self.samples_of_step(samples_seen)
        ]

    def steps(self, samples_seen: int = 0) -> Generator[list[Batch], None, None]:
        """Micro-batches of every step from `samples_seen` on, without end. Steps are read ahead; closing the iterator
        stops that.
        """
        executor = ThreadPoolExecutor(self.config.threads, thread_name_prefix="stream")
        pending: deque[Future[list[Batch]]] = deque()
        try:
            while True:
                while len(pending) < self.config.prefetch + 1:
                    pending.append(executor.submit(self.load_step, samples_seen))
                    samples_seen += self.global_batch
                yield pending.popleft().result()
        finally:
            executor.shutdown(wait=True, cancel_futures=True)

    def _collate(self, runs: list[FrameRun]) -> Batch:
        batch = collate_runs(runs, self.config, self.special)
        return batch.pin_memory() if self.pin else batch


def collate_runs(runs: list[FrameRun], config: DataConfig, special: SpecialPieces) -> Batch:
    """One batch, cut as the settings say."""
    return collate(
        runs, context=config.context, special=special, max_wordpieces=config.max_wordpieces, max_tags=config.max_tags
    )


def frame_size(index: ShardIndex, config: DataConfig) -> tuple[int, int]:
    """(H, W) of the frames that a model gets from these shards."""
    if index.info.height is None or index.info.width is None:
        return config.size
    return index.info.height, index.info.width


def special_pieces(index: ShardIndex) -> SpecialPieces:
    """The special wordpieces of the shards' tokenizer."""
    tokenizer = Wordpieces.load(index.root / "tokenizer")
    return SpecialPieces(cls=tokenizer.cls_id, sep=tokenizer.sep_id)


def evaluation_batches(
    index: ShardIndex, split: str, config: DataConfig, *, batch_stories: int = 8, rank: int = 0, world_size: int = 1
) -> Iterator[Batch]:
    """Every story of a split once, whole, in stored order; `batch_stories` per rank and step.

    All ranks get the same number of batches; a row that stands in where a rank has no story left has valid 0.
    """
    stories, reader, special = index.split(split), SampleReader(index, config), special_pieces(index)
    for start, stop in evaluation_slices(len(stories), batch_stories, rank, world_size):
        runs = [reader.read(stories[i]) for i in range(start, stop)] or [reader.read(stories[0], valid=0.0)]
        yield collate_runs(runs, config, special)
