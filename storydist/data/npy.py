"""Arrays as .npy bytes, format 1.0: written the same by any NumPy, read strictly and without a copy.

Only C-ordered arrays of the plain dtypes in `DTYPES` exist here; in particular nothing is ever unpickled.
Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

import math
import re
from collections.abc import Sequence

import numpy as np

DTYPES = ("|u1", "<i4", "<f4")
_PREFIX = b"\x93NUMPY\x01\x00"
_HEADER = re.compile(rb"\{'descr': '([|<][a-z]\d)', 'fortran_order': False, 'shape': \(([\d, ]*)\), \} *\n")
_ALIGNMENT = 64


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


def from_npy(data: bytes | memoryview, dtype: str, shape: Sequence[int | None]) -> np.ndarray:
    """The array in .npy bytes, a read-only view of `data`. `shape`: what it must have, None for any length.

    Raises ValueError when the header, dtype, shape or number of bytes is not as needed.
    """
    found_shape, start = npy_shape(data, len(data), dtype, shape)
    return np.frombuffer(data[start:], dtype=dtype).reshape(found_shape)


def npy_shape(
    data: bytes | memoryview, size: int, dtype: str, shape: Sequence[int | None]
) -> tuple[tuple[int, ...], int]:
    """(shape, offset of the values) of a .npy file of `size` bytes, of which `data` holds at least the header.

    Raises ValueError as `from_npy`.
    """
    start = len(_PREFIX) + 2
    if bytes(data[: len(_PREFIX)]) != _PREFIX:
        raise ValueError("not a .npy file of format 1.0")
    end = start + int.from_bytes(data[len(_PREFIX) : start], "little")
    match = _HEADER.fullmatch(bytes(data[start:end]))
    if match is None:
        raise ValueError(f"unreadable .npy header {bytes(data[start:end])[:80]!r}")
    found_shape = tuple(int(size) for size in match[2].split(b",") if size.strip())
    fits = len(found_shape) == len(shape) and all(b in (None, a) for a, b in zip(found_shape, shape, strict=True))
    if match[1].decode() != dtype or not fits:
        wanted = "x".join("?" if size is None else str(size) for size in shape)
        raise ValueError(f"holds {match[1].decode()} {found_shape}, needed {dtype} {wanted}")
    if size - end != math.prod(found_shape) * np.dtype(dtype).itemsize:
        raise ValueError(f"holds {size - end} bytes, which is not {dtype} {found_shape}")
    return found_shape, end
