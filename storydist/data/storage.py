"""Where the files of a shard set lie."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from storydist.settings import Settings


class CacheConfig(Settings):
    """This node's copies of shards that lie elsewhere."""

    dir: str = Field("~/.cache/storydist", description="folder on a local disk, shared by all ranks and runs of a node")
    max_gb: float = Field(100.0, gt=0, description="gigabytes (10^9 bytes) that the folder may hold")


class LocalStorage:
    """A folder on this node, or one that is mounted."""

    def __init__(self, root: Path):
        self.root = root

    def fetch(self, name: str, size_bytes: int, sha256: str) -> Path:
        """Path of a whole shard on this node. Raises FileNotFoundError, or ValueError when its size is another."""
        path = self.root / name
        if not path.exists():
            raise FileNotFoundError(
                f"{path}: this shard is listed in index.json but is not there; copy it back or build the shards again"
            )
        found = path.stat().st_size
        if found != size_bytes:
            raise ValueError(
                f"{path}: has {found} bytes, the index says {size_bytes}; the shard is cut short "
                "or was changed: build it again or copy it anew"
            )
        return path

    def prefetch(self, names: Sequence[str]) -> None:
        """Files of this folder need no fetching ahead."""
