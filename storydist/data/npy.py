"""Arrays as .npy bytes, format 1.0: written the same by any NumPy, read strictly and without a copy.

Only C-ordered arrays of the plain dtypes in `DTYPES` exist here; in particular nothing is ever unpickled.
Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

import math
import re
from functools import lru_cache

import numpy as np

DTYPES = ("|u1", "<i4", "<f4")
_DTYPES = {dtype: np.dtype(dtype) for dtype in DTYPES}
_PREFIX = b"\x93NUMPY\x01\x00"
_HEADER = re.compile(rb"\{'descr': '([|<][a-z]\d)', 'fortran_order': False, 'shape': \(([\d, ]*)\), \} *\n")
_ALIGNMENT = 64
_USUAL_BYTES = 128  # of a header; shorter and longer ones are legal


def to_npy(array: np.ndarray) -> bytes:
    """The .npy file of an array, a function of its values, shape and dtype alone. ValueError for other dtypes."""
    descr = array.dtype.newbyteorder("<").str if array.dtype.itemsize > 1 else array.dtype.str
    if descr not in DTYPES:
        raise ValueError(f"an array of {array.dtype} cannot be stored; the dtypes are {', '.join(DTYPES)}")
    shape = f"({array.shape[0]},)" if array.ndim == 1 else str(tuple(array.shape))
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    padding = -(len(_PREFIX) + 2 + len(text) + 1) % _ALIGNMENT
    header = text + b" " * padding + b"\n"
    return _PREFIX + len(header).to_bytes(2, "little") + header + array.astype(descr, order="C", copy=False).tobytes()


def from_npy(data: bytes | memoryview, dtype: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """The array in .npy bytes, a view of `data`. `shape`: what it must have, None for any length.

    Raises ValueError when the header, dtype, shape or number of bytes is not as needed.
    """
    found_shape, start = npy_shape(data, len(data), dtype, shape)
    array = np.ndarray(found_shape, _DTYPES[dtype], data, start)
    array.flags.writeable = False
    return array


def npy_shape(
    data: bytes | memoryview, size: int, dtype: str, shape: tuple[int | None, ...]
) -> tuple[tuple[int, ...], int]:
    """(shape, offset of the values) of a .npy file of `size` bytes, of which `data` holds at least the header.

    Raises ValueError as `from_npy`.
    """
    try:
        return _fitting(bytes(data[:_USUAL_BYTES]), size, dtype, shape)
    except _LongerHeader as error:
        return _fitting(bytes(data[: error.args[0]]), size, dtype, shape)


@lru_cache(maxsize=4096)  # the headers of a shard set repeat
def _fitting(beginning: bytes, size: int, dtype: str, shape: tuple[int | None, ...]) -> tuple[tuple[int, ...], int]:
    found_dtype, found_shape, start = _parse(beginning)
    fits = found_dtype == dtype and len(found_shape) == len(shape)
    if not fits or any(b is not None and a != b for a, b in zip(found_shape, shape, strict=True)):
        wanted = "x".join("?" if size is None else str(size) for size in shape)
        raise ValueError(f"holds {found_dtype} {found_shape}, needed {dtype} {wanted}")
    if size - start != math.prod(found_shape) * _DTYPES[dtype].itemsize:
        raise ValueError(f"holds {size - start} bytes, which is not {dtype} {found_shape}")
    return found_shape, start


class _LongerHeader(Exception):  # noqa: N818 (no error: more bytes are needed)
    """The header is as long as this."""


def _parse(beginning: bytes) -> tuple[str, tuple[int, ...], int]:
    """(dtype, shape, where the values begin) from a file's first bytes."""
    if beginning[: len(_PREFIX)] != _PREFIX:
        raise ValueError("not a .npy file of format 1.0")
    start = len(_PREFIX) + 2
    end = start + int.from_bytes(beginning[len(_PREFIX) : start], "little")
    if end > len(beginning) == _USUAL_BYTES:
        raise _LongerHeader(end)
    match = _HEADER.fullmatch(beginning[start:end])
    if match is None or end > len(beginning):
        raise ValueError(f"unreadable .npy header {beginning[start:end][:80]!r}")
    return match[1].decode(), tuple(int(size) for size in match[2].split(b",") if size.strip()), end
