"""Which stories, or frames of stories, each step's micro-batches hold: the order, told in stories."""

import threading
from collections import OrderedDict

import numpy as np

from storydist.data.frame_runs import Span
from storydist.data.index import ShardIndex
from storydist.data.order import Order, rank_slice
from storydist.data.settings import DataConfig

_CHUNK = 1 << 20  # stories counted at a time: a long index passes through little memory


class Places:
    """The samples of a split in the order of an epoch, for one rank. Threads may share one.

    Opening costs a pass over the shards, and for windows one over the stories' numbers of frames; after that a step
    costs the same wherever it lies. Raises ValueError when a split is unknown or holds no sample, or the global batch
    cannot be cut evenly.
    """

    def __init__(
        self,
        index: ShardIndex,
        config: DataConfig,
        *,
        split: str,
        seed: int,
        global_batch: int,
        accumulation_steps: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.index, self.config = index, config
        self.slices = rank_slice(global_batch, rank, world_size, accumulation_steps)
        self.num_frames = index.stories.view(np.ndarray)["num_frames"]
        shards, first_story, counts = _shards_of(index, split)
        if config.unit == "window":
            counts = _windows_of(self.num_frames, first_story, counts, config.context)
        holding = counts > 0  # a shard of short stories has no window
        self.shards, self.first_story = shards[holding], first_story[holding]
        self.first_sample = np.cumsum(counts[holding]) - counts[holding]
        self.order = Order(counts[holding], seed=seed, block_shards=config.block_shards, shuffle=config.shuffle)
        sizes = sorted((index.info.shards[int(shard)].size_bytes for shard in self.shards), reverse=True)
        index.storage.require_room(sum(sizes[: 2 * int(np.diff(self.order.epoch(0).cuts).max())]))
        self._lock = threading.Lock()  # the order keeps its current block, and so do we
        self._ends: OrderedDict[int, np.ndarray] = OrderedDict()
        self._announced: tuple[int, int] | None = None

    def of_step(self, samples_seen: int) -> list[list[Span]]:
        """The spans of each micro-batch of the step that follows `samples_seen`."""
        with self._lock:
            self._announce(samples_seen)
            taken = [self.order.take(samples_seen + start, samples_seen + stop) for start, stop in self.slices]
            return [[span for _, samples in runs for span in self._spans(samples)] for runs in taken]

    def _spans(self, samples: np.ndarray) -> list[Span]:
        rows = np.searchsorted(self.first_sample, samples, side="right") - 1
        places = (samples - self.first_sample[rows]).tolist()
        return [self._span(row, place) for row, place in zip(rows.tolist(), places, strict=True)]

    def _span(self, row: int, place: int) -> Span:
        first = int(self.first_story[row])
        if self.config.unit == "story":
            return first + place, 0, int(self.num_frames[first + place])
        ends = self._window_ends(row)
        story = int(np.searchsorted(ends, place, side="right"))
        start = place - (int(ends[story - 1]) if story else 0)
        return first + story, start, start + self.config.context + 1

    def _window_ends(self, row: int) -> np.ndarray:
        """int64: windows of a shard's stories, added up. Kept for as many shards as are in use at once."""
        if row not in self._ends:
            first = int(self.first_story[row])
            last = first + self.index.info.shards[int(self.shards[row])].num_stories
            self._ends[row] = _num_windows(self.num_frames[first:last], self.config.context).cumsum()
            if len(self._ends) > 4 * self.config.block_shards:
                self._ends.popitem(last=False)
        return self._ends[row]

    def _announce(self, samples_seen: int) -> None:
        """Tells the storage once a block which shards come now and which come next."""
        epoch, position = divmod(samples_seen, self.order.num_samples)
        order = self.order.epoch(epoch)
        block = order.block_at(position)
        if self._announced == (epoch, block):
            return
        self._announced = (epoch, block)
        last = block + 1 == order.num_blocks
        following = self.order.epoch(epoch + 1).shards_of(0) if last else order.shards_of(block + 1)
        coming = dict.fromkeys([*order.shards_of(block).tolist(), *following.tolist()])
        self.index.prefetch_shards([int(self.shards[row]) for row in coming])


def _shards_of(index: ShardIndex, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """int64: the shards of a split, the first story of each, and how many it has."""
    stories = index.split(split)
    counts = np.fromiter((shard.num_stories for shard in index.info.shards), np.int64, len(index.info.shards))
    first = np.cumsum(counts) - counts
    inside = np.flatnonzero((first >= stories.start) & (first < stories.stop) & (counts > 0))
    return inside, first[inside], counts[inside]


def _num_windows(num_frames: np.ndarray, context: int) -> np.ndarray:
    return np.maximum(num_frames.astype(np.int64) - context, 0)


def _windows_of(num_frames: np.ndarray, first_story: np.ndarray, counts: np.ndarray, context: int) -> np.ndarray:
    """int64 [shards]: how many windows each shard holds."""
    windows = np.empty(len(counts), dtype=np.int64)
    begin = 0
    while begin < len(counts):
        origin = int(first_story[begin])
        end = max(begin + 1, int(np.searchsorted(first_story, origin + _CHUNK)))
        last = int(first_story[end - 1] + counts[end - 1])
        per_story = _num_windows(num_frames[origin:last], context)
        windows[begin:end] = np.add.reduceat(per_story, first_story[begin:end] - origin)
        begin = end
    return windows
