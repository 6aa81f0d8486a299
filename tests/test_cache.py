"""The node's cache: what stays, what goes, who waits. Two NodeCaches on one folder behave as two processes do."""

import errno
import mmap
import os
import threading
from pathlib import Path

import pytest

from storydist.data.cache import Entry, NodeCache


def made(cache: NodeCache, key: str, content: bytes = b"1234") -> Entry:
    return cache.fetch(key, len(content), lambda folder: put(folder, content))


def put(folder: Path, content: bytes) -> None:
    (folder / "data").write_bytes(content)


def never(folder: Path) -> None:
    raise AssertionError("was whole already")


def whole(cache: NodeCache) -> set[str]:
    return {path.name for path in (cache.folder / "whole").iterdir()}


def test_an_entry_is_made_once(tmp_path):
    entry = made(NodeCache(tmp_path, 10), "a")
    assert (entry.folder / "data").read_bytes() == b"1234"
    assert NodeCache(tmp_path, 10).fetch("a", 4, never).folder == entry.folder


def test_the_least_recently_used_goes_first_and_the_bound_holds(tmp_path):
    cache = NodeCache(tmp_path, 12)
    for key in "abc":
        made(cache, key)
    made(cache, "a")
    made(cache, "d")
    assert whole(cache) == {"a", "c", "d"}
    made(cache, "e", b"12345")
    assert whole(cache) == {"d", "e"}
    made(NodeCache(tmp_path, 5), "f")
    assert whole(cache) == {"f"}, "a smaller bound counts at the next download"


def test_what_someone_holds_stays(tmp_path):
    cache = NodeCache(tmp_path, 8)
    held = made(cache, "a")
    made(cache, "b")
    made(NodeCache(tmp_path, 8), "c")
    assert whole(cache) == {"a", "c"}
    with pytest.raises(ValueError, match=r"no room for 5 bytes.* 4 are in use; raise data\.cache\.max_gb"):
        made(cache, "d", b"12345")
    del held
    made(cache, "d", b"12345")
    assert whole(cache) == {"d"}


def test_a_mapped_file_outlives_its_entry(tmp_path):
    cache = NodeCache(tmp_path, 4)
    with open(made(cache, "a").folder / "data", "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    made(cache, "b", b"5678")
    assert whole(cache) == {"b"} and mapped[:] == b"1234"


def test_what_is_larger_than_the_cache_is_not_begun(tmp_path):
    with pytest.raises(ValueError, match=r"5 bytes does not fit a cache of 4; raise data\.cache\.max_gb"):
        NodeCache(tmp_path, 4).fetch("a", 5, never)


def test_one_fills_while_the_others_wait(tmp_path):
    begun, finish, calls = threading.Event(), threading.Event(), []

    def slowly(folder: Path) -> None:
        calls.append(folder)
        begun.set()
        assert finish.wait(30)
        put(folder, b"1234")

    threads = [threading.Thread(target=lambda: NodeCache(tmp_path, 10).fetch("a", 4, slowly)) for _ in range(5)]
    for thread in threads:
        thread.start()
    assert begun.wait(30)
    assert NodeCache(tmp_path, 10).try_fetch("a", 4, never) is None and not whole(NodeCache(tmp_path, 10))
    finish.set()
    for thread in threads:
        thread.join()
    assert len(calls) == 1 and whole(NodeCache(tmp_path, 10)) == {"a"}


def test_room_is_taken_before_the_first_byte(tmp_path):
    """Two downloads that do not fit together do not both begin; the second waits, then takes the room."""
    begun, finish = threading.Event(), threading.Event()

    def slowly(folder: Path) -> None:
        begun.set()
        assert finish.wait(30)
        put(folder, b"123456")

    thread = threading.Thread(target=lambda: NodeCache(tmp_path, 10).fetch("a", 6, slowly))
    thread.start()
    assert begun.wait(30)
    assert NodeCache(tmp_path, 10).try_fetch("b", 6, never) is None
    finish.set()
    made(NodeCache(tmp_path, 10), "b", b"654321")
    thread.join()
    assert whole(NodeCache(tmp_path, 10)) == {"b"}


def test_a_failed_fill_keeps_what_came_and_nothing_else(tmp_path):
    cache = NodeCache(tmp_path, 10)

    def half(folder: Path) -> None:
        put(folder, b"12")
        raise OSError("line is down")

    def go_on(folder: Path) -> None:
        assert (folder / "data").read_bytes() == b"12"
        put(folder, b"1234")

    def nothing(folder: Path) -> None:
        raise OSError("line is down")

    for fill in (half, nothing):
        with pytest.raises(OSError, match="line is down"):
            cache.fetch("a", 4, fill)
        assert not whole(cache)
    cache.fetch("a", 4, go_on)
    with pytest.raises(OSError, match="line is down"):
        cache.fetch("b", 4, nothing)
    assert not list((tmp_path / "partial").iterdir())


def test_leftovers_make_room_too(tmp_path):
    cache = NodeCache(tmp_path, 10)
    for leftover in ("partial/dead.8", "partial/trash-x"):
        (tmp_path / leftover).mkdir()
        put(tmp_path / leftover, b"12")
    made(cache, "a")
    assert whole(cache) == {"a"} and not list((tmp_path / "partial").iterdir())


def test_a_copy_that_was_changed_is_made_again(tmp_path):
    cache = NodeCache(tmp_path, 10)
    path = made(cache, "a").folder / "data"
    os.truncate(path, 2)
    assert (made(cache, "a").folder / "data").read_bytes() == b"1234"


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        NodeCache(tmp_path / "file", 10)


def test_a_disk_without_locks_is_named(tmp_path, monkeypatch):
    def flock(descriptor: int, kind: int) -> None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))  # what NFS answers for a folder

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(
        OSError, match=r"cannot be locked here \(Bad file descriptor\).*data\.cache\.dir be on a disk of"
    ):
        NodeCache(tmp_path, 10)
