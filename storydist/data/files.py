"""Files that are either whole or absent."""

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CHUNK_BYTES = 1 << 20
# What file systems say that keep no locks: Lustre mounted without `-o flock`, NFS without a lock daemon, some FUSE.
WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


def write_atomic(path: str | os.PathLike[str], data: bytes | memoryview) -> None:
    """Writes `data` so that `path` holds either its former content or all of the new one, whatever happens.

    Written beside as `.NAME.tmp-PID`, flushed to the disk, renamed; then the folder's entry is flushed too. The folder
    must exist. Raises OSError when it cannot be written; nothing is left behind then.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with naming(path):
            with open(beside, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync(path.parent)


def remove_leftovers(path: Path) -> None:
    """Removes what a killed `write_atomic` of this path has left; for whoever is the only one to write it."""
    for leftover in path.parent.glob(f".{path.name}.tmp-*"):
        leftover.unlink(missing_ok=True)


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Names `path` in an OSError, which may name no file (a full disk) or one that is only written beside."""
    try:
        yield
    except OSError as error:
        error.filename = os.fspath(path)
        raise


def sync(path: str | os.PathLike[str]) -> None:
    """Flushes a file, or a folder's entries (a rename lives in the folder, not in the file), to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Makes a folder and what is missing above it, their entries flushed to the disk; one that exists is left alone."""
    if folder.is_dir():
        return
    if folder.parent != folder:
        make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync(folder.parent)


def sha256_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's content, 64 hexadecimal digits; reads 1 MiB at a time."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def check_writable(folder: Path) -> None:
    """Raises OSError, before any long work, when the folder cannot be made or written to."""
    existing = next(path for path in [folder, *folder.parents] if path.exists())
    if not existing.is_dir():
        raise NotADirectoryError(20, "is a file, so no folder can be made there", str(existing))
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(13, "no permission to write here", str(existing))
