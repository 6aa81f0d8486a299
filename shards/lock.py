"""Which process writes what in a folder that several build at once, on one node or on many."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from storydist.data.files import WITHOUT_LOCKS

_DOOR = 0  # the byte of the file that stands for the folder's state; byte 1 + N stands for shard N


class FolderLock:
    """Locks on a file's bytes, which the kernel lets go of when the process is gone, however it went.

    `door`: for the moments in which the folder's state is read and changed; others wait. `take`: for as long as shards
    are built. Where a file system keeps no locks, all is granted: two at once are then the user's own care.
    """

    def __init__(self, path: Path) -> None:
        """Opens the file, which is made if need be, its folder too."""
        self._path = path
        self._file = self._open()

    def _open(self) -> int:
        while True:
            self._path.parent.mkdir(exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    @contextlib.contextmanager
    def door(self) -> Iterator[None]:
        """Waits until nobody else is in the door. The file is the one that has the path's name now: who came before may
        have removed the folder.
        """
        self._lock(fcntl.LOCK_EX, _DOOR, 1)
        while not self._is_the_named():
            os.close(self._file)
            self._file = self._open()
            self._lock(fcntl.LOCK_EX, _DOOR, 1)
        try:
            yield
        finally:
            self._lock(fcntl.LOCK_UN, _DOOR, 1)

    def _is_the_named(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._file), self._path.stat())
        except FileNotFoundError:
            return False

    def take(self, shards: range) -> bool:
        """Whether these shards are now ours; nobody has any of them then. Ours already: True."""
        try:
            self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB, 1 + shards.start, len(shards))
        except (BlockingIOError, PermissionError):  # POSIX allows either
            return False
        return True

    def release(self, shards: range) -> None:
        self._lock(fcntl.LOCK_UN, 1 + shards.start, len(shards))

    def _lock(self, how: int, first: int, count: int) -> None:
        if not count:  # lockf would take that for "to the end"
            return
        try:
            fcntl.lockf(self._file, how, count, first)
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise

    def close(self) -> None:
        os.close(self._file)
