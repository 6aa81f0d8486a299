"""Where the run writes: that it can, that there is room, and that all nodes see one folder."""

import os
import uuid
from collections.abc import Sequence
from pathlib import Path

from storydist.cluster.finding import Finding, fail, ok, warn
from storydist.cluster.meeting import Meeting
from storydist.command import message_of
from storydist.config import Config
from storydist.data.files import check_writable
from storydist.training.keep import list_steps

PROBE_BYTES = 1 << 16
FILES_PER_CHECKPOINT = 6  # and its folder
SCRATCH_BYTES = 1 << 30
OTHER_FILES = 100  # logs, TensorBoard, heartbeats


def writable(check: str, folder: Path, setting: str) -> list[Finding]:
    """Writes a file there, to the disk, and removes it: permissions tell nothing of full or read-only disks."""
    probe = folder / f".preflight-{uuid.uuid4().hex}"
    try:
        check_writable(folder)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with open(probe, "wb") as file:
                file.write(os.urandom(PROBE_BYTES))
                file.flush()
                os.fsync(file.fileno())
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        error.filename = error.filename or str(folder)
        remedy = f"make room or mend the mount, or choose another {setting}"
        return [fail(check, f"cannot be written to: {message_of(error)}", remedy)]
    return [ok(check, f"{folder} can be written to")]


def checkpoint_bytes(config: Config, weight_bytes: int) -> int:
    """Weights, two moments for each, and the moving average where there is one."""
    return weight_bytes * (3 + bool(config.optim.ema_decay))


def room(config: Config, one_bytes: int) -> list[Finding]:
    """Room for the checkpoints that the run will hold at once: the last, the best, and the one being written. Those
    that are there already have theirs.
    """
    run, kept = Path(config.run.dir), config.checkpoint
    most = kept.keep_last + kept.keep_best + 1
    count = max(1, most - len(list_steps(run)))
    status = os.statvfs(run)
    free, needed = status.f_bavail * status.f_frsize, count * one_bytes
    told = f"{count} more checkpoint(s) of {one_bytes / 1e9:.3g} GB need {needed / 1e9:.3g} GB; free: {free / 1e9:.3g}"
    if free < needed:
        return [
            fail(
                "room",
                f"{told} GB in {run}",
                "make room, choose another run.dir, or lower checkpoint.keep_last (or checkpoint.keep_best=false)",
            )
        ]
    files = count * FILES_PER_CHECKPOINT + OTHER_FILES
    if status.f_files and status.f_favail < files:  # some file systems count no inodes and say 0
        told = f"{status.f_favail} more files are possible in {run}, {files} are needed"
        return [fail("room", told, "remove files there (inodes are used up), or choose another run.dir")]
    return [ok("room", f"{told} GB")]


def scratch(folder: Path) -> list[Finding]:
    """TMPDIR: this node's own."""
    found = writable("scratch", folder, "TMPDIR")
    if found[0].level == "FAIL":
        return found
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize
    if free < SCRATCH_BYTES:
        told = f"{free / 1e9:.3g} GB free in {folder}"
        return [warn("scratch", told, "remove what former jobs left there, or set TMPDIR to another disk")]
    return [ok("scratch", f"{free / 1e9:.3g} GB free in {folder}")]


def cache(config: Config, shard_bytes: Sequence[int]) -> list[Finding]:
    """The node's copies of shards that lie at an address."""
    folder = Path(config.data.cache.dir).expanduser()
    found = writable("cache", folder, "data.cache.dir")
    if found[0].level == "FAIL":
        return found
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize
    wanted = min(sum(shard_bytes), int(config.data.cache.max_gb * 1e9))
    if free < wanted:
        told = f"{free / 1e9:.3g} GB free in {folder}, up to {wanted / 1e9:.3g} GB of shards go there (if none do yet)"
        return [warn("cache", told, "make room, lower data.cache.max_gb, or choose another data.cache.dir")]
    return [ok("cache", f"{free / 1e9:.3g} GB free in {folder}, up to {wanted / 1e9:.3g} GB needed")]


def one_folder(meeting: Meeting, run: Path) -> list[Finding]:
    """Each node looks for a file that rank 0 has made in run.dir. Collective: the first rank of each node calls it."""
    check, rank = "one folder", meeting.place.rank
    if rank == 0:
        mark = run / f".preflight-{uuid.uuid4().hex}"
        try:
            mark.touch()
        finally:
            meeting.tell("mark", mark.name if mark.exists() else None)  # the others wait for it
        try:
            for other in list(meeting.speakers.values())[1:]:
                meeting.hear("saw", other)
        finally:
            mark.unlink(missing_ok=True)
        return [ok(check, f"all {len(meeting.speakers)} node(s) see {run}")]
    name = meeting.hear("mark", 0)
    if name is None:
        return []
    seen = (run / name).exists()
    meeting.tell("saw", seen)
    if not seen:
        told = f"{run} is not the folder that rank 0 on {meeting.nodes[0]} has"
        return [fail(check, told, "choose a run.dir in a file system that all nodes mount (not /tmp or a local disk)")]
    return [ok(check, f"sees {run}")]
