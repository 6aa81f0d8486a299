"""Where the files of a shard set lie, and how they get to this node."""

import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

from pydantic import Field

from storydist.data.cache import Entry, NodeCache
from storydist.data.download import Source
from storydist.data.files import write_atomic
from storydist.settings import Settings

PREFETCH_THREADS = 4
_CONTENT = "data"  # a shard's name in its entry of the cache: sets that share its bytes may call it differently


class CacheConfig(Settings):
    """This node's copies of shards that lie elsewhere."""

    dir: str = Field("~/.cache/storydist", description="folder on a local disk, shared by all ranks and runs of a node")
    max_gb: float = Field(100.0, gt=0, description="gigabytes (10^9 bytes) that the folder may hold")


class LocalStorage:
    """A folder on this node, or one that is mounted."""

    bytes_fetched = 0  # nothing is copied

    def __init__(self, root: Path):
        self.root = root

    def where(self, name: str) -> str:
        """Where a file lies, or should, for messages."""
        return str(self.root / name)

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

    def require_room(self, num_bytes: int) -> None:
        """Nothing is copied."""

    def prefetch(self, shards: Iterable[tuple[str, int, str]]) -> None:
        """Nothing has to be brought."""


class RemoteStorage:
    """A set at an address, seen through this node's cache.

    May be used by several threads. What was handed to a thread last, and the tables, are not removed from the cache
    while this object lives; a file that is open or mapped stays readable even after.
    """

    def __init__(self, address: str, config: CacheConfig):
        self.source = Source(address)
        self.cache = NodeCache(Path(config.dir).expanduser(), int(config.max_gb * 1e9))
        self._set: Entry | None = None
        self._handed = threading.local()
        self._lock = threading.Lock()
        self._waiting: dict[str, tuple[str, int]] = {}  # SHA-256 of a shard to prefetch: its name and size
        self._num_threads = 0

    @property
    def bytes_fetched(self) -> int:
        """What arrived over the network in this process, bytes; what had to be thrown away included."""
        return self.source.bytes_fetched

    def where(self, name: str) -> str:
        """The address of a file, for messages."""
        return self.source.where(name)

    def read_index(self) -> bytes:
        """index.json as it is now."""
        return self.source.read("index.json")

    def bring_tables(self, fingerprint: str, index: bytes, files: Mapping[str, str]) -> Path:
        """A folder on this node with index.json and the `files` ({name: SHA-256}) beside it.

        Raises ValueError when a file has another hash, or does not fit the cache; OSError when it cannot be had.
        """
        entry = self.cache.find(fingerprint)
        if entry is None:
            sizes = {name: self.source.size(name) for name in files}

            def fill(folder: Path) -> None:
                for name, sha256 in files.items():
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    self.source.download(name, folder / name, sizes[name], sha256)
                write_atomic(folder / "index.json", index)

            entry = self.cache.fetch(fingerprint, len(index) + sum(sizes.values()), fill)
        self._set = entry
        return entry.folder

    def fetch(self, name: str, size_bytes: int, sha256: str) -> Path:
        """Path of a whole shard in this node's cache, which is downloaded by one process of the node if need be.

        Raises ValueError when the file at the address has another hash, or does not fit the cache; FileNotFoundError,
        PermissionError or OSError, naming the address, when it cannot be had.
        """
        with self._lock:
            self._waiting.pop(sha256, None)
        self._handed.entry = None  # so that its room may be used
        entry = self.cache.fetch(sha256, size_bytes, partial(self._download, name, size_bytes, sha256))
        self._handed.entry = entry
        return entry.folder / _CONTENT

    def require_room(self, num_bytes: int) -> None:
        """Raises ValueError when the cache cannot hold so much at once: shards would be fetched time and again."""
        if num_bytes > self.cache.max_bytes:
            raise ValueError(
                f"data.cache.max_gb {self.cache.max_bytes / 1e9:g} is too small: the shards shuffled together, and "
                f"the next ones, take {num_bytes / 1e9:.3g} GB; raise it, or lower data.block_shards"
            )

    def prefetch(self, shards: Iterable[tuple[str, int, str]]) -> None:
        """Begins to download shards, given as (name, bytes, SHA-256), in the background and in this order.

        Processes that ask for the same shards share the work. Nothing is raised: `fetch` tries again what failed here.
        """
        with self._lock:
            self._waiting |= {sha256: (name, size_bytes) for name, size_bytes, sha256 in shards}
            started = min(len(self._waiting), PREFETCH_THREADS - self._num_threads)
            self._num_threads += started
        for _ in range(started):
            # Daemons, and no executor: its threads would finish all that is waiting before the interpreter may exit.
            threading.Thread(target=self._work, name="prefetch", daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._num_threads -= 1
                    return
                sha256 = next(iter(self._waiting))
                name, size_bytes = self._waiting.pop(sha256)
            with suppress(OSError, ValueError):  # whoever needs the shard meets the error in `fetch`
                self.cache.try_fetch(sha256, size_bytes, partial(self._download, name, size_bytes, sha256))

    def _download(self, name: str, size_bytes: int, sha256: str, folder: Path) -> None:
        self.source.download(name, folder / _CONTENT, size_bytes, sha256)
