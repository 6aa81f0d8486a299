import itertools
import random

import numpy as np
import pytest
from accelerate import Accelerator
from torch.utils.data import DataLoader

from storydist.data.batch import Batch
from storydist.data.index import ShardIndex
from storydist.data.settings import DataConfig
from storydist.data.stream import Stream, evaluation_batches
from tests.small_runs import data_config


def stream(index: ShardIndex, *, unit: str = "story", **changes) -> Stream:
    config = DataConfig(shards=str(index.root), unit=unit, max_wordpieces=20, prefetch=changes.pop("prefetch", 1))
    return Stream(index, config, **({"seed": 5, "global_batch": 6} | changes))


def places(made: Stream, samples_seen: int) -> list[tuple[int, int, int]]:
    return [place for part in made.places.of_step(samples_seen) for place in part]


@pytest.mark.parametrize("unit", ["story", "window"])
def test_an_epoch_holds_every_sample_once(tiny_index, unit):
    made = stream(tiny_index, unit=unit, global_batch=1)
    epoch = [places(made, i)[0] for i in range(made.num_samples)]
    frames = tiny_index.stories["num_frames"][:24].astype(int)
    if unit == "story":
        assert sorted(epoch) == [(s, 0, frames[s]) for s in range(24)]
    else:
        assert sorted(epoch) == [(s, a, a + 5) for s in range(24) for a in range(frames[s] - 4)]


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
@pytest.mark.parametrize("accumulation_steps", [1])
def test_the_global_batch_is_the_same_for_every_world_size(tiny_index, world_size, accumulation_steps):
    alone = stream(tiny_index)
    ranks = [
        stream(tiny_index, rank=r, world_size=world_size, accumulation_steps=accumulation_steps)
        for r in range(world_size)
    ]
    for samples_seen in (0, 6, 18, 66):
        assert [p for rank in ranks for p in places(rank, samples_seen)] == places(alone, samples_seen)


def test_micro_batches_cut_a_rank_s_share(tiny_index):
    whole, cut = stream(tiny_index), stream(tiny_index, accumulation_steps=3)
    assert [len(part) for part in cut.places.of_step(0)] == [2, 2, 2]
    assert places(cut, 12) == places(whole, 12)


def ledger(index: ShardIndex, *, unit: str, world_size: int, samples_seen: int, steps: int) -> bytes:
    """What all ranks read in some steps, as they read it: a line a sample, ranks in order within a step."""
    ranks = [stream(index, unit=unit, global_batch=12, rank=r, world_size=world_size) for r in range(world_size)]
    sources = [rank.steps(samples_seen) for rank in ranks]
    lines = []
    for _ in range(steps):
        for source in sources:
            (batch,) = next(source)
            places = zip(batch.ids, batch.story_B.tolist(), batch.frame_story_N.bincount().tolist(), strict=True)
            starts = batch.position_N[batch.frame_story_N.diff(prepend=batch.frame_story_N[:1] - 1) > 0].tolist()
            lines += [f"{place} {start}\n" for place, start in zip(places, starts, strict=True)]
    for source in sources:
        source.close()
    return "".join(lines).encode()


@pytest.mark.parametrize("unit", ["story", "window"])
def test_runs_stopped_and_resumed_at_other_world_sizes_leave_the_same_ledger(tiny_index, unit):
    """Stops at random steps, across epochs, a second and a third resume among them."""
    straight = ledger(tiny_index, unit=unit, world_size=1, samples_seen=0, steps=26)
    assert len(straight.splitlines()) == 26 * 12 > 2 * stream(tiny_index, unit=unit).num_samples
    generator = random.Random(11)
    for _ in range(4):
        stops = sorted(generator.sample(range(1, 26), 4))
        pieces = [
            ledger(tiny_index, unit=unit, world_size=generator.choice([1, 2, 3, 4]), samples_seen=12 * a, steps=b - a)
            for a, b in itertools.pairwise([0, *stops, 26])
        ]
        assert b"".join(pieces) == straight


@pytest.mark.parametrize("unit", ["story", "window"])
@pytest.mark.parametrize("world_size", range(1, 9))
def test_every_sample_once_an_epoch_over_all_ranks(tiny_index, unit, world_size):
    """840 is divided by every world size; 24 stories and 61 windows are divided by hardly any."""
    ranks = [stream(tiny_index, unit=unit, global_batch=840, rank=r, world_size=world_size) for r in range(world_size)]
    read = [place for step in range(3) for rank in ranks for place in places(rank, 840 * step)]
    size = ranks[0].num_samples
    for epoch in range(len(read) // size):
        assert len(set(read[epoch * size : (epoch + 1) * size])) == size
    assert len({len(places(rank, 0)) for rank in ranks}) == 1


@pytest.mark.parametrize(("threads", "prefetch"), [(1, 1), (3, 5)])
def test_threads_and_prefetch_change_nothing(tiny_index, threads, prefetch):
    made = stream(tiny_index, prefetch=prefetch)
    made.config = made.config.model_copy(update={"threads": threads})
    steps = made.steps()
    found = [[batch.story_B.tolist() for batch in next(steps)] for _ in range(9)]
    steps.close()
    assert found == [[[s for s, _, _ in part] for part in made.places.of_step(6 * i)] for i in range(9)]


def test_a_stream_ends_where_it_is_told_and_reads_no_further(tiny_index):
    made = stream(tiny_index, prefetch=4)
    read: list[int] = []
    load = made.load_step

    def noted(samples_seen: int) -> list[Batch]:
        read.append(samples_seen)
        return load(samples_seen)

    made.load_step = noted  # type: ignore[method-assign]
    assert len(list(made.steps(6, stop=25))) == 4
    assert sorted(read) == [6, 12, 18, 24]


def test_a_stream_starts_anywhere(tiny_index):
    made = stream(tiny_index)
    straight, resumed = made.steps(), made.steps(samples_seen=18)
    wanted = [next(straight)[0].ids for _ in range(5)][3:]
    assert [next(resumed)[0].ids for _ in range(2)] == wanted
    straight.close()
    resumed.close()


def test_a_window_sample_is_that_part_of_its_story(tiny_index):
    made = stream(tiny_index, unit="window", global_batch=1)
    (story, start, _), batch = places(made, 3)[0], made.load_step(3)[0]
    whole = next(b for b in evaluation_batches(tiny_index, "train", data_config(tiny_index), batch_stories=24))
    rows = np.flatnonzero((whole.frame_story_N == story).numpy())[start : start + 5]
    assert (batch.frames_NHWC == whole.frames_NHWC[rows]).all()
    assert batch.position_N.tolist() == list(range(start, start + 5))
    assert batch.lengths_N.tolist() == whole.lengths_N[rows].tolist()
    assert batch.tag_mask_NG.sum(1).tolist() == whole.tag_mask_NG[rows].sum(1).tolist()


@pytest.mark.parametrize("world_size", [1, 2, 4, 7])
def test_evaluation_counts_every_story_once_and_all_ranks_step_alike(tiny_index, world_size):
    config = data_config(tiny_index)
    ranks = [
        list(evaluation_batches(tiny_index, "test", config, batch_stories=2, rank=r, world_size=world_size))
        for r in range(world_size)
    ]
    counted = sorted(
        s for steps in ranks for b in steps for s, v in zip(b.story_B.tolist(), b.valid_B.tolist(), strict=True) if v
    )
    assert counted == list(tiny_index.split("test"))
    assert len({len(steps) for steps in ranks}) == 1


def test_damage_stops_the_stream_naming_shard_story_and_member(own_index):
    path = own_index.shard_path(0)
    _, offset, _, _ = own_index.members_of(3)[0]
    data = bytearray(path.read_bytes())
    data[offset + 200] ^= 1
    path.write_bytes(data)
    steps = stream(own_index, global_batch=23).steps()
    with pytest.raises(
        ValueError, match=r"train-000000\.tar: story 'train/3', member 'frames.npy' at offset \d+ does not match"
    ):
        next(steps)


def test_a_shortened_or_missing_shard_is_named(own_index):
    path = own_index.shard_path(0)
    path.write_bytes(path.read_bytes()[:-600])  # only the tail of the tar's padding
    with pytest.raises(ValueError, match=r"train-000000\.tar: has \d+ bytes, the index says \d+"):
        stream(own_index).load_step(0)
    path.unlink()
    with pytest.raises(ValueError, match=r"train-000000\.tar: this shard is listed"):
        stream(own_index).load_step(0)


def test_an_empty_or_unknown_split_is_an_error(tiny_index):
    with pytest.raises(ValueError, match="has no split 'val'; it has train, test"):
        stream(tiny_index, split="val")


def test_accelerate_gives_a_stream_back_untouched(tiny_index):
    accelerator = Accelerator(cpu=True)
    made = stream(tiny_index)
    assert accelerator.prepare(made) is made
    steps = made.steps()
    assert accelerator.prepare(steps) is steps
    steps.close()


def test_a_loader_over_a_stream_refuses_with_the_reason(tiny_index):
    """Accelerate would split it a second time, and rank 1's samples would never be read."""
    loader = Accelerator(cpu=True).prepare(DataLoader(stream(tiny_index)))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"splits itself over ranks.*accelerator\.prepare\(\)"):
        next(iter(loader))
    with pytest.raises(TypeError, match="splits itself over ranks"):
        next(iter(DataLoader(stream(tiny_index), sampler=range(3))))  # type: ignore[arg-type]
