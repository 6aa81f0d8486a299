"""Damaged and hostile shard sets: what is wrong is named, or left out and counted; nothing is served as if whole."""

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storydist.data.frame_runs import SampleReader
from storydist.data.index import MEMBER_DTYPE, STORY_DTYPE, ShardIndex, write_index
from storydist.data.reader import BadSample, ShardReader
from storydist.data.settings import DataConfig
from storydist.data.stream import MemberStream, Stream, evaluation_batches
from tests.tiny_shards import write_shards


@pytest.fixture(params=["raw", "jpeg"])
def index(request, tmp_path) -> ShardIndex:
    return write_shards(tmp_path / "shards", jpeg=request.param == "jpeg")


def config(index: ShardIndex, **changes: Any) -> DataConfig:
    return DataConfig(shards=str(index.root), max_wordpieces=20, size=(12, 24), **changes)


def stream(index: ShardIndex, **changes: Any) -> Stream:
    return Stream(index, config(index, **changes), seed=5, global_batch=24)


def member(index: ShardIndex, story: int, suffix: str) -> tuple[int, int]:
    """Offset and size of a member."""
    return next((offset, size) for name, offset, size, _ in index.members_of(story) if name == suffix)


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def rewrite_index(index: ShardIndex, **columns: Any) -> ShardIndex:
    """The same tars under an index with other rows: a well-formed lie."""
    stories, members = np.array(index.stories, STORY_DTYPE), np.array(index.members, MEMBER_DTYPE)
    for name, change in columns.items():
        change(stories if name == "stories" else members)
    info = index.info.model_dump(exclude={"schema_version", "fingerprint"})
    ids = [index.story_id(story) for story in range(len(stories))]
    write_index(index.root, info, stories, members, ids, np.array(index.wordpiece_idf))
    return ShardIndex.open(index.root)


def frames_member(index: ShardIndex) -> str:
    return "frames.npy" if index.info.frames == "raw" else "002.jpg"


@pytest.mark.parametrize("unit", ["story", "window"])
def test_flipped_pixels_are_found_and_named(index, unit):
    suffix = frames_member(index)
    offset, size = member(index, 3, suffix)
    overwrite(index.shard_path(0), offset + size // 2, b"\x5a\xa5")  # inside the scan: any decoder would conceal it
    with pytest.raises(
        BadSample, match=rf"train-000000\.tar: story 'train/3', member '{suffix}' at offset {offset} does not match"
    ):
        made = stream(index, unit=unit)
        for step in range(4):
            made.load_step(24 * step)


def test_flipped_text_is_found(index):
    offset, size = member(index, 3, "wordpieces.npy")
    overwrite(index.shard_path(0), offset + size - 1, b"\x7f")
    with pytest.raises(BadSample, match=r"story 'train/3', member 'wordpieces\.npy' at offset"):
        stream(index).load_step(0)


def test_an_image_that_is_none_is_named_with_its_place(tmp_path):
    """As somebody's writer packed it, so that the checksum holds."""
    index = write_shards(tmp_path, jpeg=True)
    offset, size = member(index, 3, "002.jpg")
    junk = b"\xff\xd8" + bytes(size - 2)
    overwrite(index.shard_path(0), offset, junk)

    def agree(members: np.ndarray) -> None:
        members["crc32"][members["offset"] == offset] = zlib.crc32(junk)

    lying = rewrite_index(index, members=agree)
    for decode in ("exact", "scaled"):
        with pytest.raises(BadSample, match=rf"'train/3', member '002.jpg' at offset {offset} is no usable image"):
            stream(lying, decode=decode).load_step(0)


def test_a_decompression_bomb_is_refused_by_its_header(tmp_path):
    index = write_shards(tmp_path, jpeg=True)
    offset, size = member(index, 3, "002.jpg")
    data = bytearray(index.shard_path(0).read_bytes()[offset : offset + size])
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 65000, 65000)
    overwrite(index.shard_path(0), offset, bytes(data))

    def agree(members: np.ndarray) -> None:
        members["crc32"][members["offset"] == offset] = zlib.crc32(bytes(data))

    lying = rewrite_index(index, members=agree)
    for decode in ("exact", "scaled"):
        with pytest.raises(BadSample, match=r"no usable image: .*65000x65000|4225000000 pixels"):
            SampleReader(lying, config(lying, decode=decode)).read(3)


def test_a_shard_that_shrinks_while_it_is_read_is_an_error_and_no_crash(index):
    reader = SampleReader(index, config(index))
    reader.read(0)
    last = max(index.split("train"))
    os.truncate(index.shard_path(0), 4096)
    with pytest.raises(BadSample, match=r"the shard ends at byte 4096; it was cut short"):
        reader.read(last)


def test_another_set_of_the_same_sizes_is_found_out(tmp_path):
    one, other = write_shards(tmp_path / "one", seed=3), write_shards(tmp_path / "other", seed=4)
    path = one.shard_path(0)
    path.write_bytes(other.shard_path(0).read_bytes()[: path.stat().st_size].ljust(path.stat().st_size, b"\0"))
    with pytest.raises(BadSample, match="does not match its checksum"):
        stream(one).load_step(0)


def beyond(members: np.ndarray) -> None:
    members["offset"][members["offset"] > 60_000] += 1 << 50


def huge(members: np.ndarray) -> None:
    members["size"][3] = 1 << 60


def backwards(members: np.ndarray) -> None:
    members["offset"] = members["offset"][::-1]


def more_frames(stories: np.ndarray) -> None:
    stories["num_frames"] = 60_000


@pytest.mark.parametrize("lie", [beyond, huge, backwards, more_frames])
def test_a_lying_index_reads_nothing_it_should_not(index, lie):
    lying = rewrite_index(index, **{"stories" if lie is more_frames else "members": lie})
    reader = SampleReader(lying, config(lying))
    with pytest.raises(BadSample):
        for story in lying.split("train"):
            reader.read(story)


@pytest.mark.parametrize("name", ["../secret.tar", "/etc/passwd", "pipe:touch marker", "a/../../b.tar", "s3://b/c.tar"])
def test_an_index_cannot_point_out_of_its_folder(own_index, name):
    info = own_index.info.model_dump(exclude={"schema_version", "fingerprint"})
    info["shards"][0]["name"] = name
    ids = [own_index.story_id(story) for story in range(len(own_index.stories))]
    tables = (np.array(own_index.stories), np.array(own_index.members))
    with pytest.raises(ValueError, match="name"):
        write_index(own_index.root, info, *tables, ids, np.array(own_index.wordpiece_idf))
        ShardIndex.open(own_index.root)


def damage(index: ShardIndex, story: int) -> None:
    offset, size = member(index, story, frames_member(index))
    overwrite(index.shard_path(0), offset + size // 2, b"\x5a\xa5")


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_skipping_leaves_out_the_bad_and_keeps_every_rank_in_step(index, world_size):
    damage(index, 3)
    skipping = config(index, on_bad_sample="skip")
    ranks = [Stream(index, skipping, seed=5, global_batch=6, rank=r, world_size=world_size) for r in range(world_size)]
    batches = [batch for step in range(4) for rank in ranks for batch in rank.load_step(6 * step)]
    seen = [id for batch in batches for id, valid in zip(batch.ids, batch.valid_B.tolist(), strict=True) if valid]
    assert sorted(seen) == sorted(index.story_id(s) for s in index.split("train") if s != 3)
    bad = [error for batch in batches for _, error in batch.bad]
    assert [(error.story_id, Path(error.shard).name) for error in bad] == [("train/3", "train-000000.tar")]
    assert len(batches) == 4 * world_size


def test_a_micro_batch_with_nothing_left_counts_nothing(index):
    damage(index, 3)
    made = Stream(index, config(index, on_bad_sample="skip"), seed=5, global_batch=1)
    batches = [made.load_step(step)[0] for step in range(24)]
    (empty,) = [batch for batch in batches if batch.bad]
    assert empty.valid_B.tolist() == [0] and empty.valid_M.tolist() == [0] and len(empty.frames_NHWC) == 1


def test_a_missing_shard_can_be_skipped_too(index):
    index.shard_path(1).unlink()
    (batch,) = evaluation_batches(index, "test", config(index, on_bad_sample="skip"), batch_stories=8)
    assert batch.valid_B.tolist() == [0] and len(batch.bad) == 6
    assert "this shard is listed in index.json but is not there" in str(batch.bad[0][1])


def test_a_failing_disk_is_no_bad_sample(index, monkeypatch):
    """What may be over in a minute must not end in a list of bad samples."""

    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(OSError, match="Input/output error"):
        stream(index, on_bad_sample="skip").load_step(0)


def test_the_checksum_can_be_left_out(index):
    offset, _ = member(index, 3, "times.npy")
    overwrite(index.shard_path(0), offset + 130, b"\x01")
    with pytest.raises(BadSample):
        ShardReader(index).read(3)
    assert ShardReader(index, verify=False).read(3)


def test_members_of_any_kind_are_streamed_as_bytes(index):
    made = MemberStream(index, config(index), seed=5, global_batch=4)
    keys = [str(sample["__key__"]) for step in range(6) for sample in made.load_step(4 * step)]
    assert sorted(keys) == sorted(index.story_id(story) for story in index.split("train"))
    sample = made.load_step(0)[0]
    story = next(s for s in index.split("train") if index.story_id(s) == sample["__key__"])
    assert list(sample) == ["__key__", *(suffix for suffix, *_ in index.members_of(story))]
    ranks = [MemberStream(index, config(index), seed=5, global_batch=4, rank=r, world_size=2) for r in (0, 1)]
    shared = [str(sample["__key__"]) for step in range(6) for rank in ranks for sample in rank.load_step(4 * step)]
    assert shared == keys
    steps = made.steps(samples_seen=8)
    assert [sample["__key__"] for sample in next(steps)] == keys[8:12]
    steps.close()


def test_nothing_in_a_shard_is_unpickled_or_run(tmp_path):
    """Members with the endings that others unpickle are bytes here, whoever put them there."""
    marker = tmp_path / "marker"
    script = (
        "import io, pickle, sys, tarfile, os\n"
        "class P:\n"
        "    def __reduce__(self): return (os.system, (f'touch {sys.argv[2]}',))\n"
        "tar = tarfile.open(sys.argv[1], 'w')\n"
        "for name in ('a.pyd', 'a.pickle', 'a.pth', 'a.pkl'):\n"
        "    data = pickle.dumps(P()); info = tarfile.TarInfo(name); info.size = len(data)\n"
        "    tar.addfile(info, io.BytesIO(data))\n"
        "tar.close()\n"
    )
    (tmp_path / "set").mkdir()
    path = tmp_path / "set" / "train-0.tar"
    subprocess.run([sys.executable, "-c", script, str(path), str(marker)], check=True)
    index = _plain_index(path)
    made = MemberStream(index, DataConfig(shards=str(index.root)), seed=0, global_batch=1)
    (sample,) = made.load_step(0)
    assert {"pyd", "pickle", "pth", "pkl"} < sample.keys() and all(
        isinstance(value, memoryview) for key, value in sample.items() if key != "__key__"
    )
    assert not marker.exists()
    with pytest.raises(ValueError, match="holds samples of other kinds than stories"):
        Stream(index, DataConfig(shards=str(index.root)), seed=0, global_batch=1)


def _plain_index(path: Path) -> ShardIndex:
    """The index of a tar of one sample with four members, as shards/index.py makes it."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve().parents[1] / "shards" / "index.py"), str(path.parent)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return ShardIndex.open(path.parent)
