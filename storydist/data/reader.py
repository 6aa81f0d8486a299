"""Reads the members of samples out of shards: by offset, in one call a sample, checked against the index.

A tar is never parsed here and never mapped: `preadv` puts the payload where it is wanted (the frames straight into a
batch's memory), and a file that shrinks while it is read is an error, where a memory map would kill the process.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
from zlib_ng.zlib_ng import crc32

from storydist.data.index import ShardIndex

_GAP_BYTES = 65536


class BadSample(ValueError):  # noqa: N818 (the term for it here)
    """A sample that cannot be used: `shard` (file name), `story_id`, `reason`; the message tells all of it.

    Nothing but the data can have caused it: reading the sample again fails again.
    """

    def __init__(self, shard: str, story_id: str, reason: str):
        super().__init__(f"{shard}: story {story_id!r}, {reason}")
        self.shard, self.story_id, self.reason = shard, story_id, reason

    def __reduce__(self) -> tuple:
        return (BadSample, (self.shard, self.story_id, self.reason))


class Member(NamedTuple):
    """A tar member as the index knows it: `offset` of its payload and `size` in bytes."""

    suffix: str
    offset: int
    size: int
    crc32: int


class Located(NamedTuple):
    """A sample's row of the index, and those of its members that are wanted, in tar order."""

    story: int
    shard: int
    num_frames: int
    score: float  # NaN: none
    members: list[Member]


class ShardReader:
    """Reads the members of a sample out of its shard. Threads may share one.

    Keeps at most `max_open` shards open, least recently used out. With `verify`, a member whose crc32 differs from the
    index is an error, so that damaged pixels never pass for data.
    """

    def __init__(self, index: ShardIndex, *, max_open: int = 16, verify: bool = True):
        self.index, self.max_open, self.verify = index, max_open, verify
        self._stories = index.stories.view(np.ndarray)  # a row of a memmap costs ten times as much
        self._members = index.members.view(np.ndarray)
        self._files: OrderedDict[int, _OpenShard] = OrderedDict()
        self._lock = threading.Lock()

    def locate(self, story: int, skip: Collection[str] = ()) -> Located:
        """Where a sample lies, the members in `skip` left out."""
        shard, first, count, num_frames, score = self._stories.item(story)
        suffixes = self.index.info.suffixes
        members = [
            Member(name, offset, size, crc)
            for offset, size, crc, suffix in self._members[first : first + count].tolist()
            if (name := suffixes[suffix]) not in skip
        ]
        return Located(story, shard, num_frames, score, members)

    def read(self, story: int, skip: Collection[str] = ()) -> dict[str, memoryview]:
        """{suffix: payload} of one sample, the suffixes in `skip` left out; errors as `read_members`."""
        located = self.locate(story, skip)
        return self.read_members(located, located.members)

    def read_members(self, located: Located, members: Sequence[Member]) -> dict[str, memoryview]:
        """{suffix: payload} of these members of a sample, neighbours in one call.

        Raises BadSample when a member is not what the index says, is cut off, or its shard is missing or of another
        size; OSError when the disk fails.
        """
        payloads: dict[str, memoryview] = {}
        for group in _neighbours(members):
            begin, end = self.bounds(located, group)
            whole = memoryview(bytearray(end - begin))
            self.read_at(located, begin, [whole])
            for member in group:
                payload = whole[member.offset - begin : member.offset - begin + member.size].toreadonly()
                if self.verify:
                    self.check(located, member, payload)
                payloads[member.suffix] = payload
        return payloads

    def bounds(self, located: Located, members: Sequence[Member]) -> tuple[int, int]:
        """Where members in tar order begin and end. Raises BadSample when the shard cannot hold them."""
        begin, end = members[0].offset, members[-1].offset + members[-1].size
        size_bytes = self.index.info.shards[located.shard].size_bytes
        if not 0 <= begin <= end <= size_bytes:
            raise self.bad(located, f"lies at {begin} to {end} of {size_bytes} bytes: the index is damaged")
        return begin, end

    def read_at(self, located: Located, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fills `buffers` one after the other with the bytes of the sample's shard from `offset` on."""
        reading, thread = self.index.reading, threading.get_ident()
        reading.stories[thread] = located.story
        try:
            self._read_at(located, offset, buffers)
        finally:
            del reading.stories[thread]
        reading.num_done += 1  # two threads may count as one; a watchdog only asks whether it grows

    def _read_at(self, located: Located, offset: int, buffers: Sequence[memoryview]) -> None:
        file = self._file(located)
        found = os.preadv(file.descriptor, buffers, offset)
        for buffer in buffers:  # what one call did not bring: Linux reads at most 2 GiB at once
            while found < len(buffer):
                more = os.preadv(file.descriptor, [buffer[found:]], offset + found)
                if not more:
                    size = os.fstat(file.descriptor).st_size
                    raise self.bad(located, f"the shard ends at byte {size}; it was cut short, copy it anew")
                found += more
            found, offset = found - len(buffer), offset + len(buffer)

    def check(self, located: Located, member: Member, *parts: memoryview) -> None:
        """Raises BadSample unless `parts`, end to end, have the member's checksum."""
        found = 0
        for part in parts:
            found = crc32(part, found)
        if found != member.crc32:
            raise self.bad(
                located,
                f"member {member.suffix!r} at offset {member.offset} does not match its checksum "
                f"({found:08x}, the index says {member.crc32:08x}); copy the shard anew or build it again",
            )

    def bad(self, located: Located, reason: str) -> BadSample:
        """The error for a sample, naming its shard."""
        shard = self.index.storage.where(self.index.info.shards[located.shard].name)
        return BadSample(shard, self.index.story_id(located.story), reason)

    def _file(self, located: Located) -> "_OpenShard":
        shard = located.shard
        with self._lock:
            if shard in self._files:
                self._files.move_to_end(shard)
                return self._files[shard]
        try:  # may wait for a download, so other threads go on meanwhile
            opened = _OpenShard(self.index.fetch_shard(shard))
        except (FileNotFoundError, ValueError) as error:
            raise self.bad(located, str(error)) from error
        with self._lock:
            self._files[shard] = opened
            if len(self._files) > self.max_open:
                self._files.popitem(last=False)
        return opened


class _OpenShard:
    """An open file that is closed when the last reader lets go of it."""

    def __init__(self, path: os.PathLike[str]):
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


def _neighbours(members: Sequence[Member]) -> list[list[Member]]:
    """Members in tar order, cut where so much lies between two of them that a second call is cheaper."""
    groups: list[list[Member]] = []
    for member in members:
        if groups and 0 <= member.offset - (groups[-1][-1].offset + groups[-1][-1].size) <= _GAP_BYTES:
            groups[-1].append(member)
        else:
            groups.append([member])
    return groups
