"""Tar files whose bytes are a function of their members alone.

USTAR headers with mode 0644, owner 0, time 0; closed as tar and Python's tarfile do,
with zero blocks up to a multiple of 10,240 bytes.
"""

import hashlib
import os
import socket
import tarfile
import zlib
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from storydist.data.files import naming

BLOCK_BYTES = 512


class Member(NamedTuple):
    """A row of MEMBER_DTYPE without its suffix: `offset` of the payload in the tar and `size`, bytes."""

    offset: int
    size: int
    crc32: int


class TarWriter:
    """Writes a tar beside its place (`NAME.PROCESS-HOST.partial`, so that two of one name do not write to one file);
    `close` flushes it to the disk and renames it.

    Left by an exception, or killed, it leaves no file of the final name. Raises OSError when the disk does not take it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._beside = path.with_name(f"{path.name}.{os.getpid()}-{socket.gethostname()}.partial")
        self._file = open(self._beside, "wb")  # noqa: SIM115 (closed by close() or by __exit__)
        self._digest = hashlib.sha256()
        self.size_bytes = 0

    def add(self, name: str, payload: bytes) -> Member:
        """Appends a member; returns where its payload lies."""
        info = tarfile.TarInfo(name)
        info.size = len(payload)
        self._write(info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict"))
        member = Member(self.size_bytes, len(payload), zlib.crc32(payload))
        self._write(payload)
        self._write(bytes(-len(payload) % BLOCK_BYTES))
        return member

    def close(self) -> str:
        """Ends the tar and gives it its name. Returns the file's SHA-256."""
        self._write(bytes(2 * BLOCK_BYTES))
        self._write(bytes(-self.size_bytes % tarfile.RECORDSIZE))
        with naming(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        self._beside.replace(self._path)
        return self._digest.hexdigest()

    def _write(self, data: bytes) -> None:
        with naming(self._path):
            self._file.write(data)
        self._digest.update(data)
        self.size_bytes += len(data)

    def __enter__(self) -> "TarWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._beside.unlink(missing_ok=True)
