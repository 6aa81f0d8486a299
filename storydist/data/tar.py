"""The members of a tar by its headers alone: name, place and size of each. Strictly read, nothing extracted.

Understood are old V7, USTAR, GNU ("L", "K", base-256 sizes) and pax ("x", "g") headers. What a data set has no use for
is refused (links, devices, sparse files, names that leave the folder), and so is what readers of tars take in different
ways: two names for one member, a name or size for all members, a folder with a payload.
Formats: https://www.gnu.org/software/tar/manual/html_node/Standard.html; POSIX.1-2017, utility pax, "pax Interchange
Format" and "ustar Interchange Format".
"""

import os
import re
import struct
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple
from zlib import adler32

BLOCK_BYTES = 512
MAX_EXTENSION_BYTES = 1 << 20  # payload of an extended header; a longer one is refused before it is read
MAX_NAME_BYTES = 4096  # PATH_MAX of Linux
_TAIL_BYTES = 1 << 20  # how much of what follows the archive's end is looked at at a time
_ZEROS = bytes(BLOCK_BYTES)
_LAYOUT = struct.Struct("100s 24x 12s 12x 8s c 100x 6s 82x 155s 12x")  # name, size, checksum, kind, magic, prefix
_FILE = frozenset((b"0", b"\0", b"7"))  # kinds; "7" is a contiguous file, which nobody tells apart any more
_EXTENDED = frozenset((b"L", b"K", b"x", b"g"))  # long name, long link, pax for the next member, pax for all
_REFUSED = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a fifo",
    b"S": "a sparse file",
}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_PAX_RECORD = re.compile(rb"([1-9][0-9]{0,6}) ([^=\n]+)=")
_PACKED = {
    b"\x1f\x8b": "gzip -d",
    b"BZh": "bzip2 -d",
    b"\xfd7zXZ\0": "xz -d",
    b"\x28\xb5\x2f\xfd": "zstd -d",
    b"\x04\x22\x4d\x18": "lz4 -d",
}


class TarMember(NamedTuple):
    """A regular file in a tar: `offset` of its payload and `size`, bytes."""

    name: str
    offset: int
    size: int


def walk_tar(path: str | os.PathLike[str]) -> Iterator[TarMember]:
    """The regular members of a tar in their order, without reading their payloads. Errors as `walk`, and OSError."""
    with open(path, "rb", buffering=0) as file:
        size_bytes = os.fstat(file.fileno()).st_size
        yield from walk(partial(os.pread, file.fileno()), size_bytes, os.fspath(path))


def walk(read: Callable[[int, int], bytes], size_bytes: int, tar: str) -> Iterator[TarMember]:
    """The regular members of a tar of `size_bytes`; folders are passed over.

    `read(size, offset)` gives the bytes there, fewer where the file ends. It is asked from front to back, for headers
    and for what follows the archive's end, never for a member's payload. `tar` names the file in errors.

    Raises ValueError naming tar, offset and what was found when the tar is damaged or holds what the module refuses. An
    archive ends with two blocks of zeros, and nothing but zeros follows.
    """
    offset = 0
    extension: _Extension | None = None  # what extended headers say of the member to come
    try:
        while (header := read(BLOCK_BYTES, offset)) != _ZEROS:
            short_name, size_field, kind, magic, prefix = _fields(header, offset)
            payload, size = offset + BLOCK_BYTES, _number(size_field)
            if kind in _EXTENDED:
                data = _extension_data(read, payload, size, size_bytes)
                extension = _extended(extension, kind, data)
                offset = payload + size + -size % BLOCK_BYTES
                continue
            raw_name, sparse = short_name.partition(b"\0")[0], False
            if magic == b"ustar\0":
                if prefix[0]:
                    raw_name = prefix.partition(b"\0")[0] + b"/" + raw_name
            elif magic != b"ustar " and (prefix[0] or magic.strip(b"\0")):  # GNU has other things there, V7 nothing
                raise ValueError(f"the header's format is {magic!r}, which is neither USTAR nor GNU")
            if extension is not None:
                raw_name, size, sparse = extension.over(raw_name, size)
                extension = None
            name = _checked_name(raw_name)
            if kind not in _FILE or sparse or name[-1] == "/":
                _check_folder(kind, name, size, sparse)
            elif payload + size > size_bytes:
                raise ValueError(_too_long(f"member {_shown(name)}", payload, size, size_bytes))
            else:
                yield TarMember(name, payload, size)
            offset = payload + size + -size % BLOCK_BYTES
        if extension is not None:
            raise ValueError("the archive ends between an extended header and the member that it belongs to")
        _check_end(read, offset + BLOCK_BYTES, size_bytes)
    except ValueError as error:
        raise ValueError(f"{tar}: at offset {offset}: {error}") from None


class _Extension:
    """What extended headers say of the member that follows them."""

    name: bytes | None = None
    size: int | None = None
    sparse = False

    def over(self, name: bytes, size: int) -> tuple[bytes, int, bool]:
        """(name, size, whether it is sparse) of a member whose own header has `name` and `size`."""
        return self.name or name, size if self.size is None else self.size, self.sparse

    def set_name(self, name: bytes) -> None:
        if self.name is not None:
            raise ValueError(f"extended headers give one member two names, {_shown(self.name)} and {_shown(name)}")
        if not 0 < len(name) <= MAX_NAME_BYTES:
            raise ValueError(f"an extended header gives a name of {len(name)} bytes, needed 1 to {MAX_NAME_BYTES}")
        self.name = name

    def set_size(self, text: bytes) -> None:
        if self.size is not None or not text.isdigit() or len(text) > 20:
            raise ValueError(f"an extended header gives the size {_shown(text)}, needed one whole number")
        self.size = int(text)


def _fields(header: bytes, offset: int) -> tuple[bytes, bytes, bytes, bytes, bytes]:
    """(name, size, kind, magic, prefix) as they stand in a header. Raises ValueError when its checksum is not right."""
    if len(header) < BLOCK_BYTES:
        if not header and not offset:
            raise ValueError("the file is empty, which no tar is")
        wanted = f"needed a header of {BLOCK_BYTES}" if header else "needed two blocks of zeros to end the archive"
        raise ValueError(f"{len(header)} bytes before the file's end, {wanted}: the tar is cut short")
    name, size, checksum, kind, magic, prefix = _LAYOUT.unpack(header)
    # The lower half of Adler-32 is 1 + the sum of the bytes, modulo 65521 (RFC 1950), which 256 bytes cannot reach: so
    # the header's sum is had several times faster than by sum(). The checksum's own field counts as blanks.
    total = (adler32(header[:256]) & 0xFFFF) + (adler32(header[256:]) & 0xFFFF) - (adler32(checksum) & 0xFFFF) + 255
    if checksum != b"%06o\0 " % total and _octal(checksum) not in (total, total - 256 * _num_high(header)):
        raise ValueError(_no_header(header, total, offset))
    return name, size, kind, magic, prefix


def _num_high(header: bytes) -> int:
    """Bytes above 127: each counts 256 less in the checksums of writers whose characters are signed."""
    return sum(byte > 127 for byte in header[:148] + header[156:])


def _no_header(header: bytes, total: int, offset: int) -> str:
    if offset:
        return f"the header's checksum is {header[148:156]!r}, its bytes add up to {total:o}: the tar is damaged"
    for magic, command in _PACKED.items():
        if header.startswith(magic):
            return f"the tar is compressed, so nothing can be read by offset; unpack it first: {command}"
    return f"this is no tar: it begins with {header[:16]!r}, which is no header"


def _extension_data(read: Callable[[int, int], bytes], payload: int, size: int, size_bytes: int) -> bytes:
    """Payload of an extended header."""
    if payload + size > size_bytes:
        raise ValueError(_too_long("an extended header", payload, size, size_bytes))
    if size > MAX_EXTENSION_BYTES:
        raise ValueError(f"an extended header has {size} bytes, at most {MAX_EXTENSION_BYTES} are read")
    data = read(size, payload)
    if len(data) < size:
        raise ValueError("the file became shorter while it was read")
    return data


def _too_long(whose: str, payload: int, size: int, size_bytes: int) -> str:
    place = f"has {size} bytes and would end at {payload + size}, the file ends at {size_bytes}"
    return f"{whose} {place}: the tar is cut short or damaged"


def _extended(extension: _Extension | None, kind: bytes, data: bytes) -> _Extension | None:
    """`extension` with what one more extended header says."""
    if kind == b"g":
        for key, value in _pax_records(data):
            if key in (b"path", b"size"):
                raise ValueError(f"a global header gives all members {key.decode()}={_shown(value)}")
        return extension
    extension = extension or _Extension()
    if kind == b"x":
        for key, value in _pax_records(data):
            if key == b"path":
                extension.set_name(value)
            elif key == b"size":
                extension.set_size(value)
            extension.sparse |= key.startswith(b"GNU.sparse.")
    elif kind == b"L":
        name, end, rest = data.partition(b"\0")
        if not end or rest.strip(b"\0"):
            raise ValueError(f"the long name {_shown(data)} does not end with its first NUL")
        extension.set_name(name)
    return extension


def _pax_records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of each record "LENGTH KEY=VALUE\\n", where LENGTH counts the whole record."""
    position = 0
    while position < len(data):
        match = _PAX_RECORD.match(data, position)
        end = position + int(match[1]) if match else 0
        if match is None or not match.end() < end <= len(data) or data[end - 1] != ord("\n"):
            found = _shown(data[position:])
            raise ValueError(f"the pax record at byte {position} of an extended header does not parse: {found}")
        yield match[2], data[match.end() : end - 1]
        position = end


def _check_end(read: Callable[[int, int], bytes], offset: int, size_bytes: int) -> None:
    """Raises ValueError unless zeros follow, at least a block of them; `offset` is where the first block ended."""
    if size_bytes - offset < BLOCK_BYTES:
        raise ValueError("one block of zeros, needed two to end the archive: the tar is cut short")
    while offset < size_bytes:
        chunk = read(min(_TAIL_BYTES, size_bytes - offset), offset)
        if not chunk or chunk != bytes(len(chunk)):
            rest = chunk.lstrip(b"\0")
            place = offset + len(chunk) - len(rest)
            advice = "the tar is damaged, or another one was appended (unpack them and pack anew)"
            raise ValueError(f"the archive ends here, but at {place} there is {_shown(rest)}: {advice}")
        offset += len(chunk)


def _octal(field: bytes) -> int | None:
    """A number in octal digits, blanks before and blanks and NULs behind; an empty field is 0. None: anything else."""
    digits = field.rstrip(b"\0 ").lstrip(b" ")
    try:
        return int(digits, 8) if digits.isdigit() else None if digits else 0
    except ValueError:  # an 8 or a 9
        return None


def _number(field: bytes) -> int:
    """A size: octal, or after a byte 0x80 base 256. Raises ValueError for anything else, negative ones included."""
    found = int.from_bytes(field[1:], "big") if field[0] == 0x80 else _octal(field)
    if found is None:
        raise ValueError(f"the header's size is {field!r}, needed an octal number")
    return found


def _checked_name(raw: bytes) -> str:
    """Raises ValueError for names that are not text, or that would be written elsewhere, or mislead, if extracted."""
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        raise ValueError(f"the member's name {_shown(raw)} is not UTF-8; rename it and pack the tar anew") from None
    if not name:
        raise ValueError("a member without a name")
    # Cheap to ask; only a name that is odd in one of these ways is looked at closely.
    if not name.isprintable() or name[0] == "/" or ".." in name or "\\" in name:
        _check_odd_name(name)
    return name


def _check_odd_name(name: str) -> None:
    faults = {
        "is absolute": name.startswith("/"),
        'has a part ".."': ".." in name.split("/"),
        "has a backslash": "\\" in name,
        "has a control character": _CONTROL.search(name) is not None,
    }
    for fault, present in faults.items():
        if present:
            raise ValueError(f"the member's name {_shown(name)} {fault}; such a tar is not read")


def _check_folder(kind: bytes, name: str, size: int, sparse: bool) -> None:
    """Raises ValueError for a member that is neither a plain file nor a folder without a payload."""
    found = "a sparse file" if sparse else _REFUSED.get(kind)
    if found is None and kind != b"5" and not (kind == b"\0" and name[-1] == "/"):  # V7 has no kind for folders
        found = "a file with the name of a folder" if kind in _FILE else f"of unknown kind {kind!r}"
    if found is not None:
        raise ValueError(f"member {_shown(name)} is {found}; a data set has plain files only")
    if size:
        raise ValueError(f"folder {_shown(name)} has a payload of {size} bytes, which readers take in different ways")


def _shown(text: str | bytes) -> str:
    return repr(text) if len(text) <= 100 else f"{text[:80]!r}..."
