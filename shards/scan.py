"""One tar found -> the rows that the index needs, in a single pass over its bytes."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from zlib_ng.zlib_ng import crc32

from shards.grouping import MAX_SUFFIXES, FoundSample, samples
from shards.recover import StoryFacts, StoryScanner, lacking
from shards.rows import GrowingRows, ShardRows
from storydist.data.files import naming
from storydist.data.tar import TarMember, walk
from storydist.data.text import Wordpieces

IMAGES = ("jpg", "jpeg", "png", "webp")
WINDOW_BYTES = 1 << 18  # small enough for the processor's own cache, where hash and checksum then find it


class HashedFile:
    """Reads a file once from front to back, by offset, and hashes every byte on the way."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path
        stat = os.fstat(file.fileno())
        self._window = memoryview(bytearray(WINDOW_BYTES))
        self._start = self._end = 0  # of the file's bytes that are in the window
        self._digest = hashlib.sha256()
        self.size_bytes, self.modified_ns = stat.st_size, stat.st_mtime_ns

    def read(self, size: int, offset: int) -> bytes:
        """The bytes there, fewer where the file ends. `offset` never lies before the window."""
        if self._start <= offset and offset + size <= self._end:  # nearly always
            return bytes(self._window[offset - self._start : offset - self._start + size])
        return b"".join(self._pieces(size, offset))

    def crc32(self, member: TarMember) -> int:
        """CRC-32 of a member's payload, the polynomial of zlib's."""
        value = 0
        for piece in self._pieces(member.size, member.offset):
            value = crc32(piece, value)
        return value

    def sha256(self) -> str:
        """SHA-256 of the whole file. Raises ValueError when the file was written to while it was read."""
        while self._advance():
            pass
        now = os.fstat(self._file.fileno())
        if (now.st_size, now.st_mtime_ns) != (self._end, self.modified_ns):
            raise ValueError(f"{self._path} was written to while it was read; run again when it is complete")
        return self._digest.hexdigest()

    def _pieces(self, size: int, offset: int) -> Iterator[memoryview]:
        assert offset >= self._start, (offset, self._start)
        end = offset + size
        while offset < end:
            if offset >= self._end:
                if not self._advance():
                    return
                continue
            stop = min(end, self._end)
            yield self._window[offset - self._start : stop - self._start]
            offset = stop

    def _advance(self) -> bool:
        num_bytes = self._file.readinto(self._window)  # type: ignore[attr-defined]
        self._start, self._end = self._end, self._end + num_bytes
        self._digest.update(self._window[:num_bytes])
        return num_bytes > 0


@dataclass(frozen=True, eq=False)
class ScannedTar:
    """`rows` name no split yet. `facts`: what its stories say; None: its samples are no stories of ours.

    `litter`: the first member that was passed over, and how many there were. `modified_ns`: of the file as it was read.
    """

    rows: ShardRows
    facts: StoryFacts | None
    litter: tuple[str, int]
    modified_ns: int


@dataclass(frozen=True)
class Scanner:
    """Scans the tars of a folder. Picklable, for worker processes.

    `wordpieces`: the tokenizer of our own stories, if there is one. `as_members`: take stories for any other samples.
    """

    root: Path
    wordpieces: Wordpieces | None
    as_members: bool

    def scan(self, name: str) -> ScannedTar:
        """Reads one tar. Raises ValueError naming it when it is damaged, hostile or no data set, OSError when it cannot
        be read.
        """
        path = self.root / name
        litter: list[str] = []
        with naming(path), open(path, "rb", buffering=0) as file:
            hashed = HashedFile(file, path)
            members = walk(hashed.read, hashed.size_bytes, str(path))
            found = samples(((member, hashed.crc32(member)) for member in members), str(path), litter)
            rows, facts = self._take(found, path, file.fileno())
            finished = rows.finished(name, "", hashed.size_bytes, hashed.sha256())
        return ScannedTar(finished, facts, (litter[0] if litter else "", len(litter)), hashed.modified_ns)

    def _take(self, found: Iterator[FoundSample], path: Path, descriptor: int) -> tuple[GrowingRows, StoryFacts | None]:
        first = next(found, None)
        if first is None:
            raise ValueError(f"{path} holds no sample; move it elsewhere")
        if self.as_members or lacking(first):
            return self._plain(chain([first], found), path), None
        if self.wordpieces is None:
            raise ValueError(
                f"{path} holds stories, but {self.root / 'tokenizer'} is not there; name the tokenizer that they were "
                "made with (--tokenizer FOLDER or Hub name), or index them as plain members (--members)"
            )
        stories = StoryScanner(path, descriptor, self.wordpieces, GrowingRows(self.wordpieces.vocabulary_size))
        for sample in chain([first], found):
            stories.add(sample)
        return stories.rows, stories.facts

    def _plain(self, found: Iterable[FoundSample], path: Path) -> GrowingRows:
        rows = GrowingRows(vocabulary_size=0)
        for sample in found:
            if not self.as_members and not lacking(sample):
                raise ValueError(
                    f"{path}: at offset {sample.offset}: sample {sample.key!r} is one of our stories, those before are "
                    "not; move them elsewhere, or index all as plain members (--members)"
                )
            num_images = sum(suffix.rpartition(".")[2] in IMAGES for suffix in sample.members)
            rows.add(sample.key, num_images, None, [(suffix, *place) for suffix, place in sample.members.items()])
            if rows.num_suffixes > MAX_SUFFIXES:
                raise ValueError(
                    f"{path}: at offset {sample.offset}: more than {MAX_SUFFIXES} different suffixes, the latest of "
                    f"sample {sample.key!r}; a key ends at the first dot of a name, so numbers behind it are suffixes"
                )
        return rows
