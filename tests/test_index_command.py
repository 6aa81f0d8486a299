"""shards/index.py: tars found become a set that streams, or are refused with what is wrong."""

import dataclasses
import errno
import fcntl
import json
import os
import random
import shutil
import tarfile
import zlib
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset

from shards import grouping, index
from shards.folder import locked_tars
from shards.scan import HashedFile
from storydist.data import index as index_room
from storydist.data.index import MEMBER_DTYPE, STORY_DTYPE, TABLES, ShardIndex, read_info
from storydist.data.reader import ShardReader
from storydist.data.settings import DataConfig
from storydist.data.stream import Stream
from storydist.data.tar import walk_tar
from tests.story_tables import build_set, call, run_file, verify_set, write_source
from tests.tars import read_tar, write_tar

SAMPLE = [("a.jpg", b"1" * 600), ("a.json", b"{}"), ("b.jpg", b"2"), ("b.seg.png", b"3"), ("b.json", b"{}")]


def run(*arguments: object) -> str:
    """What the command prints when all is well."""
    done = call(index.main, arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(*arguments: object) -> str:
    """The message with which the command refuses."""
    done = call(index.main, arguments)
    assert done.returncode == 2 and not done.stdout and "Traceback" not in done.stderr, done.stdout
    return done.stderr


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_source(tmp_path_factory.mktemp("source"), 8, 3)


def lose_index(root: Path) -> None:
    for name in ("index.json", *TABLES):
        (root / name).unlink()


def first_steps(root: Path, num_steps: int = 4) -> list:
    """Every value of the first steps' batches, which span more than an epoch."""
    config = DataConfig(shards=str(root), unit="window", context=1, size=(12, 20))
    steps = Stream(ShardIndex.open(root), config, seed=3, global_batch=8, accumulation_steps=2).steps()
    batches = [batch for _, step in zip(range(num_steps), steps, strict=False) for batch in step]
    steps.close()
    return [getattr(batch, field.name) for batch in batches for field in dataclasses.fields(batch)]


@pytest.mark.parametrize("frames", ["raw", "jpeg", "original"])
def test_a_lost_index_is_made_anew(source, tmp_path, frames):
    """The same tables byte for byte, the same facts, so the same batches; only where the set came from is lost."""
    assert build_set(source, tmp_path, "--frames", frames).returncode == 0
    before, tables = read_info(tmp_path), [(tmp_path / name).read_bytes() for name in TABLES]
    batches = first_steps(tmp_path)
    tars = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.tar")}
    lose_index(tmp_path)
    assert f"our own stories, frames {frames}" in run(tmp_path)
    assert [(tmp_path / name).read_bytes() for name in TABLES] == tables
    after = read_info(tmp_path)
    lost = {name: getattr(before, name) for name in ("tokenizer", "options", "fingerprint")}
    assert after.model_copy(update=lost) == before
    for found, expected in zip(first_steps(tmp_path), batches, strict=True):
        assert torch.equal(found, expected) if isinstance(found, torch.Tensor) else found == expected
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.tar")} == tars
    verified = verify_set(tmp_path)
    assert verified.returncode == 0, verified.stdout


def test_stories_packed_by_webdataset(source, tmp_path):
    """Other names, keys and order, and no more in the json than an id: still stories, and sound."""
    assert build_set(source, tmp_path / "built").returncode == 0
    members = [member for path in sorted((tmp_path / "built").glob("train-*.tar")) for member in read_tar(path)]
    stories: dict[str, dict[str, bytes]] = {}
    for name, data in members:
        stories.setdefault(name.partition(".")[0], {})[name.partition(".")[2]] = data
    (tmp_path / "packed").mkdir()
    with webdataset.ShardWriter(str(tmp_path / "packed" / "films-%02d.tar"), maxcount=3, encoder=False) as writer:
        for number, story in enumerate(stories.values()):
            story["json"] = json.dumps({"story_id": f"film {number}"}).encode()
            del story["story.txt"]
            writer.write({"__key__": f"disk.1/{number}", **story})
    tokenizer = tmp_path / "built" / "tokenizer"
    assert "--tokenizer" in refused(tmp_path / "packed")
    run(tmp_path / "packed", "--tokenizer", tokenizer, "--split", "val=films-00*", "--split", "train=films-0[12]*")
    found = ShardIndex.open(tmp_path / "packed")
    assert found.info.kind == "stories" and list(found.info.splits) == ["train", "val"]
    assert [found.story_id(story) for story in found.split("val")] == ["film 0", "film 1", "film 2"]
    assert found.info.tag_vocabulary[2:] and all(
        value.startswith("<lost") for _, value in found.info.tag_vocabulary[2:]
    )
    assert verify_set(tmp_path / "packed").returncode == 0, verify_set(tmp_path / "packed").stdout


def test_stories_that_contradict_each_other(source, tmp_path):
    assert build_set(source, tmp_path / "a").returncode == 0
    lose_index(tmp_path / "a")
    train = tmp_path / "a" / "train-000000.tar"
    shutil.copy(train, tmp_path / "a" / "train-000009.tar")
    assert "is in train-000000.tar and in train-000009.tar; ids must differ" in refused(tmp_path / "a")
    (tmp_path / "a" / "train-000009.tar").unlink()
    said = refused(tmp_path / "a", "--split", "test=*")
    assert "train-000000.tar: its stories say they are of split train, --split says test" in said
    changed = [(name, data.replace(b'"calm"', b'"noir"')) for name, data in read_tar(train)]
    write_tar(train, changed)
    assert "noir" in refused(tmp_path / "a")
    write_tar(train, [(name, data) for name, data in changed if not name.endswith("00001.lengths.npy")])
    assert "sample train-00000001: has no lengths.npy, but the samples before it" in refused(tmp_path / "a")


def test_another_tokenizer_is_noticed(source, tmp_path, tiny_index):
    assert build_set(source, tmp_path).returncode == 0
    lose_index(tmp_path)
    other = tiny_index.root / "tokenizer"
    assert f"tokenizer is another tokenizer than {other}" in refused(tmp_path, "--tokenizer", other)
    said = refused(tmp_path, "--tokenizer", other, "--overwrite")
    assert "at offset 512: sample test-00000000: its wordpieces are not those that the tokenizer makes" in said


def test_plain_samples(tmp_path):
    """The index finds in a tar what webdataset reads from it, without touching it."""
    path = tmp_path / "shard-000000.tar"
    with webdataset.TarWriter(str(path), encoder=False) as writer:
        for number in range(7):
            images = {"jpg": os.urandom(900 + number), "Depth.PNG": b"x" * number}
            writer.write({"__key__": f"room/{number:04d}", "cls": b"3", **(images if number else {})})
    assert "7 samples        12 images" in run(tmp_path)
    found = ShardIndex.open(tmp_path)
    info = found.info
    assert (info.kind, info.frames, info.height, info.tokenizer, info.vocabulary_size) == (
        "members",
        "original",
        None,
        "",
        0,
    )
    assert info.score is None and info.tag_vocabulary == [] and len(found.wordpiece_idf) == 0
    assert found.stories["num_frames"].tolist() == [0] + [2] * 6 and np.isnan(found.stories["score"]).all()
    expected = list(webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False))
    reader = ShardReader(found)
    for story, sample in enumerate(expected):
        assert found.story_id(story) == sample["__key__"]
        given = {suffix: bytes(data) for suffix, data in reader.read(story).items()}
        assert given == {suffix: data for suffix, data in sample.items() if not suffix.startswith("__")}
    assert verify_set(tmp_path).returncode == 0


def test_checksums_and_hash_are_of_each_byte_once(tmp_path):
    """Across the borders of the window that the file is read in, and of any member size."""
    generator = random.Random(0)
    sizes = [0, 1, 262_144, 261_632, 700_000, *(generator.randrange(60_000) for _ in range(20))]
    path = write_tar(tmp_path / "x.tar", [(f"{n}.bin", generator.randbytes(size)) for n, size in enumerate(sizes)])
    run(tmp_path)
    found = ShardIndex.open(tmp_path)
    assert found.info.shards[0].sha256 == index_room.sha256_file(path)
    data = path.read_bytes()
    expected = [(m.offset, m.size, zlib.crc32(data[m.offset : m.offset + m.size]), 0) for m in walk_tar(path)]
    assert found.members.tolist() == expected and [size for _, size, _, _ in expected] == sizes


def test_own_stories_as_plain_members(source, tmp_path):
    assert build_set(source, tmp_path).returncode == 0
    assert "as stories; if that is meant, use --overwrite" in refused(tmp_path, "--members")
    run(tmp_path, "--members", "--overwrite")
    assert read_info(tmp_path).kind == "members" and verify_set(tmp_path).returncode == 0


def test_what_archivers_leave_is_passed_over(tmp_path):
    litter = ("._a.jpg", "x/.DS_Store", "__MACOSX/._a.jpg", "__MACOSX/a.jpg", "__meta__", "__info__/set.json")
    members = [member for pair in zip(SAMPLE, ((name, b"") for name in litter), strict=False) for member in pair]
    write_tar(tmp_path / "x.tar", [*members, (litter[-1], b"{}")])
    write_tar(tmp_path / ".hidden.tar", [("no suffix", b"")])
    write_tar(tmp_path / ".cache" / "x.tar", [("no suffix", b"")])
    assert f"passed over {len(litter)} members that belong to no sample, such as '._a.jpg'" in run(tmp_path)
    assert [len(ShardIndex.open(tmp_path).members_of(story)) for story in range(2)] == [2, 3]
    assert verify_set(tmp_path).returncode == 0


def test_equal_keys_in_two_tars(tmp_path):
    for name in ("train/0.tar", "train/1.tar", "val/0.tar"):
        write_tar(tmp_path / name, SAMPLE)
    assert "ids are made of tar/key" in run(tmp_path)
    found = ShardIndex.open(tmp_path)
    assert [found.story_id(story) for story in found.split("train")] == [
        f"train/{n}/{key}" for n in (0, 1) for key in "ab"
    ]
    assert [found.story_id(story) for story in found.split("val")] == ["val/0/a", "val/0/b"]
    assert verify_set(tmp_path).returncode == 0


GROUPS = {
    "no suffix": ([*SAMPLE, ("folder.d/README", b"")], "at offset 6144: member 'folder.d/README' has no suffix"),
    "a dot only": ([("a.", b"")], "has no suffix"),
    "twice": ([("a.jpg", b""), ("a.JPG", b"")], "sample 'a' has two members 'jpg', at offsets 512 and 1024"),
    "apart": ([*SAMPLE, ("a.txt", b"")], "sample 'a' lie at offset 512 and, after another sample, at 6144"),
    "by kind": ([("a.jpg", b""), ("b.jpg", b""), ("a.txt", b""), ("b.txt", b"")], "tar --sort=name"),
    "no sample": ([], "holds no sample"),
    "only litter": ([(".DS_Store", b"")], "holds no sample"),
}


@pytest.mark.parametrize("case", GROUPS)
def test_members_that_make_no_samples(tmp_path, case):
    members, expected = GROUPS[case]
    path = write_tar(tmp_path / "x.tar", members)
    assert expected in (said := refused(tmp_path)) and str(path) in said
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.tar"]


def test_more_than_the_index_can_count(tmp_path, monkeypatch):
    assert np.iinfo(STORY_DTYPE["num_members"]).max == grouping.MAX_MEMBERS
    assert np.iinfo(MEMBER_DTYPE["suffix"]).max == grouping.MAX_SUFFIXES
    monkeypatch.setattr(grouping, "MAX_MEMBERS", 3)
    write_tar(tmp_path / "a" / "x.tar", [(f"img.{number:03d}.jpg", b"") for number in range(4)])
    assert "sample 'img' has more than 3 members, the next is at offset 2048; a key ends" in refused(tmp_path / "a")
    monkeypatch.setattr("shards.scan.MAX_SUFFIXES", 2)
    write_tar(tmp_path / "b" / "x.tar", SAMPLE)
    assert "at offset 3072: more than 2 different suffixes, the latest of sample 'b'" in refused(tmp_path / "b")
    monkeypatch.setattr("shards.scan.MAX_SUFFIXES", 3)
    monkeypatch.setattr("shards.gather.MAX_SUFFIXES", 3)
    write_tar(tmp_path / "b" / "y.tar", [("c.txt", b"")])
    assert "the tars have 4 different suffixes, at most 3 are indexed" in refused(tmp_path / "b")


def test_one_long_name_cannot_blow_up_the_table_of_ids(tmp_path, monkeypatch):
    monkeypatch.setattr("shards.gather._SPARE_ID_BYTES", 0)
    write_tar(tmp_path / "x.tar", [(f"{number}.jpg", b"") for number in range(100)])
    run(tmp_path)
    write_tar(tmp_path / "y.tar", [("y" * 4000 + ".jpg", b"")], tarfile.GNU_FORMAT)
    assert "has 4000 bytes, the others far fewer; shorten it" in refused(tmp_path, "--overwrite")
    assert (tmp_path / "index.json").exists(), "the earlier index stays"


def test_folders_that_hold_no_set(tmp_path):
    assert "holds no .tar file" in refused(tmp_path)
    assert "No such file" in refused(tmp_path / "nowhere")
    path = write_tar(tmp_path / "x.tar", SAMPLE)
    assert "Not a directory" in refused(path)
    (tmp_path / "y.tar.gz").write_bytes(b"")
    assert "y.tar.gz is compressed" in refused(tmp_path)
    shutil.copy(path, tmp_path / "y.tar")
    run(tmp_path)  # it has been unpacked
    os.mkfifo(tmp_path / "z.tar")
    assert "z.tar is neither a plain file nor a link to one" in refused(tmp_path)
    (tmp_path / "z.tar").unlink()
    path.rename(tmp_path / "\x1b[2J.tar")
    assert r"'\x1b[2J.tar' has characters that cannot be printed" in refused(tmp_path)


def test_an_unfinished_build_is_left_alone(tmp_path):
    write_tar(tmp_path / "train-000000.tar", SAMPLE)
    (tmp_path / ".build").mkdir()
    assert "holds an unfinished build" in refused(tmp_path)


def test_own_stories_beside_others(source, tmp_path):
    assert build_set(source, tmp_path).returncode == 0
    lose_index(tmp_path)
    other = write_tar(tmp_path / "train-x.tar", SAMPLE)
    said = refused(tmp_path)
    assert "train-000000.tar holds our own stories, train-x.tar other samples" in said or "move them apart" in said
    story = read_tar(tmp_path / "train-000000.tar")
    write_tar(other, [*SAMPLE, *story])
    (tmp_path / "train-000000.tar").unlink()
    assert "move them" in refused(tmp_path) and "--members" in refused(tmp_path)


SPLITS = {
    ("train-000.tar", "val-000.tar", "test-000.tar"): "train val test",
    ("coco-train2017-0.tar", "coco-validation-0.tar", "dev/1.tar"): "train val val",
    ("shard-0.tar", "shard-1.tar"): "train train",
    ("train/val-0.tar",): "train/val-0.tar names several splits, train and val",
    ("train-0.tar", "extra-0.tar"): "extra-0.tar: no split in the name, though other tars have one",
}


@pytest.mark.parametrize("names", SPLITS, ids=lambda names: names[0])
def test_splits_from_names(tmp_path, names):
    for number, name in enumerate(names):
        write_tar(tmp_path / name, [(f"{number}.jpg", b"")])
    if " " not in SPLITS[names] or "name" in SPLITS[names]:
        assert SPLITS[names] in refused(tmp_path)
        return
    run(tmp_path)
    found = ShardIndex.open(tmp_path)
    for number, split in enumerate(SPLITS[names].split()):
        assert str(number) in [found.story_id(story) for story in found.split(split)]


def test_splits_from_patterns(tmp_path):
    for name in ("a-0.tar", "a-1.tar", "b-0.tar"):
        write_tar(tmp_path / name, [(f"{name[:3]}.jpg", b"")])
    assert "a-1.tar match no --split" in refused(tmp_path, "--split", "train=a-0*", "--split", "val=b*")
    assert "b-0.tar matches the patterns of two splits" in refused(tmp_path, "--split", "train=*", "--split", "val=b*")
    assert "--split val=c* matches no tar; there are a-0.tar" in refused(
        tmp_path, "--split", "train=*", "--split", "val=c*"
    )
    assert "needed NAME=PATTERN" in refused(tmp_path, "--split", "TRAIN=*")
    run(tmp_path, "--split", "train=a*", "--split", "odd=b*")
    found = ShardIndex.open(tmp_path)
    assert [found.story_id(story) for story in found.split("odd")] == ["b-0"] and len(found.split("train")) == 2
    assert "with other splits" in refused(tmp_path, "--split", "train=*")


def test_a_second_run_does_nothing_unless_something_changed(tmp_path):
    path = write_tar(tmp_path / "x.tar", SAMPLE)
    first = run(tmp_path)
    before = (tmp_path / "index.json").stat().st_mtime_ns
    assert "already indexed and nothing has changed" not in first
    assert "already indexed and nothing has changed; nothing to do" in run(tmp_path)
    os.utime(path)
    assert "nothing to do" in run(tmp_path), "only the time changed"
    assert (tmp_path / "index.json").stat().st_mtime_ns == before
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    assert f"{tmp_path} is indexed, but x.tar was changed; if that is meant, use --overwrite" in refused(tmp_path)
    write_tar(tmp_path / "y.tar", [("c.jpg", b"")])
    (tmp_path / "index.idf.npy").unlink()
    assert "y.tar is new; index.idf.npy was changed; x.tar was changed" in refused(tmp_path)
    run(tmp_path, "--overwrite")
    assert len(ShardIndex.open(tmp_path).stories) == 3 and verify_set(tmp_path).returncode == 0
    path.unlink()
    assert "x.tar is gone" in refused(tmp_path)
    (tmp_path / "index.json").write_text("{}")
    assert "index the tars again with --overwrite" in refused(tmp_path)


def test_an_interrupted_run_leaves_no_half_index(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "x.tar", SAMPLE)
    run(tmp_path)
    before = (tmp_path / "index.json").read_bytes()
    whole = path.read_bytes()
    path.write_bytes(whole[:3000])
    refused(tmp_path, "--overwrite")
    assert (tmp_path / "index.json").read_bytes() == before, "nothing is written before all is read"
    path.write_bytes(whole)
    write_atomic = index_room.write_atomic

    def full_disk(target: Path, data: bytes) -> None:
        if target.name == "index.story_ids.npy":
            raise OSError(28, "No space left on device", str(target))
        write_atomic(target, data)

    monkeypatch.setattr(index_room, "write_atomic", full_disk)
    assert "index.story_ids.npy: No space left on device" in refused(tmp_path, "--overwrite")
    with pytest.raises(FileNotFoundError, match="not a shard set"):
        ShardIndex.open(tmp_path)
    monkeypatch.undo()
    run(tmp_path)
    assert (tmp_path / "index.json").read_bytes() == before


def test_a_tar_that_is_still_being_written(tmp_path):
    path = write_tar(tmp_path / "x.tar", SAMPLE)
    with open(path, "rb", buffering=0) as file:
        hashed = HashedFile(file, path)
        hashed.read(512, 0)
        with open(path, "ab") as more:
            more.write(bytes(512))
        with pytest.raises(ValueError, match=r"x\.tar was written to while it was read"):
            hashed.sha256()


def test_workers_change_nothing(tmp_path):
    for number in range(3):
        write_tar(tmp_path / "a" / f"{number}.tar", [(f"{number}/{name}", data) for name, data in SAMPLE])
    run(tmp_path / "a")
    before = (tmp_path / "a" / "index.json").read_bytes()
    done = run_file("shards/index.py", tmp_path / "a", "--workers", 2, "--overwrite")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a" / "index.json").read_bytes() == before
    (tmp_path / "a" / "1.tar").write_bytes(b"404")
    done = run_file("shards/index.py", tmp_path / "a", "--workers", 2, "--overwrite")
    assert (
        done.returncode == 2 and "1.tar: at offset 0: 3 bytes before" in done.stderr and "Traceback" not in done.stderr
    )


def test_verify_finds_what_changed_in_plain_tars(tmp_path):
    path = write_tar(tmp_path / "x.tar", SAMPLE)
    run(tmp_path)
    write_tar(path, [(name.replace("b.", "c."), data) for name, data in SAMPLE])
    found = verify_set(tmp_path)
    assert found.returncode == 1 and "sample c has the id b in the index" in found.stdout
    write_tar(path, [(name, data.replace(b"1", b"7")) for name, data in SAMPLE])
    assert "x.tar: the CRC-32 of a.jpg is not the one in the index" in verify_set(tmp_path).stdout
    write_tar(path, [*SAMPLE, ("no suffix", b"")])
    assert (
        "x.tar cannot be read to its end" in verify_set(tmp_path).stdout
        or "not in the index" in verify_set(tmp_path).stdout
    )
    write_tar(tmp_path / "more" / "y.tar", SAMPLE)
    assert "more/y.tar is not in the index" in verify_set(tmp_path).stdout


@pytest.mark.parametrize(("number", "refused"), [(errno.ENOLCK, False), (errno.EIO, True)])
def test_a_failing_disk_is_not_a_file_system_without_locks(tmp_path, monkeypatch, number, refused):
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="Input/output error") if refused else nullcontext(), locked_tars(tmp_path):
        pass
