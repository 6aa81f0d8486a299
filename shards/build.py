"""Stories -> WebDataset tars with an index.

    python shards/build.py --source DATA --metadata DATA/metadata.csv --out SHARDS --size 60x125 --workers 2

Same source and options, same bytes, for any number of workers. A build that was interrupted continues when it is run
again: shards that are finished and whole are kept. The index is written last; before that the folder is no shard set.

With --part 1/8, --part 2/8, ... the same set is built by as many commands, in any order, at once or not, on any nodes
that share the folder; whichever ends last writes the index. One that failed is run again alone.
"""

import argparse
import hashlib
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__" and __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shards.folder import claim, finished_set, newer_than, opened_folder, remove_set, tidy
from shards.lock import FolderLock
from shards.merge import SKIPPED_FILE, BuildFacts, merge
from shards.pack import FrameOptions, Packer
from shards.part import WHOLE, Part, part, unfinished_parts
from shards.plan import NO_TAGS, TRAIN, Plan, PlannedShard, make_plan
from shards.progress import Counter
from shards.rows import SkippedStory
from shards.sources import BadStory, Source, SourceOptions, open_source
from shards.workers import map_in_order
from storydist.command import ArgumentParser, positive_int, run_command
from storydist.data.files import check_writable
from storydist.data.index import IndexInfo
from storydist.data.text import Wordpieces, load_wordpieces, train_wordpieces

DEFAULT_SIZE = "60x125"
TRAINED_HERE = "train:"  # prefix of a --tokenizer that is trained on the train split


@dataclass(frozen=True)
class Summary:
    """What a build did, for the closing lines. `newer`: a file of the source that is newer than the set found.

    `info` is None while other parts are to be built yet: `left` says which.
    """

    info: IndexInfo | None
    root: Path
    seconds: float
    built_now: bool = False
    newer: Path | None = None
    left: str = ""


def build(arguments: argparse.Namespace) -> Summary:
    """Builds, continues or recognises the shard set in `arguments.out`."""
    start_s = time.monotonic()
    root = Path(arguments.out)
    check_writable(root)
    skipped: list[SkippedStory] = []

    def skip(error: BadStory) -> None:
        skipped.append(SkippedStory(error.story_id, error.field, error.reason, str(error)))

    on_bad_story = skip if arguments.skip_bad else None
    source = open_source(arguments.source, arguments.metadata, _source_options(arguments), on_bad_story)
    for note in source.notes:
        print(f"note: {note}", file=sys.stderr)
    plan = make_plan(source, arguments.stories_per_shard, arguments.limit, on_bad_story)
    wordpieces = make_wordpieces(arguments.tokenizer, plan)
    facts = BuildFacts(
        FrameOptions(arguments.frames, *arguments.size),
        _name_of(arguments.tokenizer),
        wordpieces,
        plan.tag_vocabulary,
        _shaping_options(arguments, plan, wordpieces),
    )
    own = arguments.part.shards(len(plan.shards))
    with opened_folder(root) as lock:
        info = _begin(root, lock, own, arguments, facts, source)
        if info is not None:
            newer = newer_than(root / "index.json", source.files())
            return Summary(info, root, time.monotonic() - start_s, newer=newer)
        packer = Packer(root, source, wordpieces, plan.tag_vocabulary, facts.frames, arguments.skip_bad)
        _pack(packer, [plan.shards[place] for place in own], arguments.workers)
        info, left = _end(root, lock, own, arguments.part, plan, lambda: merge(root, plan.shards, facts, skipped))
    return Summary(info, root, time.monotonic() - start_s, built_now=True, left=left)


def _begin(
    root: Path, lock: FolderLock, own: range, arguments: argparse.Namespace, facts: BuildFacts, source: Source
) -> IndexInfo | None:
    """Takes the `own` shards of the folder; returns the set where it is there already.

    Raises ValueError when another command builds one of them, or the folder is of other options.
    """
    with lock.door():
        if not lock.take(own):
            raise ValueError(f"another command is writing to {root}; wait for it or choose another folder")
        if arguments.overwrite:
            remove_set(root)
        info = finished_set(root, facts.options)
        if info is not None:
            tidy(root)
            return info
        if claim(root, facts.options, source.files()):
            print("continuing an unfinished build", file=sys.stderr)
        facts.wordpieces.save(root / "tokenizer")
    return None


def _end(
    root: Path, lock: FolderLock, own: range, part: Part, plan: Plan, merged: Callable[[], IndexInfo]
) -> tuple[IndexInfo | None, str]:
    """Lets the `own` shards go; whoever finds all shards finished and nobody at work writes the index.

    Returns the index, or None and what is left to do.
    """
    with lock.door():
        lock.release(own)
        if not lock.take(range(len(plan.shards))):
            return None, "other parts are at work; the last to end writes the index"
        unfinished = unfinished_parts(root, plan.shards, part.total)
        if unfinished:
            return None, f"to be built yet: part {', '.join(unfinished)}"
        info = merged()
        tidy(root)
        return info, ""


def _source_options(arguments: argparse.Namespace) -> SourceOptions:
    return SourceOptions(
        splits=arguments.splits,
        val_fraction=arguments.val,
        test_fraction=arguments.test,
        seed=arguments.seed,
        frames_per_video=arguments.frames_per_video,
    )


def _pack(packer: Packer, planned: Sequence[PlannedShard], num_workers: int) -> None:
    with Counter("shards", sum(len(shard.stories) for shard in planned), "stories") as counter:
        finished = map_in_order(packer.pack, planned, max(1, min(num_workers, len(planned))))
        for shard, _ in zip(planned, finished, strict=True):
            counter.advance(len(shard.stories))


def make_wordpieces(name: str, plan: Plan) -> Wordpieces:
    """The tokenizer of --tokenizer: trained on the train split for "train:SIZE", loaded for anything else."""
    if not name.startswith(TRAINED_HERE):
        return load_wordpieces(name)
    size = name.removeprefix(TRAINED_HERE)
    if not size.isdecimal():
        raise ValueError(
            f"argument --tokenizer: {name!r}, needed train: and a number of wordpieces, such as train:8000"
        )
    if not plan.train_texts:
        raise ValueError(f"the {TRAIN} split holds no story, so no tokenizer can be trained; name one with --tokenizer")
    return train_wordpieces(plan.train_texts, int(size))


def _name_of(tokenizer: str) -> str:
    return Path(tokenizer).name if Path(tokenizer).exists() else tokenizer


def _shaping_options(arguments: argparse.Namespace, plan: Plan, wordpieces: Wordpieces) -> dict[str, Any]:
    """What decides the bytes: another value needs another build. Places and numbers of processes do not count."""
    names = ("frames", "splits", "val", "test", "seed", "stories_per_shard", "limit", "frames_per_video")
    return {
        "source_sha256": plan.source_sha256,
        "tokenizer_sha256": hashlib.sha256(wordpieces.to_bytes()).hexdigest(),
        "size": None if arguments.frames == "original" else list(arguments.size),
        **{name: getattr(arguments, name) for name in names},
    }


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)
    summary = build(arguments)
    info = summary.info
    if info is None:
        print(f"{summary.root}: part {arguments.part} is built, in {summary.seconds:.1f} s; {summary.left}")
        return 0
    if not summary.built_now:
        print(f"{summary.root} is already complete: same texts, scores, tags and options; nothing to do")
    if summary.newer is not None:
        note = f"note: {summary.newer} is newer than the shards, and images were not compared"
        print(f"{note}; if they changed, build again with --overwrite", file=sys.stderr)
    size_bytes = sum(shard.size_bytes for shard in info.shards)
    for name, split in info.splits.items():
        print(f"  {name:<6} {split.num_stories:>8} stories {split.num_frames:>9} frames")
    print(f"  {len(info.shards)} shards, {size_bytes / 1e6:.1f} MB, frames {info.frames}, in {summary.seconds:.1f} s")
    tags = len(info.tag_vocabulary) - len(NO_TAGS)
    print(f"  {info.vocabulary_size} wordpieces ({info.tokenizer}), {tags} tags, fingerprint {info.fingerprint[:12]}")
    for reason, count in info.skipped.items():
        print(f"  skipped {count}: {reason} (listed in {summary.root / SKIPPED_FILE})")
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="shards/build.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, given = parser.add_argument, SourceOptions()
    add("--source", nargs="*", help="folder, files or Hub name; may be left out when the metadata point at frames")
    add("--metadata", help="CSV: story_id or video_id, story_score, tags, and what shards/metadata.py lists")
    add("--out", required=True, help="folder of the shard set")
    add("--frames", choices=("raw", "jpeg", "original"), default="raw", help="raw: uint8 at --size, nothing to decode")
    add("--size", type=_size, default=DEFAULT_SIZE, metavar="HxW", help="height x width in pixels (%(default)s)")
    add("--tokenizer", default="train:8000", help="train:SIZE, a folder, tokenizer.json, vocab.txt or a Hub name")
    add("--splits", choices=("source", "story", "movie"), default="source", help="whose splits (%(default)s)")
    add("--val", type=float, default=given.val_fraction, help="share of the validation split (%(default)s)")
    add("--test", type=float, default=given.test_fraction, help="share of test, if the source has none (%(default)s)")
    add("--seed", type=int, default=given.seed, help="decides which stories go to val and test (%(default)s)")
    add("--stories-per-shard", type=positive_int, default=64, help="(%(default)s)")
    num_frames = given.frames_per_video
    add("--frames-per-video", type=positive_int, default=num_frames, help="without timestamps (%(default)s)")
    add("--limit", type=positive_int, help="only the first so many stories of each split")
    add("--part", type=part, default=WHOLE, metavar="I/N", help="build the I-th of N parts; the last to end joins them")
    add("--workers", type=positive_int, default=1, help="processes (%(default)s)")
    add("--skip-bad", action="store_true", help="leave out stories that cannot be used, list them in skipped.csv")
    add("--overwrite", action="store_true", help="replace the shard set, or unfinished build, in --out")
    arguments = parser.parse_args(argv)
    if arguments.overwrite and arguments.part != WHOLE:
        parser.error("--overwrite goes with no --part: it would remove what other parts have built; remove --out first")
    return arguments


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3})", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"needed HEIGHTxWIDTH, each 1 to 9999, such as {DEFAULT_SIZE}; found {text!r}")
    return int(match[1]), int(match[2])


if __name__ == "__main__":
    raise SystemExit(run_command(main))
