"""A shard set built by several commands, each a part of it."""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shards.lock import FolderLock
from shards.part import Part
from tests.story_tables import ROOT, build_arguments, build_set, content, environment, write_source

NUM_SHARDS = 5  # of the source below, three stories each: train 3, val 1, test 1
SLOWLY = (
    "import shards.pack as p, time; kept = p.Packer._write\n"
    "def slowly(self, shard): rows = kept(self, shard); time.sleep(0.5); return rows\n"
    "p.Packer._write = slowly; import shards.build as b; from storydist.command import run_command\n"
    "raise SystemExit(run_command(b.main))"
)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory) -> dict[str, bytes]:
    """What a single build writes."""
    out = tmp_path_factory.mktemp("built") / "shards"
    assert build_set(source, out).returncode == 0
    return content(out)


def start_slowly(source: Path, out: Path, part: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SLOWLY, *build_arguments(source, out, "--part", part)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=pipe, stderr=pipe, text=True)


def wait_for_tars(out: Path, number: int) -> None:
    deadline = time.monotonic() + 60
    while len(list(out.glob("*.tar"))) < number:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("total", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("num_shards", [0, 1, 5, 64])
def test_parts_hold_every_shard_once(total, num_shards):
    held = [Part(number, total).shards(num_shards) for number in range(1, total + 1)]
    assert list(itertools.chain(*held)) == list(range(num_shards))
    assert max(map(len, held)) - min(map(len, held)) <= 1


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2), (2, 3, 1)])
def test_parts_in_any_order_give_the_bytes_of_a_single_build(source, whole, tmp_path, order):
    for number in order:
        assert not (tmp_path / "out" / "index.json").exists()
        done = build_set(source, tmp_path / "out", "--part", f"{number}/3")
        assert done.returncode == 0, done.stderr
    assert content(tmp_path / "out") == whole


def test_more_parts_than_shards(source, whole, tmp_path):
    for number in range(1, 8):
        assert build_set(source, tmp_path / "out", "--part", f"{number}/7").returncode == 0
    assert content(tmp_path / "out") == whole


def test_a_missing_part_is_named(source, tmp_path):
    for number in (1, 4):
        done = build_set(source, tmp_path / "out", "--part", f"{number}/4")
    assert done.returncode == 0
    expected = "to be built yet: part 2/4 (1 shard from train-000001.tar), 3/4 (1 shard from train-000002.tar)"
    assert expected in done.stdout
    assert not (tmp_path / "out" / "index.json").exists()


def test_a_killed_part_is_run_again_alone(source, whole, tmp_path):
    out = tmp_path / "out"
    killed = start_slowly(source, out, "1/2")
    wait_for_tars(out, 1)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    other = build_set(source, out, "--part", "2/2")
    assert other.returncode == 0 and "part 1/2 (" in other.stdout
    assert not (out / "index.json").exists()
    assert build_set(source, out, "--part", "1/2").returncode == 0
    assert content(out) == whole


def test_a_part_whose_tar_was_lost_is_not_joined(source, whole, tmp_path):
    out = tmp_path / "out"
    assert build_set(source, out, "--part", "1/2").returncode == 0
    (out / "train-000000.tar").unlink()
    assert "part 1/2 (1 shard from train-000000.tar)" in build_set(source, out, "--part", "2/2").stdout
    assert build_set(source, out, "--part", "1/2").returncode == 0
    assert content(out) == whole


def test_parts_at_once_are_joined_by_the_last_to_end(source, whole, tmp_path):
    out = tmp_path / "out"
    started = [start_slowly(source, out, f"{number}/3") for number in (1, 2, 3)]
    told = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], told
    assert sum("wordpieces (" in out for out, _ in told) >= 1  # who joined them tells of the set
    assert content(out) == whole


def test_two_of_the_same_part_at_once_are_refused(source, whole, tmp_path):
    out = tmp_path / "out"
    first = start_slowly(source, out, "1/2")
    wait_for_tars(out, 1)
    for words in (["--part", "1/2"], [], ["--part", "2/3"]):  # the same, all of it, one that shares a shard with it
        refused = build_set(source, out, *words)
        assert refused.returncode == 2 and "another command is writing to" in refused.stderr
    other = build_set(source, out, "--part", "2/2")
    assert other.returncode == 0 and "the last to end writes the index" in other.stdout
    first.communicate(timeout=60)
    assert first.returncode == 0
    assert content(out) == whole


def test_a_part_of_other_options_is_refused(source, tmp_path):
    assert build_set(source, tmp_path / "out", "--part", "1/2").returncode == 0
    refused = build_set(source, tmp_path / "out", "--part", "2/2", "--seed", 5)
    assert refused.returncode == 2 and "seed 0 (now 5)" in refused.stderr


def test_a_part_of_a_finished_set_changes_nothing(source, whole, tmp_path):
    assert build_set(source, tmp_path / "out").returncode == 0
    done = build_set(source, tmp_path / "out", "--part", "2/2")
    assert done.returncode == 0 and "already complete" in done.stdout
    assert content(tmp_path / "out") == whole


@pytest.mark.parametrize("words", [["--part", "0/2"], ["--part", "3/2"], ["--part", "2"]])
def test_a_part_that_is_none_is_named(source, tmp_path, words):
    refused = build_set(source, tmp_path / "out", *words)
    assert refused.returncode == 2 and "needed NUMBER/TOTAL" in refused.stderr


def test_overwriting_by_parts_is_refused(source, tmp_path):
    refused = build_set(source, tmp_path / "out", "--part", "1/2", "--overwrite")
    assert refused.returncode == 2 and "--overwrite goes with no --part" in refused.stderr


def test_what_a_killed_build_left_is_gone_in_the_end(source, whole, tmp_path):
    out = tmp_path / "out"
    assert build_set(source, out, "--part", "1/2").returncode == 0
    (out / "train-000002.tar.77-elsewhere.partial").write_bytes(b"half")
    assert build_set(source, out, "--part", "2/2").returncode == 0
    assert content(out) == whole


def test_a_door_is_that_of_the_folder_now(tmp_path):
    """Who opened the file before the folder was removed and made again must not be in another's door."""
    path = tmp_path / ".build" / "lock"
    early = FolderLock(path)
    path.unlink()
    late = FolderLock(path)
    with early.door():
        script = (
            "import fcntl, sys; file = open(sys.argv[1], 'r+b')\n"
            "try: fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)\n"
            "except OSError: print('shut')"
        )
        told = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)
    assert told.stdout == "shut\n"
    early.close()
    late.close()
