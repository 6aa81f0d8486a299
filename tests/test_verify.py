"""What verification finds when something was done to a sound shard set."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from storydist.data.files import sha256_file
from storydist.data.index import TABLES, ShardIndex, read_info, write_index
from tests.story_tables import build_set, run_file, verify_set, write_source


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    assert build_set(write_source(folder / "source", 6, 3), folder / "shards", "--splits", "movie").returncode == 0
    return folder / "shards"


@pytest.fixture
def shards(sound, tmp_path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "shards"))


def findings(root: Path) -> str:
    done = verify_set(root)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


def rewrite(root: Path, **changes) -> None:
    """The set with a changed index that is consistent in itself, hashes and fingerprint included."""
    index = ShardIndex.open(root)
    info = index.info.model_dump(exclude={"schema_version", "fingerprint"})
    tables = {"stories": np.array(index.stories), "members": np.array(index.members)}
    ids = [index.story_id(story) for story in range(len(index.stories))]
    tables |= {name: changes.pop(name) for name in tables if name in changes}
    ids = changes.pop("story_ids", ids)
    write_index(root, info | changes, story_ids=ids, wordpiece_idf=np.array(index.wordpiece_idf), **tables)


def test_sound_set_passes_with_a_table(sound):
    done = run_file("shards/verify.py", sound, "--workers", 2)
    assert done.returncode == 0 and "sound: fingerprint" in done.stdout, done.stdout + done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()][:2] == ["split", "train"]


def test_rewritten_index_is_still_sound(shards):
    rewrite(shards)
    assert verify_set(shards).returncode == 0


def test_flipped_byte_names_the_member(shards):
    index = ShardIndex.open(shards)
    suffix, offset, _, _ = index.members_of(1)[1]
    tar = index.shard_path(0)
    data = bytearray(tar.read_bytes())
    data[offset + 70] ^= 1
    tar.write_bytes(data)
    found = findings(shards)
    assert f"{tar.name}: its SHA-256" in found and f"-00000001.{suffix}" in found and "CRC-32" in found


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_truncated_tar(shards, share):
    tar = ShardIndex.open(shards).shard_path(0)
    data = tar.read_bytes()
    tar.write_bytes(data[: int(len(data) * share)])
    assert f"{tar.name} has" in findings(shards)


def test_deleted_and_added_shards(shards):
    tar = ShardIndex.open(shards).shard_path(0)
    tar.rename(shards / "train-000099.tar")
    found = findings(shards)
    assert "train-000099.tar is not in the index" in found
    (shards / "train-000099.tar").unlink()
    assert f"{tar.name} is missing" in findings(shards)


def test_edited_index(shards):
    path = shards / "index.json"
    path.write_text(path.read_text().replace('"num_frames": ', '"num_frames": 1', 1))
    assert "was changed after it was written" in findings(shards)


@pytest.mark.parametrize("name", [*TABLES, "tokenizer/tokenizer.json"])
def test_edited_or_missing_table(shards, name):
    data = bytearray((shards / name).read_bytes())
    data[-1] ^= 1
    (shards / name).write_bytes(data)
    assert f"{name} was changed" in findings(shards)
    (shards / name).unlink()
    assert f"{name} is missing" in findings(shards)


def test_row_that_contradicts_its_sample(shards):
    stories = np.array(ShardIndex.open(shards).stories)
    stories["score"][0] = 77
    rewrite(shards, stories=stories)
    assert "the index says 77" in findings(shards)


def test_wrong_offset(shards):
    members = np.array(ShardIndex.open(shards).members)
    members["offset"][2] += 512
    rewrite(shards, members=members)
    assert "the index has" in findings(shards)


def test_wrong_frame_count(shards):
    stories = np.array(ShardIndex.open(shards).stories)
    stories["num_frames"][0] += 1
    rewrite(shards, stories=stories)
    assert "the index says" in findings(shards)


def test_story_and_movie_in_two_splits(shards):
    """The tar of another split copied over: every byte is accounted for, but the same stories are there twice."""
    index = ShardIndex.open(shards)
    info = index.info.model_dump()
    splits = list(info["splits"])
    train, other = splits[0], splits[-1]
    source, target = (next(n for n, s in enumerate(info["shards"]) if s["name"].startswith(p)) for p in (train, other))
    shutil.copy(index.shard_path(source), index.shard_path(target))
    stories, members = np.array(index.stories), np.array(index.members)
    first = {shard: int(np.flatnonzero(stories["shard"] == shard)[0]) for shard in (source, target)}
    count = {shard: int((stories["shard"] == shard).sum()) for shard in (source, target)}
    assert first[target] + count[target] == len(stories), "the last shard is replaced"
    copied = stories[first[source] : first[source] + count[source]].copy()
    copied["shard"] = target
    stories = np.concatenate([stories[: first[target]], copied])
    old = members[: int(index.stories["first_member"][first[target]])]
    rows = [members[int(r["first_member"]) : int(r["first_member"]) + int(r["num_members"])] for r in copied]
    stories["first_member"][first[target] :] = len(old) + np.cumsum([0] + [len(part) for part in rows])[:-1]
    ids = [index.story_id(story) for story in range(first[target])]
    ids += [index.story_id(first[source] + n) for n in range(count[source])]
    shard = info["shards"][target]
    path = index.shard_path(target)
    shard |= {"size_bytes": path.stat().st_size, "sha256": sha256_file(path), "num_stories": count[source]}
    here = int(copied["num_frames"].sum())
    before = int(stories["num_frames"][info["splits"][other]["first"] : first[target]].sum())
    info["splits"][other] |= {
        "num_stories": first[target] - info["splits"][other]["first"] + count[source],
        "num_frames": before + here,
    }
    rewrite(
        shards, stories=stories, members=np.concatenate([old, *rows]), story_ids=ids, shards=info["shards"],
        splits=info["splits"],
    )  # fmt: skip
    found = findings(shards)
    assert "occur more than once" in found and f"is of split {train}, the index says {other}" in found


def test_movies_across_splits_are_found(tmp_path):
    """Built by story, films cross splits; called a build by movie, that is a finding."""
    source = write_source(tmp_path / "source", 8, 4)
    assert build_set(source, tmp_path / "out", "--splits", "story", "--seed", 1).returncode == 0
    assert verify_set(tmp_path / "out").returncode == 0
    rewrite(tmp_path / "out", options=read_info(tmp_path / "out").options | {"splits": "movie"})
    assert "movies are in two splits" in findings(tmp_path / "out")


def test_no_shard_set(tmp_path):
    done = run_file("shards/verify.py", tmp_path)
    assert done.returncode == 2 and "no index.json" in done.stderr and "Traceback" not in done.stderr


def test_other_schema_version(shards):
    content = json.loads((shards / "index.json").read_text()) | {"schema_version": 99}
    (shards / "index.json").write_text(json.dumps(content))
    assert "schema version 99" in findings(shards)
