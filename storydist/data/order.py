"""In which order samples are read: arithmetic on (seed, epoch, position), with no rank, worker or world size in it.

The samples of a split lie in shards, numbered end to end. An epoch's order is made in three steps:

1. the shards are shuffled;
2. neighbours in that order form blocks of at least `block_shards` shards, as even as can be;
3. within a block all samples are shuffled.

So a reader needs one block of shards at a time, each shard comes once an epoch, and so does every sample. Shuffling
means sorting by the hash `mix64(seed, epoch, stage, number)`: the same on every machine and for every library version,
and easy to recompute by hand.

Epochs follow each other without a seam: position p belongs to epoch p // n, and a global batch may span two epochs. So
every step consumes exactly `global_batch` samples, and the whole state of the order is the number of samples seen.
"""

from collections.abc import Iterator

import numpy as np

_SHARDS, _SAMPLES = 1, 2  # stages of the shuffle, so that their hashes differ


def mix64(*numbers: int, items: np.ndarray | int = 0) -> np.ndarray:
    """uint64 hash of `numbers` and each of `items`: splitmix64's finalizer, applied once per number.

    Source: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014.
    """
    with np.errstate(over="ignore"):
        state = np.full(np.shape(items), 0x9E3779B97F4A7C15, dtype=np.uint64)
        for number in (*numbers, items):
            word = np.asarray(number).astype(np.uint64)  # a negative number wraps, as in C
            state = (state ^ word) + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state


def shuffled(count: int, *key: int) -> np.ndarray:
    """int64 [count]: 0 .. count-1 in the order of their hashes under `key`."""
    return np.argsort(mix64(*key, items=np.arange(count)), kind="stable")


class EpochOrder:
    """The order of one epoch over `samples_per_shard` (int64 [shards]); `shuffle=False` gives the stored order."""

    def __init__(self, samples_per_shard: np.ndarray, *, seed: int, epoch: int, block_shards: int, shuffle: bool):
        num_shards = len(samples_per_shard)
        self.seed, self.epoch, self.shuffle = seed, epoch, shuffle
        self.shards = shuffled(num_shards, seed, epoch, _SHARDS) if shuffle else np.arange(num_shards)
        self.counts = samples_per_shard[self.shards]
        self.first_sample = (np.cumsum(samples_per_shard) - samples_per_shard)[self.shards]
        # Block b takes shards[cuts[b] : cuts[b + 1]] and the positions ends[b - 1] .. ends[b].
        self.num_blocks = max(1, num_shards // block_shards)
        self.cuts = np.arange(self.num_blocks + 1) * num_shards // self.num_blocks
        self.ends = np.add.reduceat(self.counts, self.cuts[:-1]).cumsum()
        self._block: tuple[int, np.ndarray] | None = None

    def shards_of(self, block: int) -> np.ndarray:
        """int64: the shards of one block, as numbered in `samples_per_shard`."""
        return self.shards[self.cuts[block] : self.cuts[block + 1]]

    def block_at(self, position: int) -> int:
        """The block in which a position of this epoch lies."""
        return int(np.searchsorted(self.ends, position, side="right"))

    def block(self, number: int) -> np.ndarray:
        """int64: the samples of one block, in their order."""
        if self._block is None or self._block[0] != number:
            shards = slice(self.cuts[number], self.cuts[number + 1])
            runs = [np.arange(f, f + c) for f, c in zip(self.first_sample[shards], self.counts[shards], strict=True)]
            samples = np.concatenate(runs)
            if self.shuffle:
                samples = samples[shuffled(len(samples), self.seed, self.epoch, _SAMPLES, number)]
            self._block = (number, samples)
        return self._block[1]

    def take(self, start: int, stop: int) -> np.ndarray:
        """int64 [stop - start]: the samples at positions start .. stop-1 of this epoch."""
        assert 0 <= start <= stop <= self.ends[-1], (start, stop, int(self.ends[-1]))
        parts = [np.empty(0, dtype=np.int64)]
        while start < stop:
            number = self.block_at(start)
            begin = int(self.ends[number - 1]) if number else 0
            end = min(stop, int(self.ends[number]))
            parts.append(self.block(number)[start - begin : end - begin])
            start = end
        return np.concatenate(parts)


class Order:
    """All epochs, one after the other, over the same samples.

    samples_per_shard: int64 [shards], each at least 1. block_shards: shards that are shuffled together at least, >= 1;
    fewer than twice as many are. Raises ValueError when there is nothing to order.
    """

    def __init__(self, samples_per_shard: np.ndarray, *, seed: int, block_shards: int, shuffle: bool = True):
        self.num_samples = int(samples_per_shard.sum())
        if self.num_samples == 0:
            raise ValueError("there is no sample to order: every story is too short, or the split is empty")
        assert samples_per_shard.min() > 0, "a shard without a sample takes part in no order"
        self.samples_per_shard = samples_per_shard
        self.settings = {"seed": seed, "block_shards": block_shards, "shuffle": shuffle}
        self._epochs: dict[int, EpochOrder] = {}

    def epoch(self, number: int) -> EpochOrder:
        """The order of epoch `number`. Two are kept: where one ends, the next is read ahead."""
        if number not in self._epochs:
            made = EpochOrder(self.samples_per_shard, epoch=number, **self.settings)  # type: ignore[arg-type]
            self._epochs = {max(self._epochs): self._epochs[max(self._epochs)]} if self._epochs else {}
            self._epochs[number] = made
        return self._epochs[number]

    def take(self, start: int, stop: int) -> list[tuple[int, np.ndarray]]:
        """[(epoch, int64 samples)]: what lies at positions start .. stop-1, counted from the beginning of epoch 0."""
        runs = []
        while start < stop:
            epoch, place = divmod(start, self.num_samples)
            length = min(stop - start, self.num_samples - place)
            runs.append((epoch, self.epoch(epoch).take(place, place + length)))
            start += length
        return runs


def rank_slice(global_batch: int, rank: int, world_size: int, accumulation_steps: int = 1) -> list[tuple[int, int]]:
    """[(start, stop)] within a global batch: the micro-batches of one rank.

    Raises ValueError when the global batch cannot be cut evenly.
    """
    parts = world_size * accumulation_steps
    if global_batch % parts:
        raise ValueError(
            f"train.global_batch {global_batch} cannot be split over {world_size} ranks x "
            f"{accumulation_steps} micro-batches; use a multiple of {parts}"
        )
    size = global_batch // parts
    first = rank * accumulation_steps
    return [((first + i) * size, (first + i + 1) * size) for i in range(accumulation_steps)]


def accumulation_steps(global_batch: int, world_size: int, micro_batch: int) -> int:
    """The fewest micro-batches of at most `micro_batch` samples per rank that cut the global batch evenly.

    Raises ValueError when the world size does not divide the global batch.
    """
    if global_batch % world_size:
        raise ValueError(
            f"train.global_batch {global_batch} cannot be split over {world_size} ranks; use a multiple of {world_size}"
        )
    per_rank = global_batch // world_size
    return next(steps for steps in range(1, per_rank + 1) if per_rank % steps == 0 and per_rank // steps <= micro_batch)


def evaluation_slices(num_samples: int, per_rank: int, rank: int, world_size: int) -> Iterator[tuple[int, int]]:
    """(start, stop) for each step: this rank's samples. Every rank gets the same number of steps; towards the end they
    may be empty.
    """
    for base in range(0, num_samples, per_rank * world_size):
        start = min(base + rank * per_rank, num_samples)
        yield start, min(start + per_rank, num_samples)


NEIGHBOURS = 12
WELL_MIXED = 0.12


def mixing(order: Order, *, blocks: int = 4) -> float:
    """How well epoch 0 is mixed: of all pairs among 12 samples in a row, the share that lies in the same tenth of the
    stored order. A full shuffle has 0.10, the stored order nearly 1.

    Measured on at most `blocks` blocks, spread over the epoch. Samples that do not fill a row of 12 are left out; with
    fewer than 12 samples there is nothing to measure: NaN.
    """
    epoch = order.epoch(0)
    chosen = np.unique(np.linspace(0, epoch.num_blocks - 1, blocks).astype(np.int64))
    tenths = [epoch.block(int(number)) * 10 // order.num_samples for number in chosen]
    rows = [block[: len(block) // NEIGHBOURS * NEIGHBOURS].reshape(-1, NEIGHBOURS) for block in tenths]
    row_RK = np.concatenate(rows)
    if not len(row_RK):
        return float("nan")
    count_R10 = np.stack([(row_RK == tenth).sum(axis=1) for tenth in range(10)], axis=1)
    pairs = NEIGHBOURS * (NEIGHBOURS - 1)
    return float((count_R10 * (count_R10 - 1)).sum() / (len(row_RK) * pairs))
