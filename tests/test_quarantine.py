"""Samples that cannot be used while training: counted, listed, agreed, and the run goes on as it would have."""

import json
from pathlib import Path

import pytest

from storydist.data.index import ShardIndex
from storydist.data.reader import BadSample
from storydist.training.preemption import REQUEUE
from tests.test_trainer import fresh_accelerate, metrics, run_to_end, timeless, weights  # noqa: F401 (a fixture)

SKIP = {"on_bad_sample": "skip", "max_skipped": 1.0}


@pytest.fixture
def damaged(own_index) -> ShardIndex:
    """Two of 24 training stories and one of 6 test stories have a flipped bit."""
    for story in (3, 17, 25):
        row = own_index.stories[story]
        _, offset, size, _ = own_index.members_of(story)[0]
        path = own_index.shard_path(int(row["shard"]))
        data = bytearray(path.read_bytes())
        data[offset + size - 9] ^= 4
        path.write_bytes(data)
    return own_index


def sections(index: ShardIndex, **data) -> dict:
    return {"data": {"shards": str(index.root), "max_wordpieces": 20, **SKIP, **data}, "train": {"steps": 14}}


def listed(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "quarantine.jsonl").read_text().splitlines()]


def test_by_default_a_bad_sample_stops_the_run(damaged, tmp_path):
    with pytest.raises(BadSample, match=r"story 'train/(3|17)', member 'frames.npy' at offset"):
        run_to_end(damaged, tmp_path / "run", train={"steps": 14})


def test_what_was_skipped_is_counted_and_listed(damaged, tmp_path):
    code, run = run_to_end(damaged, tmp_path / "run", **sections(damaged))
    assert code == 0
    entries = listed(tmp_path / "run")
    assert sorted(entry["story_id"] for entry in entries) == ["train/17", "train/3"]
    assert all(
        entry["shard"].endswith("train-000000.tar") and "does not match its checksum" in entry["reason"]
        for entry in entries
    )
    # 14 steps of 4 samples are two epochs of 24 and a third of one.
    lines = metrics(tmp_path / "run")
    assert lines[-1]["skipped_samples"] == run.state.skipped_samples >= 4
    counted = [line["skipped_samples"] for line in lines]
    assert counted == sorted(counted) and counted[0] == 0


def test_the_list_survives_stops_and_nothing_else_changes(damaged, tmp_path):
    run_to_end(damaged, tmp_path / "straight", **sections(damaged))
    for stop in (3, 8):
        assert run_to_end(damaged, tmp_path / "stopped", stop_after=stop, **sections(damaged))[0] == REQUEUE
    (tmp_path / "stopped" / "quarantine.jsonl").write_text('{"found": "after the checkpoint"}\n')  # as a kill leaves it
    assert run_to_end(damaged, tmp_path / "stopped", **sections(damaged))[0] == 0
    assert listed(tmp_path / "stopped") == listed(tmp_path / "straight")
    assert timeless(metrics(tmp_path / "stopped")) == timeless(metrics(tmp_path / "straight"))
    one, other = weights(tmp_path / "straight", 14), weights(tmp_path / "stopped", 14)
    assert all(one[name].equal(other[name]) for name in one)


def test_too_many_are_a_broken_disk(damaged, tmp_path):
    with pytest.raises(ValueError, match=r"2 of 24 samples could not be used, more than data.max_skipped 0.05 allows"):
        run_to_end(damaged, tmp_path / "run", **sections(damaged, max_skipped=0.05))


def test_evaluation_leaves_them_out_and_says_so(damaged, tmp_path):
    settings = sections(damaged)
    settings["train"] |= {"evaluate_every": 14, "evaluate_split": "test"}
    run_to_end(damaged, tmp_path / "run", **settings)
    (line,) = [line for line in metrics(tmp_path / "run") if line["kind"] == "evaluation"]
    assert line["num_skipped"] == 1 and line["metrics"]["image L1"]["value"] > 0
