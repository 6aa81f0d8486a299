"""Reads files at an address through fsspec: in ranges, each tried several times, the whole checked by its hash.

A failure that may pass is tried again after a growing pause, one that will not is told at once
(storydist/data/driver_errors.py). Content that is not what the index promises is told too, after a second download if
the first had gone on from an older beginning.
"""

import hashlib
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import fsspec
from fsspec.config import conf

from storydist.data.driver_errors import PassingError, told
from storydist.data.files import CHUNK_BYTES, naming
from storydist.data.location import join, protocol_of, shown

RANGE_BYTES = 8 << 20
TRIES = 8  # with the pauses below a server may be away for about a minute
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
CONNECT_S, SILENCE_S = 20.0, 30.0  # http: how long a connection, and then the next byte, may take
EXTRAS = {"http": "http", "https": "http", "s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "gdrive": "gdrive"}
_log = logging.getLogger(__name__)
_jitter = random.Random()  # its own: pauses take no part in a run's randomness
T = TypeVar("T")


class Source:
    """The files below an address. `bytes_fetched`: what arrived in this process, what had to be thrown away included.

    May be used by several threads, and in a process forked from the one that made it.
    """

    def __init__(self, address: str):
        self.address, self.protocol = address, protocol_of(address)
        self.bytes_fetched = 0
        self._lock = threading.Lock()

    def where(self, name: str) -> str:
        """The address of a file, for messages."""
        return shown(join(self.address, name))

    def read(self, name: str) -> bytes:
        """A small file, as it is now. Raises FileNotFoundError, PermissionError or OSError naming its address."""

        def whole(driver: Any, path: str) -> bytes:
            driver.invalidate_cache()
            return driver.cat_file(path)

        content = self._patiently(name, whole)
        self._count(content)
        return content

    def size(self, name: str) -> int:
        """Bytes of a file. Errors as `read`; ValueError when the server does not tell."""
        found = self._patiently(name, lambda driver, path: driver.info(path).get("size"))
        if found is None:
            raise ValueError(f"{self.where(name)}: the server does not tell how long the file is (no Content-Length)")
        return int(found)

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """The bytes `start` to `stop` of a file, as many as it has of them. Errors as `read`."""
        content = self._patiently(name, lambda driver, path: driver.cat_file(path, start=start, end=stop))
        self._count(content)
        return content

    def download(self, name: str, path: Path, size_bytes: int, sha256: str) -> None:
        """Makes `path` that file; what an interrupted download left there is gone on from.

        Raises ValueError when it has another hash than `sha256` (nothing is kept then); otherwise as `read`.
        """
        resumed = path.exists() and path.stat().st_size > 0
        found = self._complete(name, path, size_bytes)
        if found != sha256 and resumed:  # what was left there may be the beginning of other content
            path.unlink()
            found = self._complete(name, path, size_bytes)
        if found != sha256:
            path.unlink()
            raise ValueError(
                f"{self.where(name)}: has SHA-256 {found}, the index says {sha256}; the file there is damaged, or it "
                "was replaced and its index.json was not: upload the set again, index.json last"
            )

    def _complete(self, name: str, path: Path, size_bytes: int) -> str:
        """Downloads what is missing of the file at `path`. Returns its SHA-256."""
        with open(path, "a+b") as out:
            start = out.tell()
            out.seek(0)
            if start > size_bytes:
                start = out.truncate(0)
            digest = hashlib.sha256()
            while chunk := out.read(CHUNK_BYTES):
                digest.update(chunk)
            try:
                _append(self._ranges(name, start, size_bytes), out, digest)
            except ValueError:  # fsspec's answer when a server without ranges is asked for one (HTTPFile)
                return self._in_one_stream(name, out, size_bytes)
        return digest.hexdigest()

    def _ranges(self, name: str, start: int, size_bytes: int) -> Iterator[bytes]:
        """The bytes of a file from `start` on."""
        file, tries, drops = None, 0, 0
        while start < size_bytes:
            # Each drop halves the range: a line that fails every few megabytes still gets on.
            stop = min(size_bytes, start + (RANGE_BYTES >> drops))
            try:
                with told(self.where(name)):
                    file = file or self._open(name, block_size=RANGE_BYTES, cache_type="none", size=size_bytes)
                    file.seek(start)
                    block = file.read(stop - start)
                    if len(block) != stop - start:
                        raise EOFError(f"{len(block)} bytes came of {stop - start} at offset {start}")
            except PassingError as error:
                file, tries, drops = None, tries + 1, drops + (not error.answered)
                _pause(error, tries)
                continue
            self._count(block)
            start, tries, drops = stop, 0, 0
            yield block

    def _in_one_stream(self, name: str, out: BinaryIO, size_bytes: int) -> str:
        """The whole file from a server that has no ranges; a dropped connection means to begin again."""
        for tries in count(1):
            out.seek(0)
            out.truncate()
            digest = hashlib.sha256()
            try:
                found = _append(self._chunks(name), out, digest)
                if found == size_bytes:
                    break
                raise PassingError(f"{self.where(name)}: {found} bytes came of {size_bytes}")
            except PassingError as error:
                _pause(error, tries)
        return digest.hexdigest()

    def _chunks(self, name: str) -> Iterator[bytes]:
        with told(self.where(name)):
            file = self._open(name, block_size=0)
        with closing(file):
            while True:
                with told(self.where(name)):
                    chunk = file.read(CHUNK_BYTES)
                if not chunk:
                    return
                self._count(chunk)
                yield chunk

    def _patiently(self, name: str, call: Callable[[Any, str], T]) -> T:
        """`call(driver, path)`, tried again while its failures may pass."""
        for tries in count(1):
            try:
                with told(self.where(name)):
                    return call(*self._driver(name))
            except PassingError as error:
                _pause(error, tries)
        raise AssertionError("`count` has no end")

    def _open(self, name: str, **options: Any) -> Any:
        driver, path = self._driver(name)
        return driver.open(path, "rb", **options)

    def _driver(self, name: str) -> tuple[Any, str]:
        """fsspec's driver, which it keeps for each process itself, and the path that this driver wants."""
        options: dict[str, Any] = {}
        if self.protocol == "gdrive" and "token" not in conf.get("gdrive", {}):
            raise PermissionError("no FSSPEC_GDRIVE_TOKEN, and a rank cannot log in with a browser")
        try:
            if self.protocol in ("http", "https"):
                options = _http_options()
            return fsspec.core.url_to_fs(join(self.address, name), **options)
        except ImportError as error:
            extra = EXTRAS.get(self.protocol)
            remedy = f"; in storydist's checkout: pip install '.[{extra}]'" if extra else ""
            raise ValueError(
                f"{self.where(name)}: the package that reads {self.protocol}:// is not installed ({error}){remedy}"
            ) from None

    def _count(self, block: bytes) -> None:
        with self._lock:
            self.bytes_fetched += len(block)


def _append(blocks: Iterator[bytes], out: BinaryIO, digest: Any) -> int:
    """Writes the blocks and adds them to the hash. Returns how many bytes they were."""
    found = 0
    for block in blocks:
        digest.update(block)
        found += len(block)
        with naming(out.name):
            out.write(block)
            out.flush()  # so that a killed process leaves all that it had
    return found


def _pause(error: PassingError, tries: int) -> None:
    """Waits before the next try; raises OSError when this was the last."""
    if tries == TRIES:
        raise OSError(f"{error}; given up after {TRIES} tries") from error
    pause_s = min(FIRST_PAUSE_S * 2 ** (tries - 1), LONGEST_PAUSE_S) * _jitter.uniform(0.5, 1.5)
    _log.warning("%s; try %d of %d in %.1f s", error, tries + 1, TRIES, pause_s)
    time.sleep(pause_s)


def _http_options() -> dict[str, Any]:
    """Bounded waits, and the proxy that the environment names; what the user has set for fsspec is kept."""
    import aiohttp

    users = conf.get("http", {}).get("client_kwargs", {}) | conf.get("https", {}).get("client_kwargs", {})
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S)
    return {"client_kwargs": {"trust_env": True, "timeout": timeout} | users}
