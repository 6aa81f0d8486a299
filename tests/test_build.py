"""The sharding command, as a user runs it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset

from storydist.data.frames import decode_frame
from storydist.data.index import ShardIndex
from storydist.data.sample import Sample, decode
from tests.story_tables import (
    ROOT,
    build_arguments,
    build_set,
    content,
    environment,
    image,
    row,
    run_file,
    verify_set,
    write_metadata,
    write_source,
    write_table,
)


def read_sample(index: ShardIndex, story: int) -> Sample:
    tar = index.shard_path(int(index.stories[story]["shard"])).read_bytes()
    members = {name: tar[offset : offset + size] for name, offset, size, _ in index.members_of(story)}
    return decode("sample", members)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def built(source, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("built") / "shards"
    done = build_set(source, out)
    assert done.returncode == 0, done.stderr
    return out


def test_index_agrees_with_the_source(built):
    index = ShardIndex.open(built)
    assert {name: split.num_stories for name, split in index.info.splits.items()} == {"train": 8, "val": 2, "test": 3}
    assert sum(shard.num_stories for shard in index.info.shards) == 13
    assert {index.story_id(story) for story in range(13)} == {f"s{number}" for number in range(13)}
    assert [tuple(tag) for tag in index.info.tag_vocabulary[:2]] == [("", "<pad>"), ("", "<unk>")]
    for story in range(13):
        number = int(index.story_id(story)[1:])
        sample = read_sample(index, story)
        assert sample.score == (None if number == 1 else number / 4)
        assert isinstance(sample.frames, np.ndarray) and sample.frames.shape == (sample.num_frames, 12, 20, 3)
        assert np.array_equal(sample.frames[0], decode_frame(image(number * 100 + 1), 12, 20))
        assert sample.meta["texts"][0] == f"Ana walks to the harbour in scene {number % 5}."
        assert {tuple(row) for row in sample.tags[:, [0, 2]].tolist()} >= {(-1, 0), (0, 1), (0, 3), (0, 4)}


def test_score_scale_and_tags_are_of_the_train_split_only(built):
    index = ShardIndex.open(built)
    scores = [read_sample(index, story).score for story in index.split("train")]
    known = [score for score in scores if score is not None]
    scale = index.info.score
    assert scale is not None
    assert (scale.count, scale.min, scale.max) == (len(known), min(known), max(known))
    assert scale.mean == pytest.approx(np.mean(known)) and scale.std == pytest.approx(np.std(known))
    train_tags = {
        tuple(tag) for story in index.split("train") for frame in read_sample(index, story).meta["frame_tags"]
        for tag in frame
    } | {("story", "calm"), ("story", "sea")}  # fmt: skip
    assert {tuple(tag) for tag in index.info.tag_vocabulary[2:]} == train_tags


def test_idf_counts_train_descriptions(built):
    index = ShardIndex.open(built)
    descriptions = []
    for story in index.split("train"):
        sample = read_sample(index, story)
        descriptions += [set(part.tolist()) for part in np.split(sample.wordpieces, np.cumsum(sample.lengths)[:-1])]
    frequency = np.array(
        [sum(wordpiece in one for one in descriptions) for wordpiece in range(len(index.wordpiece_idf))]
    )
    expected = np.log((1 + len(descriptions)) / (1 + frequency))
    np.testing.assert_allclose(index.wordpiece_idf, expected, rtol=1e-6)


def test_any_number_of_workers_gives_the_same_bytes(source, built, tmp_path):
    assert build_set(source, tmp_path / "two", "--workers", 2).returncode == 0
    assert content(tmp_path / "two") == content(built)


def test_webdataset_reads_the_shards(built):
    index = ShardIndex.open(built)
    seen = 0
    for shard in range(len(index.info.shards)):
        dataset = webdataset.WebDataset(str(index.shard_path(shard)), shardshuffle=False).decode()
        for sample in dataset:
            assert np.array_equal(sample["frames.npy"], read_sample(index, seen).frames)
            assert sample["json"]["story_id"] == index.story_id(seen)
            assert sample["story.txt"].startswith("<gdi image1>")
            assert sample["annotations.json"]["story"]["segments"][0]["image"] == 1
            seen += 1
    assert seen == 13


@pytest.mark.parametrize("frames", ["jpeg", "original"])
def test_encoded_frames(source, tmp_path, frames):
    assert build_set(source, tmp_path / "out", "--frames", frames, "--limit", 1).returncode == 0
    index = ShardIndex.open(tmp_path / "out")
    sample = read_sample(index, 0)
    found = image(int(index.story_id(0)[1:]) * 100 + 1)
    if frames == "original":
        assert sample.frames[0] == found and index.info.height is None
    else:
        difference = decode_frame(sample.frames[0], 12, 20).astype(int) - decode_frame(found, 12, 20)
        assert np.abs(difference).mean() < 6 and (index.info.height, index.info.width) == (12, 20)


def test_killed_build_continues_to_the_same_bytes(source, built, tmp_path):
    out = tmp_path / "out"
    for number_of_shards in (1, 3):
        kill_when_there_are(number_of_shards, source, out)
        assert not (out / "index.json").exists()
    earlier = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    done = build_set(source, out, "--workers", 2)
    assert done.returncode == 0 and "continuing" in done.stderr, done.stderr
    assert content(out) == content(built)
    kept = [name for name, changed in earlier.items() if (out / name).stat().st_mtime_ns == changed]
    assert kept, "finished shards are not built again"


def kill_when_there_are(number: int, source: Path, out: Path) -> None:
    slow = (
        "import sys, time, runpy; import shards.pack as p; kept = p.Packer._write\n"
        "def slowly(self, shard): rows = kept(self, shard); time.sleep(0.5); return rows\n"
        "p.Packer._write = slowly; import shards.build as b; raise SystemExit(b.main())"
    )
    command = [sys.executable, "-c", slow, *build_arguments(source, out)]
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL)
    limit_s = time.monotonic() + 30
    while len(list(out.glob("*.tar"))) < number:
        assert process.poll() is None and time.monotonic() < limit_s
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def test_damaged_finished_shard_is_built_again(source, built, tmp_path):
    out = tmp_path / "out"
    kill_when_there_are(2, source, out)
    first = out / "train-000000.tar"
    whole = first.read_bytes()
    first.write_bytes(whole[:-1] + b"x")
    assert build_set(source, out).returncode == 0
    assert content(out) == content(built)


def test_complete_set_is_recognised(source, built):
    before = content(built)
    done = build_set(source, built, "--workers", 2)
    assert done.returncode == 0 and "already complete" in done.stdout
    assert content(built) == before


def test_other_options_need_overwrite(source, built, tmp_path):
    out = tmp_path / "out"
    assert build_set(source, out).returncode == 0
    refused = build_set(source, out, "--seed", 5)
    assert refused.returncode == 2 and "seed 0 (now 5)" in refused.stderr and "--overwrite" in refused.stderr
    assert build_set(source, out, "--seed", 5, "--overwrite").returncode == 0
    assert ShardIndex.open(out).info.options["seed"] == 5
    assert build_set(source, out, "--overwrite").returncode == 0
    assert content(out) == content(built)


def test_unfinished_build_with_other_options_is_refused(source, tmp_path):
    kill_when_there_are(1, source, tmp_path / "out")
    refused = build_set(source, tmp_path / "out", "--frames", "jpeg")
    assert (
        refused.returncode == 2 and "unfinished build" in refused.stderr and "frames raw (now jpeg)" in refused.stderr
    )


def test_changed_source_is_noticed(tmp_path):
    source = write_source(tmp_path / "source", 4, 2)
    assert build_set(source, tmp_path / "out").returncode == 0
    write_metadata(source, {f"s{number}": "9" for number in range(6)})
    refused = build_set(source, tmp_path / "out")
    assert refused.returncode == 2 and "source_sha256" in refused.stderr


@pytest.fixture
def bad_source(tmp_path) -> Path:
    """Story s4's second image is cut, story s2 has no frame at all."""
    source = write_source(tmp_path / "bad", 6, 2)
    rows = [row(number, 2 + number % 3) for number in range(6)]
    rows[4]["images"][1]["bytes"] = rows[4]["images"][1]["bytes"][:300]
    rows[2]["images"] = rows[2]["images"][:0]
    write_table(source / "train-00000-of-00001.parquet", rows)
    return source


def test_bad_story_stops_the_build_with_its_name(bad_source, tmp_path):
    done = build_set(bad_source, tmp_path / "out")
    assert (done.returncode == 2 and "s2" in done.stderr and "images" in done.stderr) or "image" in done.stderr
    assert "Traceback" not in done.stderr
    rows = [row(number, 2 + number % 3) for number in range(6)]
    rows[4]["images"][1]["bytes"] = rows[4]["images"][1]["bytes"][:300]
    write_table(bad_source / "train-00000-of-00001.parquet", rows)
    done = build_set(bad_source, tmp_path / "out", "--workers", 2)
    assert done.returncode == 2 and "s4" in done.stderr and "image 2" in done.stderr
    assert done.stderr.count("error:") == 1 and "Traceback" not in done.stderr


def test_skip_bad_counts_and_lists(bad_source, tmp_path):
    for workers in (1, 2):
        done = build_set(bad_source, tmp_path / f"out{workers}", "--skip-bad", "--workers", workers)
        assert done.returncode == 0, done.stderr
    out = tmp_path / "out1"
    assert content(out) == content(tmp_path / "out2")
    info = ShardIndex.open(out).info
    assert info.skipped == {"corrupt image": 1, "no frames": 1}
    assert sum(split.num_stories for split in info.splits.values()) == 6
    listed = (out / "skipped.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in listed] == ["story_id", "s2", "s4"]
    assert verify_set(out).returncode == 0


def test_skipping_may_be_decided_after_a_stop(bad_source, tmp_path):
    rows = [row(number, 2 + number % 3) for number in range(6)]
    rows[5]["images"][0]["bytes"] = b"\xff\xd8\xff"
    write_table(bad_source / "train-00000-of-00001.parquet", rows)
    assert build_set(bad_source, tmp_path / "out").returncode == 2
    assert build_set(bad_source, tmp_path / "out", "--skip-bad").returncode == 0
    assert sum(ShardIndex.open(tmp_path / "out").info.skipped.values()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "60"], "HEIGHTxWIDTH"),
        (["--val", "1.5"], "1.5"),
        (["--tokenizer", "train:many"], "train:8000"),
        (["--tokenizer", "train:5"], "at least 100"),
        (["--tokenizer", "./nowhere"], "nowhere"),
        (["--metadata", "nowhere.csv"], "nowhere.csv"),
    ],
)
def test_wrong_arguments(source, tmp_path, arguments, message):
    check_refused(build_set(source, tmp_path / "out", *arguments), message)


@pytest.mark.parametrize("arguments", [["--size", "0x5"], ["--workers", "0"], ["--source", "nowhere.parquet"]])
def test_wrong_arguments_on_the_command_line(source, tmp_path, arguments):
    done = run_file("shards/build.py", *build_arguments(source, tmp_path / "out", *arguments))
    check_refused(done, arguments[1] if "nowhere" in arguments[1] else arguments[0])


def check_refused(done: subprocess.CompletedProcess[str], message: str) -> None:
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert done.stderr.startswith("error:") and "Traceback" not in done.stderr


def test_source_without_stories(tmp_path):
    source = write_source(tmp_path / "source", 1, 0)
    pq.write_table(pq.read_table(source / "train-00000-of-00001.parquet").slice(0, 0), source / "train.parquet")
    write_metadata(source, {})
    done = build_set(source, tmp_path / "out", "--source", source / "train.parquet")
    check_refused(done, "no ")


def test_folder_that_cannot_be_written(source, tmp_path):
    (tmp_path / "file").write_text("in the way")
    check_refused(build_set(source, tmp_path / "file" / "out"), "file")
    check_refused(build_set(source, Path("/proc/shards")), "/proc")


def test_folder_of_other_files_is_left_alone(source, tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    check_refused(build_set(source, tmp_path, "--overwrite"), "thesis.txt")
    assert (tmp_path / "thesis.txt").read_text() == "precious" and len(list(tmp_path.iterdir())) == 1


def test_options_in_the_index_tell_how_it_was_built(built):
    options = json.loads((built / "index.json").read_text())["options"]
    assert options["size"] == [12, 20] and options["stories_per_shard"] == 3 and options["splits"] == "source"
