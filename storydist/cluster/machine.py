"""What this rank has of its machine: cores, open files, shared memory."""

import os
import resource
from pathlib import Path

from storydist.cluster.finding import Finding, fail, ok, warn
from storydist.cluster.place import Place

READ_AHEAD_FILES = 16  # shards that a rank holds open (storydist/data/reader.py)
OPEN_FILES = 1024  # what torch, sockets to the other ranks, logs and shards may take together
SHARED_BYTES_PER_GPU = 256 << 20  # NCCL's buffers between the GPUs of a node lie there; containers give 64 MB in all
SHARED = Path("/dev/shm")


def cores(place: Place) -> list[Finding]:
    """Those that this process may run on, against what Slurm granted each rank."""
    found = len(os.sched_getaffinity(0))
    granted = place.cores_granted
    if granted is not None and found < granted:
        return [
            fail(
                "cores",
                f"rank {place.rank} may use {found} core(s), and --cpus-per-task={granted} was asked for",
                'since Slurm 22.05 srun does not take it from the job: srun --cpus-per-task="$SLURM_CPUS_PER_TASK", or '
                "export SRUN_CPUS_PER_TASK",
            )
        ]
    if granted is None and found < place.local_world_size:
        return [
            warn(
                "cores",
                f"{place.local_world_size} ranks share {found} core(s)",
                "ask for as many cores as ranks and data.threads together (--cpus-per-task)",
            )
        ]
    return [ok("cores", f"{found} for rank {place.rank}" + (f", {granted} asked for" if granted else ""))]


def open_files(place: Place) -> list[Finding]:
    """How many files a rank may hold open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = OPEN_FILES + READ_AHEAD_FILES + 4 * place.world_size  # rank 0 keeps sockets to all
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return [ok("open files", f"{soft} allowed, {needed} needed")]
    may = "`ulimit -n` may raise it to" if hard == resource.RLIM_INFINITY or hard >= needed else "its hard limit is"
    told = f"{soft} allowed, up to {needed} needed"
    return [warn("open files", told, f"ulimit -n {needed} in the job's script ({may} {hard}), or --propagate=NONE")]


def shared_memory(place: Place, gpus: bool) -> list[Finding]:
    """Room in /dev/shm for NCCL's buffers; gloo uses none."""
    if not gpus:
        return [ok("shared memory", "not needed without GPUs")]
    status = os.statvfs(SHARED)
    free, needed = status.f_bavail * status.f_frsize, SHARED_BYTES_PER_GPU * place.local_world_size
    told = f"{free / 1e9:.3g} GB free in {SHARED}, {needed / 1e9:.3g} GB for {place.local_world_size} rank(s)"
    if free < needed:
        return [warn("shared memory", told, "containers: --shm-size or --ipc=host; else remove what others left there")]
    return [ok("shared memory", told)]
