"""One run to a folder: a lock that the kernel lets go of when its process is gone, however it went."""

import errno
import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from storydist.data.files import make_folder

LOCK = ".lock"
# What file systems say that keep no locks: Lustre mounted without `-o flock`, NFS without a lock daemon, some FUSE.
WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


POLL_S = 0.2


@contextmanager
def locked(run: Path, report: Callable[[str], None], wait_s: float = 0) -> Iterator[None]:
    """Keeps every other run out of a folder, which is made if need be; one process of a run calls this.

    Raises ValueError, naming host and process, when another run has it and does not leave within `wait_s` seconds. On a
    file system without locks it only reports so: nothing keeps a second run out then.
    """
    make_folder(run)
    path = run / LOCK
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            _take(descriptor, run, report, wait_s)
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
            report(
                f"{path}: this file system keeps no locks ({error.strerror}); see to it that no second run is started "
                "in this folder"
            )
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int, run: Path, report: Callable[[str], None], wait_s: float) -> None:
    """Polls: a blocking flock knows no time limit. Says once that it waits."""
    deadline, told = time.monotonic() + wait_s, False
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 1000, 0).decode(errors="replace").strip() or "a process that is just starting"
            if time.monotonic() >= deadline:
                raise ValueError(
                    f"{run} is in use by another run: {holder}; wait for it, stop it, or choose another run.dir"
                ) from None
            if not told:
                report(f"{run} is in use by another run: {holder}; waiting up to {wait_s:.0f} s for its end")
                told = True
            time.sleep(POLL_S)
