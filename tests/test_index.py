"""The index: written, opened, asked; changed and found out."""

import pickle
import time

import numpy as np
import pytest

from storydist.data.index import MEMBER_DTYPE, STORY_DTYPE, IndexInfo, ShardIndex, fingerprint_of, write_index

SHARD = {"size_bytes": 10240, "sha256": "0" * 64}
INFO = {
    "frames": "raw",
    "height": 60,
    "width": 125,
    "tokenizer": "train:8000",
    "vocabulary_size": 4,
    "suffixes": ["frames.npy", "json"],
    "shards": [
        SHARD | {"name": "train-000000.tar", "num_stories": 2},
        SHARD | {"name": "val-000000.tar", "num_stories": 1},
    ],
    "splits": {
        "train": {"first": 0, "num_stories": 2, "num_frames": 9},
        "val": {"first": 2, "num_stories": 1, "num_frames": 5},
    },
    "tag_vocabulary": [("", "<pad>"), ("", "<unk>"), ("action", "runs")],
    "score": {"mean": 1.0, "std": 0.5, "min": 0.0, "max": 2.0, "count": 2},
    "skipped": {},
    "files": {},
    "options": {"seed": 0},
}


def write(root, **changes) -> IndexInfo:
    stories = np.array([(0, 0, 2, 4, 1.5), (0, 2, 2, 5, np.nan), (1, 4, 1, 5, 2.0)], STORY_DTYPE)
    members = np.array([(512 + 1024 * n, 100 + n, n, n % 2) for n in range(5)], MEMBER_DTYPE)
    return write_index(root, INFO | changes, stories, members, ["a", "bé", "c"], np.ones(4, np.float32))


def test_what_was_written_is_found(tmp_path):
    info = write(tmp_path)
    index = ShardIndex.open(tmp_path)
    assert index.info == info and index.root == tmp_path
    assert index.split("train") == range(2) and index.split("val") == range(2, 3)
    assert [index.story_id(story) for story in range(3)] == ["a", "bé", "c"]
    assert index.members_of(1) == [("frames.npy", 2560, 102, 2), ("json", 3584, 103, 3)]
    assert index.shard_path(1) == tmp_path / "val-000000.tar"
    assert np.isnan(index.stories["score"][1]) and index.wordpiece_idf.tolist() == [1, 1, 1, 1]
    assert set(info.files) == {f"index.{name}.npy" for name in ("stories", "members", "story_ids", "idf")}


def test_unknown_split_lists_the_splits(tmp_path):
    write(tmp_path)
    with pytest.raises(ValueError, match="no split 'test'; it has train, val"):
        ShardIndex.open(tmp_path).split("test")


def test_longest_story_of_a_split(tmp_path):
    write(tmp_path)
    index = ShardIndex.open(tmp_path)
    assert [index.longest_story(split) for split in ("train", "val", "test")] == [5, 5, 0]


def test_pickling_opens_again(tmp_path):
    write(tmp_path)
    index = ShardIndex.open(tmp_path)
    data = pickle.dumps(index)
    assert len(data) < 1000 and pickle.loads(data).info == index.info


def test_fingerprint_is_of_everything_else(tmp_path):
    (tmp_path / "other").mkdir()
    same, other = write(tmp_path).fingerprint, write(tmp_path / "other", options={"seed": 1}).fingerprint
    assert same == fingerprint_of((tmp_path / "index.json").read_bytes()) == write(tmp_path).fingerprint != other


@pytest.mark.parametrize(("found", "instead"), [('"seed": 0', '"seed": 1'), ('"fingerprint": "', '"fingerprint": "0')])
def test_edited_index_is_refused(tmp_path, found, instead):
    write(tmp_path)
    path = tmp_path / "index.json"
    text = path.read_text()
    assert found in text
    path.write_text(text.replace(found, instead))
    with pytest.raises(ValueError, match="changed after it was written"):
        ShardIndex.open(tmp_path)


def test_folders_without_an_index(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a shard set"):
        ShardIndex.open(tmp_path / "nowhere")
    (tmp_path / ".build").mkdir()
    with pytest.raises(FileNotFoundError, match="unfinished build"):
        ShardIndex.open(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", '{"schema_version": 0}', "{"])
def test_other_json_is_refused(tmp_path, text):
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(ValueError, match=r"index\.json"):
        ShardIndex.open(tmp_path)


@pytest.mark.parametrize("name", ["index.stories.npy", "index.idf.npy"])
def test_tables_must_be_there_and_fit(tmp_path, name):
    write(tmp_path)
    np.save(tmp_path / name, np.zeros(7))
    with pytest.raises(ValueError, match="does not fit"):
        ShardIndex.open(tmp_path)
    (tmp_path / name).write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="damaged"):
        ShardIndex.open(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match="missing"):
        ShardIndex.open(tmp_path)


def test_opening_does_not_read_the_tables(tmp_path):
    """A million stories open as fast as three; the bound is far above what is needed, far below reading them."""
    number = 1_000_000
    shards = [SHARD | {"name": "train-000000.tar", "num_stories": number}]
    splits = {"train": {"first": 0, "num_stories": number, "num_frames": number}}
    write_index(
        tmp_path, INFO | {"shards": shards, "splits": splits}, np.zeros(number, STORY_DTYPE),
        np.zeros(number, MEMBER_DTYPE), ["s"] * number, np.ones(4, np.float32),
    )  # fmt: skip
    ShardIndex.open(tmp_path)
    start_s = time.perf_counter()
    index = ShardIndex.open(tmp_path)
    assert time.perf_counter() - start_s < 0.1 and isinstance(index.stories, np.memmap)
