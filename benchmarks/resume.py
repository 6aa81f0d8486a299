"""How long a resumed run waits for its first batch, and how much memory it needs, on an index of millions of stories.

    python benchmarks/resume.py --stories 10000000 --work FOLDER --out resume.json

One tar of 1,000 small stories stands under as many names as the index needs (hard links); the index is full-sized.
Each figure is from a fresh process: seconds from opening the index to the first batch (imports not counted), and the
resident memory that this added at most. Every position is resumed three times in a row, each time from where the last
one ended, and what comes must be what would have come.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from shards.tar import TarWriter
from storydist.data.files import sha256_file
from storydist.data.index import MEMBER_DTYPE, STORY_DTYPE, ShardIndex, write_index
from storydist.data.sample import TEXT_SUFFIXES, Sample, encode, sample_key
from storydist.data.settings import DataConfig
from storydist.data.stream import Stream
from storydist.data.text import train_wordpieces

PER_SHARD, SIZE, GLOBAL_BATCH, STEPS = 1000, (8, 16), 64, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stories", type=int, default=10_000_000)
    parser.add_argument("--work", type=Path, required=True, help="scratch folder; 0.25 GB a million stories")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", nargs=2, metavar=("UNIT", "SAMPLES_SEEN"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.work, arguments.measure[0], int(arguments.measure[1]))))
        return
    if not (arguments.work / "index.json").exists():
        make(arguments.work, arguments.stories)
    rows = [row for unit in ("story", "window") for row in resumed(arguments.work, unit)]
    print(
        "| unit | position | resume | first batch, s | index open, s | memory added, MiB | exact |\n" + "|---" * 7 + "|"
    )
    for row in rows:
        print(
            f"| {row['unit']} | {row['samples_seen']:,} ({row['epochs']:.2f} epochs) | {row['resume']} | "
            f"{row['first_batch_s']:.3f} | "
            f"{row['open_s']:.3f} | {row['added_bytes'] / 2**20:.0f} | {row['exact']} |"
        )
    if arguments.out:
        arguments.out.write_text(json.dumps({"date": str(date.today()), "rows": rows}, indent=1) + "\n")


def make(work: Path, num_stories: int) -> None:
    """The index and its tars. Stories have 5 to 9 frames."""
    work.mkdir(parents=True, exist_ok=True)
    tokenizer = train_wordpieces(["a story of few words"] * 3, 120)
    tokenizer.save(work / "tokenizer")
    template = work / "train-00000000.tar"
    stories, members, suffixes = write_tar(template)
    num_shards = -(-num_stories // PER_SHARD)
    info = {"size_bytes": template.stat().st_size, "sha256": sha256_file(template), "num_stories": PER_SHARD}
    names = [f"train-{number:08d}.tar" for number in range(num_shards)]
    for name in names[1:]:
        os.link(template, work / name)
    all_stories = np.tile(stories, num_shards)
    all_stories["shard"] = np.repeat(np.arange(num_shards), PER_SHARD)
    all_stories["first_member"] += np.repeat(np.arange(num_shards) * len(members), PER_SHARD).astype(np.uint64)
    frames = int(all_stories["num_frames"].sum(dtype="i8"))
    facts = {
        "frames": "raw", "height": SIZE[0], "width": SIZE[1], "tokenizer": "train:120",
        "vocabulary_size": tokenizer.vocabulary_size, "suffixes": suffixes,
        "shards": [info | {"name": name} for name in names],
        "splits": {"train": {"first": 0, "num_stories": len(all_stories), "num_frames": frames}},
        "tag_vocabulary": [("", "<pad>"), ("", "<unk>")], "score": None, "skipped": {}, "files": {}, "options": {},
    }  # fmt: skip
    ids = [f"s{number}" for number in range(len(all_stories))]
    idf = np.zeros(tokenizer.vocabulary_size, np.float32)
    write_index(work, facts, all_stories, np.tile(members, num_shards), ids, idf)


def write_tar(path: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    generator = np.random.default_rng(0)
    suffixes: dict[str, int] = {}
    stories, members = [], []
    with TarWriter(path) as tar:
        for number in range(PER_SHARD):
            num_frames = 5 + number % 5
            sample = Sample(
                key=sample_key("train", number),
                frames=generator.integers(0, 256, (num_frames, *SIZE, 3), dtype=np.uint8),
                wordpieces=np.full(2 * num_frames, 5, np.int32),
                lengths=np.full(num_frames, 2, np.int32),
                tags=np.zeros((0, 3), np.int32),
                characters=np.zeros((num_frames, 1), np.uint8),
                times_s=np.arange(num_frames, dtype=np.float32),
                meta={},
            )
            wanted = [(suffix, data) for suffix, data in encode(sample) if suffix not in TEXT_SUFFIXES]
            stories.append((0, len(members), len(wanted), num_frames, np.nan))
            for suffix, data in wanted:
                place = suffixes.setdefault(suffix, len(suffixes))
                members.append((*tar.add(f"{sample.key}.{suffix}", data), place))
        tar.close()
    return np.array(stories, STORY_DTYPE), np.array(members, MEMBER_DTYPE), list(suffixes)


def resumed(work: Path, unit: str) -> list[dict[str, Any]]:
    """Each position, resumed three times in a row."""
    size = run(work, unit, 0)["num_samples"]
    rows = []
    for share in (0.0, 0.3, 0.999999, 7.61):
        seen, expected = int(share * size) // GLOBAL_BATCH * GLOBAL_BATCH, None
        for number in (1, 2, 3):
            row = run(work, unit, seen)
            row |= {"resume": number, "epochs": seen / size, "exact": expected in (None, row.pop("first_ids"))}
            expected = row.pop("next_ids")
            seen += STEPS * GLOBAL_BATCH
            rows.append(row)
    return rows


def run(work: Path, unit: str, samples_seen: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--work", str(work), "--measure", unit, str(samples_seen)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(work: Path, unit: str, samples_seen: int) -> dict[str, Any]:
    before = peak_bytes()
    start = time.perf_counter()
    index = ShardIndex.open(work)
    opened = time.perf_counter()
    config = DataConfig.model_validate({"shards": str(work), "unit": unit})
    stream = Stream(index, config, seed=1, global_batch=GLOBAL_BATCH)
    steps = stream.steps(samples_seen)
    batches = next(steps)
    first = time.perf_counter()
    for _ in range(STEPS - 1):
        next(steps)
    following = next(steps)
    steps.close()
    return {
        "unit": unit,
        "samples_seen": samples_seen,
        "num_samples": stream.num_samples,
        "open_s": opened - start,
        "first_batch_s": first - start,
        "added_bytes": peak_bytes() - before,
        "first_ids": [places(batch) for batch in batches],
        "next_ids": [places(batch) for batch in following],
    }


def peak_bytes() -> int:
    """Most resident memory since the program was started (getrusage's figure remembers the parent's)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def places(batch: Any) -> list[list[int]]:
    return [batch.story_B.tolist(), batch.position_N.tolist()]


if __name__ == "__main__":
    main()
