"""The folder that a shard set is built in: whose it is, what it already holds, what goes in the end."""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from shards.lock import FolderLock
from shards.merge import SKIPPED_FILE
from storydist.data.files import WITHOUT_LOCKS, write_atomic
from storydist.data.index import BUILD_FOLDER, TABLES, IndexInfo, read_info
from storydist.data.sample import to_json

SHARD_PATTERN = "*-??????.tar"  # names as shards/plan.py gives them
_PARTIAL_PATTERN = f"{SHARD_PATTERN}.*partial"
_PLAN_FILE = "plan.json"
_LOCK_FILE = "lock"


@contextlib.contextmanager
def opened_folder(root: Path) -> Iterator[FolderLock]:
    """Makes the folder of a build, or enters that of one that is under way.

    Raises ValueError when it holds something that is not a shard set, OSError when it cannot be written to.
    """
    root.mkdir(parents=True, exist_ok=True)
    entries = {path.name for path in root.iterdir()}
    if entries and not entries & {"index.json", BUILD_FOLDER}:
        raise ValueError(f"{root} holds other files ({min(entries)}) and no shard set; choose an empty folder")
    lock = FolderLock(root / BUILD_FOLDER / _LOCK_FILE)
    try:
        yield lock
    finally:
        lock.close()


def tidy(root: Path) -> None:
    """Removes what only an unfinished build needs, and what killed ones have left. For who has the whole folder."""
    for path in root.glob(_PARTIAL_PATTERN):
        path.unlink(missing_ok=True)
    shutil.rmtree(root / BUILD_FOLDER, ignore_errors=True)


@contextlib.contextmanager
def locked_tars(root: Path) -> Iterator[None]:
    """Holds a folder of tars while they are indexed; leaves nothing in it.

    Raises ValueError when another command is indexing it, or when it holds an unfinished build.
    """
    if (root / BUILD_FOLDER).exists():
        raise ValueError(f"{root} holds an unfinished build ({BUILD_FOLDER}); run the same shards/build.py again")
    descriptor = os.open(root, os.O_RDONLY)
    try:
        _lock(descriptor, root)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, root: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"another command is writing to {root}; wait for it or choose another folder") from None
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:  # two at once are then the user's own care
            raise


def remove_set(root: Path) -> None:
    """Removes what a build writes and nothing else; the index first, so that no broken set looks whole. For who has the
    whole folder.
    """
    for name in ("index.json", *TABLES, SKIPPED_FILE):
        (root / name).unlink(missing_ok=True)
    for path in [*root.glob(SHARD_PATTERN), *root.glob(_PARTIAL_PATTERN)]:
        path.unlink()
    shutil.rmtree(root / "tokenizer", ignore_errors=True)
    for path in (root / BUILD_FOLDER).iterdir():
        if path.name != _LOCK_FILE:
            path.unlink()


def finished_set(root: Path, options: Mapping[str, Any]) -> IndexInfo | None:
    """The set that is already there, None if there is none. Raises ValueError when it was built with other options."""
    if not (root / "index.json").exists():
        return None
    info = read_info(root)
    _compare(root, "a shard set built", info.options, options)
    return info


def claim(root: Path, options: Mapping[str, Any], source_files: Iterable[Path]) -> bool:
    """Notes what an unfinished build is of; True when an earlier run had begun the same one.

    Raises ValueError when the earlier run had other options or another source, or a file of the source is newer.
    """
    path = root / BUILD_FOLDER / _PLAN_FILE
    if not path.exists():
        write_atomic(path, to_json(options))
        return False
    _compare(root, "an unfinished build begun", json.loads(path.read_bytes()), options)
    changed = newer_than(path, source_files)
    if changed is not None:
        raise ValueError(f"{changed} was changed after the unfinished build in {root} began; begin again: --overwrite")
    return True


def newer_than(path: Path, source_files: Iterable[Path]) -> Path | None:
    """The first file whose content, or place, was changed after `path` was written. Images take no part in the
    source's hash, because planning does not read them; this notices a changed one for the price of a stat."""
    written_ns = path.stat().st_mtime_ns
    # The time of the inode's change: a file that is moved here, or copied with its times, keeps its older mtime.
    return next((file for file in source_files if file.stat().st_ctime_ns > written_ns), None)


def _compare(root: Path, what: str, found: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    names = [name for name in {**found, **options} if found.get(name) != options.get(name)]
    if names:
        changes = ", ".join(f"{name} {_short(found.get(name))} (now {_short(options.get(name))})" for name in names)
        raise ValueError(f"{root} holds {what} with {changes}; use --overwrite to replace it, or another folder")


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 16 else f"{text[:12]}..."
