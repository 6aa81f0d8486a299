"""The header walk of storydist/data/tar.py against Python's tarfile on the same tars, and what indexing costs in all.

    python benchmarks/index_tars.py [--rounds 7] [--members 8000] [--size 23000] [--json FILE]

Four tars of samples (12 images and a json each) are written first; payloads are random bytes, which a checksum cannot
tell from JPEG. Contestants take turns within a round, so that a change of the machine's speed meets all of them. CPU
seconds of this process; ratios are taken within a round. The tars are in the page cache.
"""

import argparse
import io
import json
import os
import platform
import random
import statistics
import sys
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shards.scan import Scanner
from storydist.data.files import sha256_file
from storydist.data.tar import walk_tar

NUM_TARS, IMAGES = 4, 12
PAIRS = (("walk", "tarfile"), ("scan", "tarfile, zlib and hashlib"))  # ours, the other


def write_tars(folder: Path, num_members: int, size: int) -> list[Path]:
    """Tars of whole samples, at least `num_members` members in all, images of `size` bytes give or take a fifth."""
    generator = random.Random(0)
    per_tar = -(-num_members // (NUM_TARS * (IMAGES + 1)))
    paths = [folder / f"shard-{number:06d}.tar" for number in range(NUM_TARS)]
    for path in paths:
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for sample in range(per_tar):
                for suffix in [*(f"{image:03d}.jpg" for image in range(IMAGES)), "json"]:
                    entry = tarfile.TarInfo(f"{path.stem}-{sample:08d}.{suffix}")
                    entry.size = 400 if suffix == "json" else generator.randint(size * 4 // 5, size * 6 // 5)
                    tar.addfile(entry, io.BytesIO(os.urandom(entry.size)))
    return paths


def contestants(paths: Sequence[Path]) -> dict[str, Callable[[], int]]:
    """By name: a function that returns how many members it found."""
    scanner = Scanner(paths[0].parent, None, as_members=True)
    return {
        "walk": lambda: sum(1 for path in paths for _ in walk_tar(path)),
        "tarfile": lambda: sum(_by_tarfile(path, read=False) for path in paths),
        "scan": lambda: sum(len(scanner.scan(path.name).rows.members) for path in paths),
        "tarfile, zlib and hashlib": lambda: sum(_by_tarfile(path, read=True) for path in paths),
    }


def _by_tarfile(path: Path, read: bool) -> int:
    """Members of a tar; with `read` also the CRC-32 of each, and the file's SHA-256."""
    number = 0
    with tarfile.open(path, "r:") as tar:
        for entry in tar:
            number += 1
            if read:
                payload = tar.extractfile(entry)
                assert payload is not None, entry.name
                zlib.crc32(payload.read())
    if read:
        sha256_file(path)
    return number


def measure(work: dict[str, Callable[[], int]], num_rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each contestant in each round; a first round, which warms up, is left out."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(num_rounds + 1):
        found = set()
        for name, function in work.items():
            start_s = time.process_time()
            found.add(function())
            seconds[name].append(time.process_time() - start_s)
        assert len(found) == 1, f"the contestants do not agree: {found}"
    return {name: rounds[1:] for name, rounds in seconds.items()}


def summary(seconds: dict[str, list[float]], num_members: int, size_bytes: int) -> list[dict[str, Any]]:
    """A row for each contestant: microseconds per member, MB/s, and how many times as long the other one takes."""
    rows = []
    for ours, other in PAIRS:
        ratios = [b / a for a, b in zip(seconds[ours], seconds[other], strict=True)]
        for name in (ours, other):
            median_s = statistics.median(seconds[name])
            spread = statistics.median(abs(s - median_s) for s in seconds[name]) / median_s
            row = {"name": name, "us_per_member": 1e6 * median_s / num_members, "mb_per_s": size_bytes / 1e6 / median_s}
            row |= {"spread": spread, "ratio": 1.0, "ratio_min": 1.0, "ratio_max": 1.0}
            if name == other:
                row |= {"ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios)}
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--members", type=int, default=8000)
    parser.add_argument("--size", type=int, default=23_000, help="bytes of an image (%(default)s)")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = write_tars(Path(folder), arguments.members, arguments.size)
        work = contestants(paths)
        num_members, size_bytes = work["walk"](), sum(path.stat().st_size for path in paths)
        seconds = measure(work, arguments.rounds)
    rows = summary(seconds, num_members, size_bytes)
    data = f"{num_members} members, {size_bytes / 1e6:.0f} MB in {len(paths)} tars"
    machine = f"{platform.machine()}, Python {platform.python_version()}"
    print(f"{data}; {arguments.rounds} rounds; {machine}")
    print(f"{'':<28}{'us/member':>10}{'MB/s':>9}{'spread':>8}  times ours (range)")
    for row in rows:
        ratio = f"{row['ratio']:.2f} ({row['ratio_min']:.2f}-{row['ratio_max']:.2f})"
        line = f"{row['name']:<28}{row['us_per_member']:>10.1f}{row['mb_per_s']:>9.0f}{row['spread']:>8.1%}"
        print(f"{line}  {ratio if row['ratio'] != 1.0 else ''}".rstrip())
    if arguments.json is not None:
        content = {"data": data, "machine": machine, "rows": rows, "seconds": seconds}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
