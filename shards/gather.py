"""Scanned tars -> the index of the set that they make."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shards.grouping import MAX_SUFFIXES
from shards.merge import write_rows
from shards.plan import SPLIT_NAME, in_split_order
from shards.recover import StoryFacts, merged_facts
from shards.rows import ShardRows
from shards.scan import ScannedTar
from storydist.data.files import sha256_file
from storydist.data.index import IndexInfo
from storydist.data.text import FILE_NAME, Wordpieces

MADE_BY = "shards/index.py"
KEY, TAR_AND_KEY = "key", "tar/key"  # what the ids of plain samples are made of
_SPARE_ID_BYTES = 1 << 30


@dataclass(frozen=True)
class Tokenizer:
    """The wordpieces of our own stories; `name`: as the user called them; `save`: they do not lie beside the tars."""

    wordpieces: Wordpieces
    name: str
    save: bool


def write_members(root: Path, tars: Sequence[ScannedTar], splits: Mapping[str, str]) -> IndexInfo:
    """Writes the plain index of tars whose samples are no stories of ours. `splits`: by tar.

    A sample's id is its key; where one key comes in two tars, all ids of the set are TAR/KEY, TAR without ".tar".
    """
    rows = [tar.rows for tar in tars]
    keys = [key for row in rows for key in row.story_ids]
    ids = KEY if len(set(keys)) == len(keys) else TAR_AND_KEY
    if ids == TAR_AND_KEY:
        rows = [replace(row, story_ids=[plain_id(ids, row.name, key) for key in row.story_ids]) for row in rows]
    described: dict[str, Any] = {
        "kind": "members",
        "frames": "original",
        "height": None,
        "width": None,
        "tokenizer": "",
        "tag_vocabulary": [],
        "files": {},
        "options": {"made_by": MADE_BY, "ids": ids},
    }
    _withdraw(root, rows)
    return _write(root, rows, splits, 0, described)


def plain_id(ids: str, tar: str, key: str) -> str:
    """Id of a plain sample, `ids` being KEY or TAR_AND_KEY."""
    return key if ids == KEY else f"{tar.removesuffix('.tar')}/{key}"


def write_stories(
    root: Path, tars: Sequence[tuple[ShardRows, StoryFacts]], splits: Mapping[str, str], fixed: bool, given: Tokenizer
) -> IndexInfo:
    """Writes the full index of tars that hold our own stories.

    `splits`: by tar; with `fixed` they are what the user wants, otherwise what the stories say goes first. Raises
    ValueError when the two contradict each other, a story comes twice, or the tars are of different builds.
    """
    rows = [row for row, _ in tars]
    own_splits = {row.name: facts.split for row, facts in tars if facts.split is not None}
    for name, split in own_splits.items():
        if not SPLIT_NAME.fullmatch(split):
            raise ValueError(f"{name}: its stories are of split {split[:80]!r}, needed a name of a-z, 0-9, - and _")
        if fixed and split != splits[name]:
            raise ValueError(f"{name}: its stories say they are of split {split}, --split says {splits[name]}")
    _check_unique(rows)
    described = {
        **merged_facts([row.name for row in rows], [facts for _, facts in tars]),
        "tokenizer": given.name,
        "options": {"made_by": MADE_BY},
    }
    _withdraw(root, rows)
    if given.save:
        given.wordpieces.save(root / "tokenizer")
    described["files"] = {f"tokenizer/{FILE_NAME}": sha256_file(root / "tokenizer" / FILE_NAME)}
    return _write(root, rows, {**splits, **own_splits}, given.wordpieces.vocabulary_size, described)


def _check_unique(rows: Sequence[ShardRows]) -> None:
    places: dict[str, str] = {}
    for row in rows:
        for story_id in row.story_ids:
            if story_id in places:
                raise ValueError(f"story {story_id!r} is in {places[story_id]} and in {row.name}; ids must differ")
            places[story_id] = row.name


def _write(
    root: Path, rows: Sequence[ShardRows], splits: Mapping[str, str], vocabulary_size: int, described: dict[str, Any]
) -> IndexInfo:
    placed = [replace(row, split=splits[row.name]) for row in rows]
    ordered = [row for split in in_split_order(set(splits.values())) for row in placed if row.split == split]
    return write_rows(root, ordered, vocabulary_size, {**described, "skipped": {}})


def _withdraw(root: Path, rows: Sequence[ShardRows]) -> None:
    """Takes the earlier index away, once nothing can keep the new one from being written but the disk.

    Raises ValueError when there are more suffixes than the index can number, or when a few very long ids would blow up
    their table, whose rows all have the same width.
    """
    num_suffixes = len({suffix for row in rows for suffix in row.suffixes})
    if num_suffixes > MAX_SUFFIXES:
        raise ValueError(f"{root}: the tars have {num_suffixes} different suffixes, at most {MAX_SUFFIXES} are indexed")
    ids = [story_id for row in rows for story_id in row.story_ids]
    sizes = [len(story_id.encode()) for story_id in ids]
    if max(sizes) * len(sizes) > 16 * sum(sizes) + _SPARE_ID_BYTES:
        longest = ids[sizes.index(max(sizes))]
        raise ValueError(f"the id {longest[:80]!r}... has {max(sizes)} bytes, the others far fewer; shorten it")
    (root / "index.json").unlink(missing_ok=True)
