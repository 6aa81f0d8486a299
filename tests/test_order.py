"""Ranks are plain numbers here: every world size is built in one process."""

from pathlib import Path

import numpy as np
import pytest

from storydist.data.order import Order, accumulation_steps, evaluation_slices, mix64, mixing, rank_slice, shuffled

SHARDS = np.array([7, 1, 13, 5, 8, 3])  # 37 samples: divides by nothing


def order(seed: int = 3, block_shards: int = 2, shuffle: bool = True) -> Order:
    return Order(SHARDS, seed=seed, block_shards=block_shards, shuffle=shuffle)


def ids(runs: list[tuple[int, np.ndarray]]) -> list[int]:
    return [int(s) for _, samples in runs for s in samples]


def test_mix64_is_splitmix64():
    # First outputs of splitmix64 seeded with 0, from the reference implementation: state += golden gamma, then mixed.
    assert int(mix64(items=np.array([0x9E3779B97F4A7C15], dtype=np.uint64))[0]) == 0xE220A8397B1DCDAF


def test_shuffled_is_a_permutation_that_depends_on_its_key():
    assert sorted(shuffled(100, 1, 2)) == list(range(100))
    assert list(shuffled(100, 1, 2)) == list(shuffled(100, 1, 2))
    assert list(shuffled(100, 1, 2)) != list(shuffled(100, 2, 1))


@pytest.mark.parametrize("block_shards", [1, 2, 3, 100])
def test_every_epoch_holds_every_sample_once_in_a_new_order(block_shards):
    whole = order(block_shards=block_shards)
    epochs = [ids(whole.take(37 * e, 37 * (e + 1))) for e in range(3)]
    assert all(sorted(epoch) == list(range(37)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_unshuffled_order_is_the_stored_one():
    assert ids(order(shuffle=False).take(30, 44)) == [30, 31, 32, 33, 34, 35, 36, 0, 1, 2, 3, 4, 5, 6]


def test_a_block_needs_few_shards():
    shard_of = np.repeat(np.arange(len(SHARDS)), SHARDS)
    epoch = order(block_shards=2).epoch(0)
    start = 0
    for end in epoch.ends:
        assert len(set(shard_of[epoch.take(start, int(end))])) == 2
        start = int(end)


def test_resuming_at_any_position_continues_the_same_order():
    straight = ids(order().take(0, 111))
    for position in range(111):
        assert ids(order().take(position, 111)) == straight[position:]


@pytest.mark.parametrize("world_size", range(1, 9))
@pytest.mark.parametrize("accumulation", [1, 3])
def test_ranks_and_micro_batches_only_cut_the_global_batch(world_size, accumulation):
    global_batch = 2520  # divided by every world size, times 3
    whole = ids(order().take(2520, 5040))
    parts = [part for rank in range(world_size) for part in rank_slice(global_batch, rank, world_size, accumulation)]
    assert [s for start, stop in parts for s in ids(order().take(2520 + start, 2520 + stop))] == whole
    assert len({stop - start for start, stop in parts}) == 1


def test_a_global_batch_that_cannot_be_cut_is_refused_with_a_remedy():
    with pytest.raises(ValueError, match=r"30 cannot be split over 4 ranks x 4 micro-batches; use a multiple of 16"):
        rank_slice(30, 0, 4, 4)
    with pytest.raises(ValueError, match="multiple of 4"):
        accumulation_steps(30, 4, 8)


@pytest.mark.parametrize(
    ("global_batch", "world_size", "micro_batch", "steps"),
    [(8, 1, 8, 1), (8, 2, 8, 1), (8, 1, 3, 4), (12, 2, 4, 2), (7, 1, 3, 7)],
)
def test_accumulation_takes_the_fewest_even_steps(global_batch, world_size, micro_batch, steps):
    assert accumulation_steps(global_batch, world_size, micro_batch) == steps


@pytest.mark.parametrize("world_size", range(1, 9))
@pytest.mark.parametrize("num_samples", [1, 7, 16, 37])
def test_evaluation_takes_every_sample_once_in_equally_many_steps(world_size, num_samples):
    ranks = [list(evaluation_slices(num_samples, 3, rank, world_size)) for rank in range(world_size)]
    taken = sorted(i for steps in ranks for start, stop in steps for i in range(start, stop))
    assert taken == list(range(num_samples))
    assert len({len(steps) for steps in ranks}) == 1


def test_nothing_to_order_is_an_error():
    with pytest.raises(ValueError, match="no sample"):
        Order(np.zeros(3, dtype=np.int64), seed=0, block_shards=1)


def test_the_documentation_s_example():
    small = Order(np.array([3, 2, 4, 2]), seed=7, block_shards=2)
    page = (Path(__file__).resolve().parents[1] / "docs" / "stream.md").read_text()
    for key, count in (((7, 0, 1), 4), ((7, 0, 2, 0), 4)):
        assert all(f"`{int(h):016x}`" in page for h in mix64(*key, items=np.arange(count)))
    assert "epoch is " + ", ".join(map(str, ids(small.take(0, 11)))) + "." in page
    assert f"samples {', '.join(map(str, ids(small.take(9, 11))))} of epoch 0" in page
    assert f"then {', '.join(map(str, ids(small.take(11, 18))))} of epoch 1" in page


@pytest.mark.parametrize("num_shards", [1, 5, 63, 64, 127, 128, 200, 1000])
def test_blocks_are_even_and_hold_each_shard_once(num_shards):
    epoch = Order(np.full(num_shards, 3), seed=1, block_shards=64).epoch(2)
    sizes = [len(epoch.shards_of(block)) for block in range(epoch.num_blocks)]
    assert max(sizes) - min(sizes) <= 1 and max(sizes) < 128
    assert min(sizes) >= min(64, num_shards)
    assert sorted(shard for block in range(epoch.num_blocks) for shard in epoch.shards_of(block)) == list(
        range(num_shards)
    )


@pytest.mark.parametrize(("num_shards", "per_shard"), [(13, 50), (100, 40), (1000, 64), (3000, 10)])
def test_neighbours_come_from_everywhere(num_shards, per_shard):
    """At most 0.12 of the pairs among 12 neighbours lie in the same tenth of the data; 0.10 is a full shuffle."""
    counts = per_shard + mix64(items=np.arange(num_shards)).astype(np.int64) % 7
    assert mixing(Order(counts, seed=3, block_shards=64)) <= 0.12


def test_the_measure_of_mixing():
    counts = np.full(200, 60)
    assert mixing(Order(counts, seed=3, block_shards=64, shuffle=False)) > 0.95
    assert mixing(Order(counts, seed=3, block_shards=200)) == pytest.approx(0.10, abs=0.005)
    assert mixing(Order(counts, seed=3, block_shards=8)) == pytest.approx(0.1 + 0.9 / 8, abs=0.05)
    assert np.isnan(mixing(Order(np.array([3, 4]), seed=3, block_shards=8)))
