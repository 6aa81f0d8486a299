"""That this node can read the shards: each there, as long as the index says, its first and last byte readable."""

from collections.abc import Sequence

from storydist.cluster.finding import Finding, fail, ok
from storydist.cluster.place import Place
from storydist.command import message_of
from storydist.data.index import ShardIndex, ShardInfo
from storydist.data.storage import RemoteStorage

CHECK = "shards"
MOST_LOCAL, MOST_REMOTE = 2000, 8  # looked at by a node; a file costs some 0.1 ms, a request some 0.1 s
TOLD = 3
REMEDY = "copy the shards again or mount their file system there; shards/verify.py reads every byte"


def readable(index: ShardIndex, place: Place) -> list[Finding]:
    """The ranks of a node share out the shards; with very many of them, some spread evenly are looked at."""
    every = index.info.shards
    most = MOST_REMOTE if isinstance(index.storage, RemoteStorage) else MOST_LOCAL
    chosen = spread(every, most)
    own = chosen[place.local_rank :: place.local_world_size]
    problems = [problem for shard in own if (problem := _problem(index, shard))]
    if problems:
        more = f"; and {len(problems) - TOLD} more" if len(problems) > TOLD else ""
        return [fail(CHECK, "; ".join(problems[:TOLD]) + more, REMEDY)]
    return [ok(CHECK, f"{len(chosen)} of {len(every)} looked at: there, and as long as the index says")]


def spread(shards: Sequence[ShardInfo], most: int) -> list[ShardInfo]:
    """At most `most` of them, evenly, the first and the last among them."""
    if len(shards) <= most:
        return list(shards)
    return [shards[round(number * (len(shards) - 1) / (most - 1))] for number in range(most)]


def _problem(index: ShardIndex, shard: ShardInfo) -> str | None:
    try:
        if isinstance(index.storage, RemoteStorage):
            _look_remote(index.storage, shard)
        else:
            path = index.storage.fetch(shard.name, shard.size_bytes, shard.sha256)
            with open(path, "rb") as file:
                file.read(1)
                file.seek(max(0, shard.size_bytes - 1))
                file.read(1)
    except (OSError, ValueError) as error:
        return message_of(error)
    return None


def _look_remote(storage: RemoteStorage, shard: ShardInfo) -> None:
    source = storage.source
    found = source.size(shard.name)
    if found != shard.size_bytes:
        raise ValueError(f"{source.where(shard.name)}: has {found} bytes, the index says {shard.size_bytes}")
    for start in {0, max(0, shard.size_bytes - 1)}:
        source.read_range(shard.name, start, min(start + 1, shard.size_bytes))
