"""Re-reads a shard set completely and lists everything that is wrong with it.

    python shards/verify.py SHARDS

Hashes of every file, each tar walked member by member and compared with the index, every story decoded and compared
with its row, its texts tokenised again, no story (and, for splits by movie, no movie) in two splits. Of plain members
(shards/index.py) nothing is decoded. Exit code 1 when anything is wrong, 2 when the folder holds no shard set.
"""

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

if __name__ == "__main__" and __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shards.found import tar_names
from shards.gather import MADE_BY
from shards.inspect_shard import Inspector, ShardReport
from shards.progress import Counter
from shards.workers import map_in_order
from storydist.command import ArgumentParser, positive_int, run_command
from storydist.data.files import sha256_file
from storydist.data.index import BUILD_FOLDER, IndexInfo, ShardIndex, read_info
from storydist.data.location import is_remote, local_folder, shown
from storydist.data.text import Wordpieces

MAX_NAMED = 5  # ids named in one finding; the rest are counted


@dataclass(frozen=True)
class Verdict:
    """`findings`: a sentence for each thing wrong, empty for a sound set; `info` None: index.json is unusable."""

    info: IndexInfo | None
    reports: list[ShardReport]
    findings: list[str]


def verify(root: Path, num_workers: int = 1) -> Verdict:
    """Re-reads the shard set in `root`. Raises FileNotFoundError when there is none."""
    try:
        info = read_info(root)
    except ValueError as error:
        return Verdict(None, [], [str(error)])
    findings = [*_check_files(root, info), *_check_folder(root, info)]
    try:
        index = ShardIndex.open(root)
        wordpieces = Wordpieces.load(root / "tokenizer") if info.kind == "stories" else None
    except (ValueError, OSError) as error:
        return Verdict(info, [], list(dict.fromkeys([*findings, str(error)])))
    findings += _check_counts(index)
    if findings:
        return Verdict(info, [], [*findings, "the shards were not read, because the index is not sound"])
    reports = []
    with Counter("verify", len(index.stories), "stories") as counter:
        inspect = Inspector(index, wordpieces).inspect
        for report in map_in_order(inspect, range(len(info.shards)), min(num_workers, len(info.shards))):
            reports.append(report)
            findings += report.findings
            counter.advance(info.shards[len(reports) - 1].num_stories)
    findings += _check_across(reports, info.options.get("splits") == "movie")
    return Verdict(info, reports, findings)


def _check_files(root: Path, info: IndexInfo) -> Iterator[str]:
    for name, digest in info.files.items():
        if not (root / name).is_file():
            yield f"{name} is missing"
        elif sha256_file(root / name) != digest:
            yield f"{name} was changed: its SHA-256 is not the one in index.json"


def _check_folder(root: Path, info: IndexInfo) -> Iterator[str]:
    known = {shard.name for shard in info.shards}
    found = info.options.get("made_by") == MADE_BY  # then subfolders belong to the set too
    for name in tar_names(root) if found else sorted(path.name for path in root.glob("*.tar")):
        if name not in known:
            yield f"{name} is not in the index"
    if (root / BUILD_FOLDER).exists():
        yield f"{BUILD_FOLDER} is left over from a build that did not end; run shards/build.py again"


def _check_counts(index: ShardIndex) -> Iterator[str]:
    """The index against itself: tables, splits and shards count the same stories, frames and members."""
    info, stories = index.info, index.stories
    for name, split in info.splits.items():
        rows = stories[split.first : split.first + split.num_stories]
        frames = int(rows["num_frames"].sum(dtype="i8"))
        if (len(rows), frames) != (split.num_stories, split.num_frames):
            yield f"split {name}: the index says {split.num_frames} frames, its stories have {frames}"
    shards = np.repeat(np.arange(len(info.shards)), [shard.num_stories for shard in info.shards])
    if not np.array_equal(stories["shard"], shards):
        yield "index.stories.npy: the stories are not in the shards, and the order, that index.json says"
    num_members = int(stories["num_members"].sum(dtype="i8"))
    if num_members != len(index.members):
        yield f"index.members.npy has {len(index.members)} rows, the stories have {num_members} members"


def _check_across(reports: Iterable[ShardReport], movies_apart: bool) -> Iterator[str]:
    stories: dict[str, list[str]] = defaultdict(list)
    movies: dict[str, set[str]] = defaultdict(set)
    for report in reports:
        for story in report.stories:
            stories[story.story_id].append(story.split)
            if story.movie is not None:
                movies[story.movie].add(story.split)
    twice = [story_id for story_id, splits in stories.items() if len(splits) > 1]
    across = [story_id for story_id in twice if len(set(stories[story_id])) > 1]
    shared = [movie for movie, splits in movies.items() if len(splits) > 1]
    if twice:
        yield f"{len(twice)} story ids occur more than once: {_named(twice)}"
    if across:
        yield f"{len(across)} stories are in two splits: {_named(across)}"
    if movies_apart and shared:
        yield f"{len(shared)} movies are in two splits: {_named(shared)}"


def _named(names: list[str]) -> str:
    return ", ".join(names[:MAX_NAMED]) + (", ..." if len(names) > MAX_NAMED else "")


def _print_table(info: IndexInfo, reports: list[ShardReport]) -> None:
    print(f"{'split':<8}{'shards':>8}{'stories':>10}{'frames':>10}{'members':>10}{'MB':>10}")
    for name in info.splits:
        rows = [report for report in reports if report.split == name]
        stories, frames = sum(len(row.stories) for row in rows), sum(row.num_frames for row in rows)
        members, size = sum(row.num_members for row in rows), sum(row.size_bytes for row in rows) / 1e6
        print(f"{name:<8}{len(rows):>8}{stories:>10}{frames:>10}{members:>10}{size:>10.1f}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = ArgumentParser(
        prog="shards/verify.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shards", help="folder of the shard set")
    parser.add_argument("--workers", type=positive_int, default=1, help="processes (%(default)s)")
    arguments = parser.parse_args(argv)
    start_s = time.monotonic()
    if is_remote(arguments.shards):
        raise ValueError(
            f"{shown(arguments.shards)}: only a folder is verified, because all of it is read; copy the set "
            "here first. Training checks the hash of each shard that it brings from an address"
        )
    verdict = verify(local_folder(arguments.shards), arguments.workers)
    if verdict.info is not None and verdict.reports:
        _print_table(verdict.info, verdict.reports)
    for finding in verdict.findings:
        print(f"WRONG {finding}")
    if verdict.findings:
        print(f"{len(verdict.findings)} findings; build the shards again, or copy them again from where they are whole")
        return 1
    assert verdict.info is not None, "an unusable index is a finding"
    print(f"sound: fingerprint {verdict.info.fingerprint[:12]}, read in {time.monotonic() - start_s:.1f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
