"""This node's cache: whole files under their hashes, shared by all processes of the node.

    DIR/whole/KEY/              an entry: a folder that is complete and flushed; its time is when it was last asked for
    DIR/partial/KEY.BYTES/      an entry on its way, counted as BYTES from the start; what a killed process leaves is
                                gone on from by the next that wants it
    DIR/lock                    held while room is made and a download is claimed

All locks are the kernel's (flock), so none outlives its process. An entry's folder is locked exclusively by the process
that fills or removes it, and shared by those that must not lose it.
"""

import fcntl
import os
import shutil
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from storydist.data.files import sync

POLL_S = 0.05
_TRASH = "trash-"


class Entry:
    """A whole entry of the cache. It is not removed while this object lives."""

    def __init__(self, folder: Path, descriptor: int):
        self.folder = folder
        weakref.finalize(self, os.close, descriptor)


class NodeCache:
    """Raises OSError when the folder cannot be made, or lies on a disk where folders cannot be locked."""

    def __init__(self, folder: Path, max_bytes: int):
        self.folder, self.max_bytes = folder, max_bytes
        self._whole, self._partial = folder / "whole", folder / "partial"
        for part in (self._whole, self._partial):
            part.mkdir(parents=True, exist_ok=True)
        try:
            os.close(_lock(self._partial, fcntl.LOCK_SH))
        except OSError as error:
            raise OSError(
                f"{folder}: folders cannot be locked here ({error.strerror}), as on many network disks; "
                "let data.cache.dir be on a disk of this node"
            ) from error

    def fetch(self, key: str, num_bytes: int, fill: Callable[[Path], None]) -> Entry:
        """The entry `key`, which has `num_bytes`. If it is missing, `fill(folder)` makes it: in one process of the
        node, while the others wait.

        Raises ValueError when it is larger than the cache, or all else in the cache is in use; else what `fill` raises.
        """
        while (entry := self.try_fetch(key, num_bytes, fill)) is None:
            time.sleep(POLL_S)
        return entry

    def try_fetch(self, key: str, num_bytes: int, fill: Callable[[Path], None]) -> Entry | None:
        """As `fetch`, but None when another process is filling this entry, or others take up all the room."""
        if num_bytes > self.max_bytes:
            raise ValueError(
                f"{self.folder}: a file of {num_bytes} bytes does not fit a cache of {self.max_bytes}; "
                "raise data.cache.max_gb, or build smaller shards"
            )
        entry = self.find(key, num_bytes)
        if entry is not None:
            return entry
        partial = self._partial / f"{key}.{num_bytes}"
        descriptor = self._claim(key, partial, num_bytes)
        if descriptor is None:
            return None
        try:
            fill(partial)
            for path in [*partial.rglob("*"), partial]:
                sync(path)
            os.utime(partial)
            with self._locked():
                partial.rename(self._whole / key)
            sync(self._whole)
        finally:
            with self._locked(), suppress(OSError):
                partial.rmdir()  # if nothing came; what did come stays for the next
            os.close(descriptor)
        return self.find(key, num_bytes)

    def find(self, key: str, num_bytes: int | None = None) -> Entry | None:
        """The entry if it is whole, and has `num_bytes` if that is given; it then counts as used just now."""
        folder = self._whole / key
        try:
            descriptor = _lock(folder, fcntl.LOCK_SH)
        except FileNotFoundError:
            return None
        entry = Entry(folder, descriptor)
        if not _is_at(descriptor, folder):
            return None  # removed while we waited for the lock
        if num_bytes not in (None, _bytes_in(folder)):
            with self._locked():
                self._throw_away(folder)  # someone has changed it
            return None
        os.utime(folder)
        return entry

    def _claim(self, key: str, partial: Path, num_bytes: int) -> int | None:
        """The lock on a partial entry, for which there is room; None if another process has it or there is none yet."""
        with self._locked():
            if partial.exists():
                return _lock_if_free(partial)
            if (self._whole / key).exists() or not self._make_room(num_bytes):
                return None
            partial.mkdir()
            return _lock_if_free(partial)

    def _make_room(self, num_bytes: int) -> bool:
        """Removes entries, least recently used first, until `num_bytes` fit. False: others are downloading, wait."""
        entries = [(folder, _bytes_in(folder)) for folder in self._whole.iterdir()]
        for folder in self._partial.iterdir():
            if folder.name.startswith(_TRASH):
                shutil.rmtree(folder)
            else:
                entries.append((folder, int(folder.suffix.removeprefix("."))))
        total, kept = num_bytes + sum(size for _, size in entries), []
        for folder, size in sorted(entries, key=lambda entry: entry[0].stat().st_mtime_ns):
            if total <= self.max_bytes:
                break
            if self._remove(folder):
                total -= size
            else:
                kept.append(folder)
        if total > self.max_bytes and not any(folder.parent == self._partial for folder in kept):
            raise ValueError(
                f"{self.folder}: no room for {num_bytes} bytes: the cache may hold {self.max_bytes}, and "
                f"{total - num_bytes} are in use; raise data.cache.max_gb"
            )
        return total <= self.max_bytes

    def _remove(self, folder: Path) -> bool:
        """Removes an entry unless it is in use. Who has its files open or mapped keeps them."""
        descriptor = _lock_if_free(folder)
        if descriptor is None:
            return False
        self._throw_away(folder)
        os.close(descriptor)
        return True

    def _throw_away(self, folder: Path) -> None:
        trash = self._partial / f"{_TRASH}{folder.name}"
        shutil.rmtree(trash, ignore_errors=True)
        with suppress(FileNotFoundError):
            folder.rename(trash)  # at once, so that no entry is ever seen half removed
            shutil.rmtree(trash)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with open(self.folder / "lock", "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _lock_if_free(folder: Path) -> int | None:
    """A descriptor that holds the folder exclusively; None if anyone else holds it, or it is gone."""
    try:
        descriptor = _lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (FileNotFoundError, BlockingIOError):
        return None
    if _is_at(descriptor, folder):
        return descriptor
    os.close(descriptor)
    return None


def _lock(folder: Path, kind: int) -> int:
    """A descriptor of the folder that holds this lock."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, kind)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _is_at(descriptor: int, folder: Path) -> bool:
    """Whether an opened folder still has its name."""
    try:
        return os.path.samestat(os.fstat(descriptor), folder.stat())
    except FileNotFoundError:
        return False


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
