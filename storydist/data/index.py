"""The index of a shard set: what there is, where it lies, and what it was built with.

    index.json             `IndexInfo`; written last, so a folder without it is not a shard set
    index.stories.npy      STORY_DTYPE, a row a story; the stories of a split are neighbours
    index.members.npy      MEMBER_DTYPE, a row a tar member; the members of a story are neighbours
    index.story_ids.npy    the stories' ids, fixed-width UTF-8
    index.idf.npy          float32 [vocabulary]: log((1 + D) / (1 + df)) over the D descriptions of the train split
    tokenizer/             see storydist/data/text.py
    train-000000.tar ...   see storydist/data/sample.py

The tables are memory-mapped: opening costs the same for a hundred stories as for ten million. Layout and rules:
docs/shard_format.md.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from storydist.data.files import sha256_file, write_atomic
from storydist.data.location import check_file, is_remote, local_folder, shown
from storydist.data.storage import CacheConfig, LocalStorage, RemoteStorage

SCHEMA_VERSION = 1
BUILD_FOLDER = ".build"  # in the shard set's folder while it is being built
TABLES = ("index.stories.npy", "index.members.npy", "index.story_ids.npy", "index.idf.npy")
STORY_DTYPE = np.dtype(
    [("shard", "<u4"), ("first_member", "<u8"), ("num_members", "<u2"), ("num_frames", "<u2"), ("score", "<f4")]
)  # score in the metadata's unit, NaN: missing
MEMBER_DTYPE = np.dtype([("offset", "<u8"), ("size", "<u8"), ("crc32", "<u4"), ("suffix", "<u2")])
# offset: of the payload in the tar, bytes; suffix: position in IndexInfo.suffixes
_FINGERPRINT = re.compile(rb'"fingerprint": "([0-9a-f]*)"')


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ShardInfo(_Record):
    """One tar: `size_bytes` and `sha256` of the whole file."""

    name: str
    size_bytes: int
    sha256: str
    num_stories: int


class SplitInfo(_Record):
    """A split is the stories `first` to `first + num_stories - 1`."""

    first: int
    num_stories: int
    num_frames: int


class ScoreScale(_Record):
    """The scores of the train split, in the metadata's unit; `std` of the population; `count` stories have a score."""

    mean: float
    std: float
    min: float
    max: float
    count: int


class IndexInfo(_Record):
    """What index.json holds.

    `fingerprint`: SHA-256 of index.json with an empty fingerprint; through `files` and `shards` it covers every byte of
    the set. `height`, `width` are None when frames are "original". `tag_vocabulary[id]` is (kind, value): ids 0 and 1
    are padding and unknown, then the train split's tags, most frequent first. `files`: SHA-256 of the tables and of the
    tokenizer's files. `options`: what shaped the bytes. `skipped`: stories left out, by reason.

    `kind` "members": tars of any other content, indexed by shards/index.py. There `num_frames` counts image members, no
    score is known, and there is no tokenizer, vocabulary or tag.
    """

    schema_version: int
    fingerprint: str
    kind: Literal["stories", "members"] = "stories"
    frames: Literal["original", "jpeg", "raw"]
    height: int | None
    width: int | None
    tokenizer: str
    vocabulary_size: int
    suffixes: list[str]
    shards: list[ShardInfo]
    splits: dict[str, SplitInfo]
    tag_vocabulary: list[tuple[str, str]]
    score: ScoreScale | None
    skipped: dict[str, int]
    files: dict[str, str]
    options: dict[str, Any]


@dataclass
class Reading:
    """What the process reads of a shard set: the story each thread is at, and how many reads are done."""

    stories: dict[int, int] = field(default_factory=dict)
    num_done: int = 0


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """An opened shard set. The tables are read-only memory maps; pickling sends only where the set lies.

    `root`: the folder on this node with index.json, tables and tokenizer; the shards lie there too unless the set is at
    an address.
    """

    root: Path
    info: IndexInfo
    stories: np.ndarray = field(repr=False)
    members: np.ndarray = field(repr=False)
    story_ids: np.ndarray = field(repr=False)
    wordpiece_idf: np.ndarray = field(repr=False)
    storage: LocalStorage | RemoteStorage = field(repr=False)
    location: str | Path
    cache: CacheConfig | None = field(repr=False)
    reading: Reading = field(default_factory=Reading, repr=False)  # for a watchdog

    @classmethod
    def open(cls, location: str | Path, cache: CacheConfig | None = None) -> "ShardIndex":
        """Opens the shard set in a folder, or at an address such as https://HOST/PATH (seen through the node's cache).

        Raises FileNotFoundError when there is none or its build was not finished, ValueError when index.json was
        changed, has another schema version, names files outside the set, or does not fit its tables; OSError when an
        address cannot be read. The tars are not touched.
        """
        storage: LocalStorage | RemoteStorage
        if is_remote(location):
            storage = RemoteStorage(str(location), cache or CacheConfig())
            text = storage.read_index()
            info = parse_info(text, storage.where("index.json"))
            root = storage.bring_tables(info.fingerprint, text, info.files)
        else:
            root = local_folder(location)
            info, storage = read_info(root), LocalStorage(root)
        stories, members, story_ids, idf = (_open_table(root / name) for name in TABLES)
        num_stories = sum(split.num_stories for split in info.splits.values())
        _need(stories.dtype == STORY_DTYPE and stories.shape == (num_stories,), root, "index.stories.npy")
        _need(members.dtype == MEMBER_DTYPE and members.ndim == 1, root, "index.members.npy")
        _need(story_ids.dtype.kind == "S" and story_ids.shape == (num_stories,), root, "index.story_ids.npy")
        _need(idf.dtype == np.float32 and idf.shape == (info.vocabulary_size,), root, "index.idf.npy")
        return cls(root, info, stories, members, story_ids, idf, storage, location, cache)

    def __reduce__(self) -> tuple:
        return (ShardIndex.open, (self.location, self.cache))

    def __str__(self) -> str:
        """Where the set lies, for messages."""
        return shown(self.location) if isinstance(self.location, str) and is_remote(self.location) else str(self.root)

    def split(self, name: str) -> range:
        """The story numbers of a split. Raises ValueError when there is no such split, listing those there are."""
        if name not in self.info.splits:
            raise ValueError(f"{self} has no split {name!r}; it has {', '.join(self.info.splits)}")
        split = self.info.splits[name]
        return range(split.first, split.first + split.num_stories)

    def longest_story(self, split: str) -> int:
        """Frames of the longest story of a split; 0 without such a split."""
        stories = self.split(split) if split in self.info.splits else range(0)
        return int(self.stories["num_frames"][stories.start : stories.stop].max(initial=0))

    def shard_path(self, shard: int) -> Path:
        """Where a shard lies, or would lie, beside the index; for messages and for local sets."""
        return self.root / self.info.shards[shard].name

    def fetch_shard(self, shard: int) -> Path:
        """Path of a whole shard on this node, to be opened before this thread asks for another. Raises
        FileNotFoundError, OSError when it cannot be brought here, or ValueError when its size or hash is another.
        """
        info = self.info.shards[shard]
        return self.storage.fetch(info.name, info.size_bytes, info.sha256)

    def prefetch_shards(self, shards: Iterable[int]) -> None:
        """Begins to bring shards to this node, in this order, in the background; `fetch_shard` tells what failed."""
        infos = [self.info.shards[shard] for shard in shards]
        self.storage.prefetch([(info.name, info.size_bytes, info.sha256) for info in infos])

    def story_id(self, story: int) -> str:
        return bytes(self.story_ids[story]).decode()

    def being_read(self) -> str:
        """Shard and story of each read under way, for a message; "" when there is none."""
        stories = tuple(self.reading.stories.copy().values())
        shards = [self.info.shards[int(self.stories[story]["shard"])].name for story in stories]
        return ", ".join(f"{shard}: story {self.story_id(s)!r}" for shard, s in zip(shards, stories, strict=True))

    def members_of(self, story: int) -> list[tuple[str, int, int, int]]:
        """A story's tar members in tar order: (suffix, offset of the payload, size, CRC-32), bytes."""
        row = self.stories[story]
        first = int(row["first_member"])
        rows = self.members[first : first + int(row["num_members"])]
        suffixes = self.info.suffixes
        return [(suffixes[suffix], offset, size, crc32) for offset, size, crc32, suffix in rows.tolist()]


def read_info(root: Path) -> IndexInfo:
    """index.json of a shard set, checked against its own fingerprint. Errors as `ShardIndex.open`."""
    path = root / "index.json"
    if not path.is_file():
        if (root / BUILD_FOLDER).is_dir():
            raise FileNotFoundError(f"{root} holds an unfinished build; run the same shards/build.py again")
        raise FileNotFoundError(f"{root} is not a shard set (no index.json); make one with shards/build.py")
    return parse_info(path.read_bytes(), path)


def parse_info(text: bytes, path: str | Path) -> IndexInfo:
    """What an index.json says. Raises ValueError, naming it as `path`, as `ShardIndex.open`."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    version = found.get("schema_version") if isinstance(found, dict) else None
    if version != SCHEMA_VERSION:
        raise ValueError(f"{path} has schema version {version}, this program reads {SCHEMA_VERSION}; build it again")
    if found.get("fingerprint") != fingerprint_of(text):
        raise ValueError(f"{path} was changed after it was written (its fingerprint does not match); build it again")
    try:
        info = IndexInfo.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    for shard in info.shards:
        check_file(path, shard.name, shard.sha256, shard.size_bytes)
    for name, sha256 in info.files.items():
        check_file(path, name, sha256)
    return info


def fingerprint_of(text: bytes) -> str:
    """SHA-256 of the bytes of an index.json, its fingerprint taken out."""
    return hashlib.sha256(_FINGERPRINT.sub(b'"fingerprint": ""', text, count=1)).hexdigest()


def write_index(
    root: Path,
    info: Mapping[str, Any],
    stories: np.ndarray,
    members: np.ndarray,
    story_ids: list[str],
    wordpiece_idf: np.ndarray,
) -> IndexInfo:
    """Writes the tables, then index.json, each atomically. Returns what index.json holds.

    `info`: the fields of IndexInfo except schema_version and fingerprint; `files` is completed with the tables.
    """
    ids = np.array([story_id.encode() for story_id in story_ids], dtype=np.bytes_)
    tables = (stories.astype(STORY_DTYPE), members.astype(MEMBER_DTYPE), ids, wordpiece_idf.astype("<f4"))
    files = dict(info["files"])
    for name, table in zip(TABLES, tables, strict=True):
        _write_table(root / name, table)
        files[name] = sha256_file(root / name)
    content = IndexInfo.model_validate({**info, "files": files, "schema_version": SCHEMA_VERSION, "fingerprint": ""})
    text = json.dumps(content.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    fingerprint = fingerprint_of(text)
    text = _FINGERPRINT.sub(f'"fingerprint": "{fingerprint}"'.encode(), text, count=1)
    write_atomic(root / "index.json", text)
    return content.model_copy(update={"fingerprint": fingerprint})


def _write_table(path: Path, table: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, table, allow_pickle=False)
    write_atomic(path, buffer.getbuffer())


def _open_table(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing; build the shards again") from None
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is damaged ({error}); build the shards again") from None


def _need(condition: bool, root: Path, name: str) -> None:
    if not condition:
        raise ValueError(f"{root / name} does not fit index.json; build the shards again")
