"""The finished shards' rows -> the index, and what was left out."""

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shards.pack import FrameOptions
from shards.plan import TRAIN, PlannedShard
from shards.rows import ShardRows, SkippedStory
from storydist.data.files import sha256_file, write_atomic
from storydist.data.index import IndexInfo, write_index
from storydist.data.text import FILE_NAME, Wordpieces

SKIPPED_FILE = "skipped.csv"


@dataclass(frozen=True)
class BuildFacts:
    """What the index says of the whole set: `options` by name, and `tokenizer` as the user named it."""

    frames: FrameOptions
    tokenizer: str
    wordpieces: Wordpieces
    tag_vocabulary: Sequence[tuple[str, str]]
    options: Mapping[str, Any]


def merge(
    root: Path, planned: Sequence[PlannedShard], facts: BuildFacts, skipped_before: Sequence[SkippedStory]
) -> IndexInfo:
    """Writes skipped.csv (if a story was skipped) and the index of all planned shards, which must be finished.

    `skipped_before`: stories left out before they had a shard. Raises ValueError when no story is left at all.
    """
    shards = [ShardRows.load(root, shard.name) for shard in planned]
    skipped = [*skipped_before, *(story for shard in shards for story in shard.skipped)]
    if not any(len(shard.stories) for shard in shards):
        raise ValueError(f"all {len(skipped)} stories were skipped; the first: {skipped[0].message}")
    files = {f"tokenizer/{FILE_NAME}": sha256_file(root / "tokenizer" / FILE_NAME)}
    if skipped:
        write_atomic(root / SKIPPED_FILE, _skipped_csv(skipped))
        files[SKIPPED_FILE] = sha256_file(root / SKIPPED_FILE)
    original = facts.frames.frames == "original"
    described = {
        "frames": facts.frames.frames,
        "height": None if original else facts.frames.height,
        "width": None if original else facts.frames.width,
        "tokenizer": facts.tokenizer,
        "tag_vocabulary": list(facts.tag_vocabulary),
        "skipped": dict(sorted(Counter(story.reason for story in skipped).items())),
        "files": files,
        "options": dict(facts.options),
    }
    return write_rows(root, shards, facts.wordpieces.vocabulary_size, described)


def write_rows(
    root: Path, shards: Sequence[ShardRows], vocabulary_size: int, described: Mapping[str, Any]
) -> IndexInfo:
    """Writes the index of these shards, those of a split next to each other; shards without a story are left out.

    `described`: the fields of IndexInfo that do not follow from the rows.
    """
    kept = [shard for shard in shards if len(shard.stories)]
    stories, members, suffixes = _tables(kept)
    info = {
        **described,
        "vocabulary_size": vocabulary_size,
        "suffixes": suffixes,
        "shards": [_shard_info(shard) for shard in kept],
        "splits": _splits(shards),
        "score": _score_scale(kept),
    }
    ids = [story_id for shard in kept for story_id in shard.story_ids]
    return write_index(root, info, stories, members, ids, _idf(kept, vocabulary_size))


def _tables(shards: Sequence[ShardRows]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The shards' rows end to end, numbered through: (stories, members, suffixes)."""
    suffixes: dict[str, int] = {}
    stories, members, num_members = [], [], 0
    for number, shard in enumerate(shards):
        story_rows, member_rows = shard.stories.copy(), shard.members.copy()
        story_rows["shard"] = number
        story_rows["first_member"] += num_members
        places = np.array([suffixes.setdefault(suffix, len(suffixes)) for suffix in shard.suffixes], np.uint16)
        member_rows["suffix"] = places[member_rows["suffix"]]
        num_members += len(member_rows)
        stories.append(story_rows)
        members.append(member_rows)
    return np.concatenate(stories), np.concatenate(members), list(suffixes)


def _shard_info(shard: ShardRows) -> dict[str, Any]:
    sizes = {"name": shard.name, "size_bytes": shard.size_bytes, "sha256": shard.sha256}
    return {**sizes, "num_stories": len(shard.stories)}


def _splits(shards: Sequence[ShardRows]) -> dict[str, dict[str, int]]:
    splits: dict[str, dict[str, int]] = {}
    first = 0
    for shard in shards:
        split = splits.setdefault(shard.split, {"first": first, "num_stories": 0, "num_frames": 0})
        split["num_stories"] += len(shard.stories)
        split["num_frames"] += shard.num_frames
        first += len(shard.stories)
    return splits


def _score_scale(shards: Sequence[ShardRows]) -> dict[str, float] | None:
    rows = [shard.stories["score"].astype(np.float64) for shard in shards if shard.split == TRAIN]
    scores = np.concatenate(rows) if rows else np.zeros(0)
    scores = scores[~np.isnan(scores)]
    if not len(scores):
        return None
    scale = {"mean": scores.mean(), "std": scores.std(), "min": scores.min(), "max": scores.max()}
    return {name: float(value) for name, value in scale.items()} | {"count": len(scores)}


def _idf(shards: Sequence[ShardRows], vocabulary_size: int) -> np.ndarray:
    train = [shard for shard in shards if shard.split == TRAIN]
    frequency = sum((shard.frequency.astype(np.int64) for shard in train), np.zeros(vocabulary_size, np.int64))
    return np.log((1 + sum(shard.num_descriptions for shard in train)) / (1 + frequency)).astype(np.float32)


def _skipped_csv(skipped: Sequence[SkippedStory]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["story_id", "field", "reason", "message"])
    writer.writerows([story.story_id, story.field, story.reason, story.message] for story in skipped)
    return text.getvalue().encode()
