"""One run to a folder: a lock that the kernel lets go of when its process is gone, however it went."""

import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from storydist.data.files import WITHOUT_LOCKS, make_folder

LOCK = ".lock"
LEAVING_S = 90.0  # a rank whose launcher was killed finishes its step and saves, or is ended by its watchdog
POLL_S = 0.1


@contextmanager
def locked(run: Path, report: Callable[[str], None], wait_s: float = 0.0) -> Iterator[None]:
    """Keeps every other run out of a folder, which is made if need be; one process of a run calls this.

    Raises ValueError, naming host and process, when another run has it and keeps it for `wait_s` seconds. On a file
    system without locks it only reports so: nothing keeps a second run out then.
    """
    make_folder(run)
    path = run / LOCK
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            if not _taken(descriptor):
                _wait(run, descriptor, report, wait_s)
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


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait(run: Path, descriptor: int, report: Callable[[str], None], wait_s: float) -> None:
    holder = os.pread(descriptor, 1000, 0).decode(errors="replace").strip() or "a process that is just starting"
    found = f"{run} is in use by another run: {holder}"
    if wait_s:
        report(f"{found}; waiting up to {wait_s:.0f} s for it to leave")
    deadline = time.monotonic() + wait_s
    while not _taken(descriptor):
        if time.monotonic() >= deadline:
            raise ValueError(f"{found}; wait for it, stop it, or choose another run.dir")
        time.sleep(POLL_S)
