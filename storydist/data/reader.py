"""Reads the members of samples out of shards: by offset, checked against the index."""

import mmap
import zlib
from collections import OrderedDict
from collections.abc import Collection
from pathlib import Path

from storydist.data.index import ShardIndex


class ShardReader:
    """Reads the members of a story out of its shard, without parsing the tar.

    Keeps at most `max_open` shards mapped, least recently used out. Not shared between threads or processes: each has
    its own.
    With `verify`, a member whose crc32 differs from the index is an error, so that damaged pixels never pass for data.
    """

    def __init__(self, index: ShardIndex, *, max_open: int = 16, verify: bool = True):
        self.index, self.max_open, self.verify = index, max_open, verify
        self._maps: OrderedDict[int, mmap.mmap] = OrderedDict()

    def read(self, story: int, skip: Collection[str] = ()) -> dict[str, memoryview]:
        """{suffix: payload} of one story, the suffixes in `skip` left out. Raises ValueError or FileNotFoundError
        naming shard, story and offset when something is wrong.
        """
        shard = int(self.index.stories[story]["shard"])
        view = memoryview(self._map(shard))
        payloads = {}
        for suffix, offset, size, crc32 in self.index.members_of(story):
            if suffix in skip:
                continue
            payload = view[offset : offset + size]
            if self.verify and zlib.crc32(payload) != crc32:
                raise ValueError(
                    f"{self.index.shard_path(shard)}: story {self.index.story_id(story)!r}, member {suffix!r} at "
                    f"offset {offset} does not match its checksum; the shard is damaged: build it again"
                )
            payloads[suffix] = payload
        return payloads

    def _map(self, shard: int) -> mmap.mmap:
        if shard in self._maps:
            self._maps.move_to_end(shard)
            return self._maps[shard]
        self._maps[shard] = mapped = _open(self.index.fetch_shard(shard))
        if len(self._maps) > self.max_open:
            self._maps.popitem(last=False)  # closed when the last view of it is gone
        return mapped


def _open(path: Path) -> mmap.mmap:
    """Maps a whole shard for reading."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
