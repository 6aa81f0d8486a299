"""A trial has one owner: a lock that the kernel lets go of when the owner, and the run that it started, are gone."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from storydist.training.lock import WITHOUT_LOCKS


@contextmanager
def held(path: Path, wait: bool) -> Iterator[int | None]:
    """Holds a lock on a file, which is made if need be; its descriptor, or None where another has it and `wait` is off.

    A child that is given the descriptor holds the lock as well, for as long as it lives. Raises ValueError on a file
    system without locks: two tasks would take the same trial.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
            raise ValueError(
                f"{path.parent}: this file system keeps no locks ({error.strerror}), which a sweep needs; "
                "choose a --dir on one that does"
            ) from None
        yield descriptor
    finally:
        os.close(descriptor)
