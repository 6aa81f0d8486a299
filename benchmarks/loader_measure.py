"""One measurement in a process of its own; started by loader.py, which says with a line when to begin.

    python -m benchmarks.loader_measure '{"task": "read", "module": "webdataset", ...}'

Prints "ready" once everything is imported, waits for a line, does the work, prints one line of JSON. CPU time is that
of this process and of all its workers from that line on, so imports do not count, opening the data and starting workers
do.
"""

import gc
import importlib
import json
import os
import resource
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

import psutil

WRITTEN = ("Pss_Anon", "Pss_Shmem")  # what is shared counts in equal parts; files that are mapped do not count
PREFETCHED = 2  # batches that each worker of a DataLoader has ready


def main() -> None:
    task: dict[str, Any] = json.loads(sys.argv[1])
    # Loaders print as they like: what goes to standard output goes to standard error, answers to the true one.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    work = TASKS[task.pop("task")](task)
    _answer(answers, "ready")
    sys.stdin.readline()
    _answer(answers, json.dumps(work()))


def _answer(file: TextIO, line: str) -> None:
    file.write(line + "\n")
    file.flush()


def _prepare(task: dict[str, Any]) -> Callable[[], dict]:
    from benchmarks.loader_data import read_samples

    module = importlib.import_module(f"benchmarks.peers.{task['module']}")

    def work() -> dict:
        module.prepare(read_samples(Path(task["samples"])), Path(task["folder"]))
        return {}

    return work


@dataclass
class Totals:
    """What was delivered. `digests`: sums over all windows of the CRC-32 of its 5 frames, and of their wordpieces."""

    frames: int = 0
    windows: int = 0
    touched: int = 0
    bytes: int = 0
    batches: int = 0
    digests: list[int] = field(default_factory=lambda: [0, 0])

    def add(self, batch: dict[str, Any]) -> None:
        self.frames += batch["num_frames"]
        self.windows += batch["num_windows"]
        # Every page of the pixels is read, so that none is delivered on paper only.
        self.touched += int(batch["frames"].reshape(-1)[::4096].sum())
        self.bytes += sum(value.nbytes for value in batch.values() if hasattr(value, "nbytes"))
        self.batches += 1

    def digest(self, batch: dict[str, Any]) -> None:
        frames, windows = batch["frames"].numpy(), batch.get("windows")
        for number in range(batch["num_windows"]):
            rows = number if windows is None else windows[number].numpy()
            self.digests[0] += zlib.crc32(frames[rows].tobytes())
            if "wordpieces" in batch:
                texts = zip(batch["wordpieces"][rows].numpy(), batch["lengths"][rows].tolist(), strict=True)
                kept = b"".join(text[:length].astype("<i4").tobytes() for text, length in texts)
                self.digests[1] += zlib.crc32(kept)


def _read(task: dict[str, Any]) -> Callable[[], dict]:
    import torch

    from benchmarks.peers import batch as common

    torch.set_num_threads(1)
    common.cv2.setNumThreads(0)
    check = task.pop("check")
    module = importlib.import_module(f"benchmarks.peers.{task.pop('module')}")
    reading = common.Reading(**{**task, "folder": Path(task["folder"])})

    def work() -> dict:
        memory_at_start = _memory_bytes(os.getpid(), *WRITTEN)
        totals, first_batch_s = Totals(), 0.0
        busy, cpu, start = _busy_seconds(), _cpu_seconds(), time.perf_counter()
        for batch in module.batches(reading):
            first_batch_s = first_batch_s or time.perf_counter() - start
            totals.add(batch)
            end = time.perf_counter()
        del batch
        gc.collect()  # ends workers that only a cycle of references keeps
        result = {
            "wall_s": end - start,
            "first_batch_s": first_batch_s,
            "cpu_s": _cpu_seconds() - cpu,
            "busy_s": _busy_seconds() - busy,
            "elapsed_s": time.perf_counter() - start,
        }
        counts = {"frames": totals.frames, "windows": totals.windows, "batch_bytes": totals.bytes // totals.batches}
        more = _check(module, reading, memory_at_start) if check else {}
        return {**result, **counts, **more}

    return work


def _check(module: Any, reading: Any, memory_at_start: int) -> dict:
    """One more epoch, not timed: what exactly was delivered, and the memory written to while it was, page cache apart.

    `memory_bytes`: the most that this process and its workers had together, less what it had when it was ready; a page
    that several share counts once. `worker_bytes`: the most that one worker had to itself. `in_flight`: batches read
    ahead or in use.
    """
    totals, memory, largest = Totals(), 0, 0
    for batch in module.batches(replace(reading, epochs=1, seed=reading.seed + 1)):
        if totals.batches % 8 == 0:
            workers = [child.pid for child in psutil.Process().children(recursive=True)]
            written = [_memory_bytes(pid, *WRITTEN) for pid in (os.getpid(), *workers)]
            memory = max(memory, sum(written) - memory_at_start)
            largest = max(largest, 0, *(_memory_bytes(pid, "Private_Dirty") for pid in workers))
        totals.add(batch)
        totals.digest(batch)
    return {
        "epoch": {"frames": totals.frames, "windows": totals.windows, "digests": totals.digests},
        "memory_bytes": memory,
        "worker_bytes": largest,
        "in_flight": getattr(module, "IN_FLIGHT", max(1, PREFETCHED * reading.workers)),
    }


def _memory_bytes(pid: int, *kinds: str) -> int:
    """Of a process, as Linux counts it (man 5 proc, smaps); 0 if it has just ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.split(":")[0] in kinds)


def _cpu_seconds() -> float:
    """Of this process, of all its children that have ended, and of those that live on."""
    seconds = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(who)
        seconds += usage.ru_utime + usage.ru_stime
    for child in psutil.Process().children(recursive=True):
        times = child.cpu_times()
        seconds += times.user + times.system
    return seconds


def _busy_seconds() -> float:
    """Of all cores of the machine, with what others run and what the hypervisor takes."""
    times = psutil.cpu_times()
    return sum(times) - times.idle - times.iowait - times.guest - times.guest_nice


def _decode(task: dict[str, Any]) -> Callable[[], dict]:
    """A decoder alone over the stories that hold the first `frames` frames of our tars, a story at a time."""
    import numpy as np
    import torch

    from benchmarks.loader_data import read_samples
    from benchmarks.peers import batch as common
    from storydist.data.decode import decode_scaled

    torch.set_num_threads(1)
    common.cv2.setNumThreads(0)
    stories: list[tuple[bytes, ...]] = []
    for sample in read_samples(Path(task["folder"])):
        stories.append(tuple(sample.frames))
        if sum(map(len, stories)) >= task["frames"]:
            break
    out = np.empty((max(map(len, stories)), common.HEIGHT, common.WIDTH, 3), np.uint8)

    def work() -> dict:
        busy, cpu, start = _busy_seconds(), time.process_time(), time.perf_counter()
        for frames in stories:
            if task["decoder"] == "scaled":
                decode_scaled(frames, out[: len(frames)])
            else:
                common.pixels(frames, task["decoder"])
        wall, cpu, busy = time.perf_counter() - start, time.process_time() - cpu, _busy_seconds() - busy
        return {"wall_s": wall, "elapsed_s": wall, "cpu_s": cpu, "busy_s": busy, "frames": sum(map(len, stories))}

    return work


TASKS = {"prepare": _prepare, "read": _read, "decode": _decode}

if __name__ == "__main__":
    main()
