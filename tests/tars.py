"""Tars made byte by byte, for tests of what reads them."""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

END = bytes(1024)  # of an archive


def header(
    name: str | bytes,
    size: int | bytes = 0,
    kind: bytes = b"0",
    magic: bytes = b"ustar\x0000",
    prefix: bytes = b"",
    signed: bool = False,
) -> bytes:
    """A header block with its checksum; `size` as bytes stands as it is."""
    raw_name = name.encode() if isinstance(name, str) else name
    size_field = size if isinstance(size, bytes) else b"%011o\0" % size
    block = bytearray(raw_name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + size_field.ljust(12, b"\0"))
    block += b"00000000000\0" + b" " * 8 + kind + bytes(100) + magic.ljust(8, b"\0")
    block += bytes(345 - len(block)) + prefix.ljust(155, b"\0") + bytes(12)
    assert len(block) == 512, len(block)
    return sealed(block, signed)


def sealed(block: bytes | bytearray, signed: bool = False) -> bytes:
    """A header with its checksum made right."""
    blank = bytes(block[:148]) + b" " * 8 + bytes(block[156:])
    total = sum(byte - 256 if signed and byte > 127 else byte for byte in blank)
    return blank[:148] + b"%06o\0 " % total + blank[156:]


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def member(name: str | bytes, data: bytes = b"x", kind: bytes = b"0", **fields) -> bytes:
    """A header and its payload."""
    return header(name, len(data), kind, **fields) + padded(data)


def pax(records: dict[str, str] | bytes, kind: bytes = b"x") -> bytes:
    """An extended header in pax's format; bytes stand as they are."""
    data = records if isinstance(records, bytes) else b"".join(_record(key, text) for key, text in records.items())
    return member("PaxHeader", data, kind)


def _record(key: str, text: str) -> bytes:
    rest = f" {key}={text}\n".encode()
    length = len(rest) + 1
    while len(str(length)) + len(rest) != length:
        length += 1
    return str(length).encode() + rest


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], tar_format: int = tarfile.USTAR_FORMAT) -> Path:
    """A tar as Python writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


def read_tar(path: Path) -> list[tuple[str, bytes]]:
    """(name, payload) of the members, as Python reads them."""
    with tarfile.open(path) as tar:
        return [(entry.name, found.read()) for entry in tar if (found := tar.extractfile(entry)) is not None]
