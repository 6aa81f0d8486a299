"""File operations that are counted, and from a given one on end the process or fail; for tests of what is left then.

Counted is everything that changes files: making, writing (ahead of it and in its middle), flushing, renaming, removing.
What was not flushed is kept note of, so that a loss of power can be acted out on what is left.
"""

import builtins
import errno
import io
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import safetensors.torch

REMOVING = ("unlink", "rmdir")


class KilledError(BaseException):
    """The process is gone: raised at each operation from then on, so that nothing changes a file any more."""


@dataclass
class Unflushed:
    """What a loss of power may take."""

    contents: dict[int, int] = field(default_factory=dict)  # {inode of a file written to since: bytes that are safe}
    entries: list[tuple[str, int]] = field(default_factory=list)  # (folder, inode) of things made in it since
    renames: list[tuple[str, str, bytes | None]] = field(default_factory=list)  # from, to, the file that was there


class Files:
    """Counts operations while `installed`; from number `first` on (0: never) they raise `error`, or only that one.

    A full disk still lets things be removed.
    """

    def __init__(self, first: int = 0, error: BaseException | None = None, once: bool = False):
        self.first, self.error, self.once = first, error, once
        self.count, self.unflushed = 0, Unflushed()
        self.refused: list[str] = []
        self._safe_bytes: dict[int, int] = {}
        self._lock = threading.RLock()

    def point(self, name: str) -> None:
        with self._lock:
            self.count += 1
            full = isinstance(self.error, OSError) and self.error.errno == errno.ENOSPC
            if self.error is None or self.count < self.first or (full and name in REMOVING):
                return
            if self.count == self.first or not self.once:
                self.refused.append(name)
                raise self.error.with_traceback(None)

    @contextmanager
    def installed(self) -> Iterator["Files"]:
        replaced: list[tuple[Any, str, Any]] = [
            (builtins, "open", self._open(builtins.open)),
            (io, "open", self._open(builtins.open)),
            (os, "fsync", self._fsync),
            (os, "rename", self._rename(os.rename)),
            (os, "replace", self._rename(os.replace)),
            (os, "mkdir", self._mkdir(os.mkdir)),
            (os, "unlink", self._removing(os.unlink)),
            (os, "rmdir", self._removing(os.rmdir)),
            (safetensors.torch, "save_file", self._save_file(safetensors.torch.save_file)),
        ]
        patches = [mock.patch.object(place, name, new) for place, name, new in replaced]
        for patch in patches:
            patch.start()
        try:
            yield self
        finally:
            for patch in patches:
                patch.stop()

    def writing(self, descriptor: int, data: bytes) -> None:
        """Writes in two halves."""
        self.point("write")
        file = os.fstat(descriptor)
        self.unflushed.contents.setdefault(file.st_ino, self._safe_bytes.get(file.st_ino, 0))
        os.write(descriptor, data[: len(data) // 2])
        self.point("write, half done")
        os.write(descriptor, data[len(data) // 2 :])

    def _made(self, path: Any) -> None:
        self.unflushed.entries.append((str(Path(path).parent), Path(path).stat().st_ino))

    def _open(self, real: Any) -> Any:
        def opened(path: Any, mode: str = "r", *words: Any, **more: Any) -> Any:
            if mode[0] not in "wax":
                return real(path, mode, *words, **more)
            self.point("open")
            new = not Path(path).exists()
            file = real(path, mode, *words, **more)
            if new:
                self._made(path)
            return WrittenFile(file, self)

        return opened

    def _save_file(self, real: Any) -> Any:
        def save_file(tensors: Any, path: Path, metadata: Any) -> None:
            self.point("open")
            real(tensors, path, metadata)
            self._made(path)
            data = path.read_bytes()
            descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC)
            try:
                self.writing(descriptor, data)
            finally:
                os.close(descriptor)

        return save_file

    def _fsync(self, descriptor: int) -> None:
        """Only noted: what it costs the disk, and what lacks without it, is acted out."""
        self.point("fsync")
        file, path, lost = os.fstat(descriptor), str(Path(f"/proc/self/fd/{descriptor}").readlink()), self.unflushed
        self._safe_bytes[file.st_ino] = file.st_size
        lost.contents.pop(file.st_ino, None)
        lost.entries = [entry for entry in lost.entries if entry[0] != path]
        lost.renames = [rename for rename in lost.renames if str(Path(rename[1]).parent) != path]

    def _rename(self, real: Any) -> Any:
        def rename(source: Any, target: Any) -> None:
            self.point("rename")
            before = Path(target).read_bytes() if Path(target).is_file() else None
            real(source, target)
            inode, lost = Path(target).stat().st_ino, self.unflushed
            lost.renames.append((str(source), str(target), before))
            # Its own entry is now lost with the rename or not at all; those made in a folder go where it goes.
            entries = [entry for entry in lost.entries if entry[1] != inode]
            lost.entries = [(str(target) if place == str(source) else place, other) for place, other in entries]

        return rename

    def _mkdir(self, real: Any) -> Any:
        def mkdir(path: Any, *words: Any, **more: Any) -> None:
            self.point("mkdir")
            real(path, *words, **more)
            self._made(path)

        return mkdir

    def _removing(self, real: Any) -> Any:
        def remove(*words: Any, **more: Any) -> None:
            self.point(real.__name__)
            real(*words, **more)

        return remove


class WrittenFile:
    """A file opened for writing; what is written goes to the system at once."""

    def __init__(self, file: Any, files: Files):
        self._file, self._files = file, files

    def write(self, data: str | bytes) -> int:
        self._files.writing(self._file.fileno(), data.encode() if isinstance(data, str) else data)
        return len(data)

    def flush(self) -> None:
        pass

    def fileno(self) -> int:
        return self._file.fileno()

    def __enter__(self) -> "WrittenFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def lose_power(root: Path, copy: Path, unflushed: Unflushed, *, renames: bool) -> None:
    """Takes what was not flushed in `root` from a copy of it: contents are cut, entries go, and with `renames` names
    are what they were. (Without, the disk kept a rename and lost what was renamed.)
    """
    paths = {path.stat().st_ino: path.relative_to(root) for path in root.rglob("*")}
    for inode, safe_bytes in unflushed.contents.items():
        if inode in paths:
            os.truncate(copy / paths[inode], safe_bytes)
    for _, inode in unflushed.entries:
        if inode in paths and (copy / paths[inode]).is_dir():
            shutil.rmtree(copy / paths[inode])
        elif inode in paths:
            (copy / paths[inode]).unlink(missing_ok=True)
    for source, target, before in reversed(unflushed.renames) if renames else ():
        new, old = copy / Path(target).relative_to(root), copy / Path(source).relative_to(root)
        if new.is_dir():
            new.rename(old)
        elif before is not None:
            new.write_bytes(before)
        else:
            new.unlink(missing_ok=True)
