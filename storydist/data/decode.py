"""Encoded frames -> pixels in a batch's memory, exactly or in a quarter of the time.

`exact` is `frames.decode_frame`: a full decode, then Pillow's antialiased BILINEAR. `scaled` lets libjpeg leave out
the frequencies that the smaller picture cannot show: it decodes to the smallest eighth of the size (1/8, 2/8, .. 8/8)
that still covers the target, and resizes that. On film frames of 575 x 240 for 60 x 125 the pixels differ from the
exact ones by 1.8 of 255 in the mean (38 dB); benchmarks/RESULTS.md has the speed. What is not a plain JPEG (PNG, CMYK,
turned by EXIF) is decoded exactly under both names.
Source: https://libjpeg-turbo.org/Documentation/Documentation, `scale_num` / `scale_denom`.
"""

import threading
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from simplejpeg import decode_jpeg, decode_jpeg_header

from storydist.data.frames import MAX_PIXELS, decode_frame

_JPEG, _EXIF, _HEAD_BYTES = b"\xff\xd8", b"Exif\x00\x00", 65536
_scratch = threading.local()  # one story's frames at the decoder's size, used again and again


class BadImage(ValueError):  # noqa: N818 (the term for it here)  # noqa: N818 (the term for it here)
    """An image that cannot be decoded: `number` among those given."""

    def __init__(self, number: int, reason: str):
        super().__init__(reason)
        self.number = number


def decode_exact(images: Sequence[bytes | memoryview], out_SHWC: np.ndarray) -> None:
    """Fills uint8 [S, H, W, 3] with S encoded images. Raises BadImage for the first that cannot be decoded."""
    for number, (image, out) in enumerate(zip(images, out_SHWC, strict=True)):
        try:
            out[:] = decode_frame(bytes(image), *out.shape[:2])
        except ValueError as error:
            raise BadImage(number, str(error)) from error


def decode_scaled(images: Sequence[bytes | memoryview], out_SHWC: np.ndarray) -> None:
    """As `decode_exact`, with libjpeg's scaling. All images of one size, as in a film, are resized in one call."""
    height, width = out_SHWC.shape[1:3]
    pending: list[int] = []
    buffer_SHWC: np.ndarray | None = None
    for number, image in enumerate(images):
        shape = _scaled_shape(image, height, width)
        if buffer_SHWC is not None and (shape is None or shape != buffer_SHWC.shape[1:3]):
            _resize(buffer_SHWC, pending, out_SHWC)
            pending, buffer_SHWC = [], None
        if shape is not None:
            if buffer_SHWC is None:
                buffer_SHWC = _buffer(len(images), *shape)
            try:
                decode_jpeg(image, "RGB", min_height=height, min_width=width, buffer=buffer_SHWC[len(pending)])
                pending.append(number)
                continue
            except ValueError:
                pass  # perhaps libjpeg only warned, of stray bytes: Pillow tells what can be used from what cannot
        try:
            out_SHWC[number] = decode_frame(bytes(image), height, width)
        except ValueError as error:
            raise BadImage(number, str(error)) from error
    if buffer_SHWC is not None:
        _resize(buffer_SHWC, pending, out_SHWC)


def _scaled_shape(image: bytes | memoryview, height: int, width: int) -> tuple[int, int] | None:
    """(height, width) at which libjpeg will decode, or None for what is not a plain JPEG within bounds."""
    if bytes(image[:2]) != _JPEG or _EXIF in bytes(image[:_HEAD_BYTES]):
        return None
    try:
        full_height, full_width, colours, _ = decode_jpeg_header(image)
        if colours not in ("RGB", "YCbCr", "Gray") or full_height * full_width > MAX_PIXELS:
            return None
        return decode_jpeg_header(image, height, width)[:2]
    except ValueError:
        return None


def _buffer(count: int, height: int, width: int) -> np.ndarray:
    needed = count * height * width * 3
    if getattr(_scratch, "bytes", np.empty(0)).size < needed:
        _scratch.bytes = np.empty(needed, dtype=np.uint8)
    return _scratch.bytes[:needed].reshape(count, height, width, 3)


def _resize(buffer_SHWC: np.ndarray, rows: list[int], out_SHWC: np.ndarray) -> None:
    """Antialiased bilinear, as Pillow's to within rounding."""
    height, width = out_SHWC.shape[1:3]
    # A view as NCHW whose memory is NHWC: torch has a vectorised kernel for just that.
    decoded_NCHW = torch.from_numpy(buffer_SHWC[: len(rows)]).permute(0, 3, 1, 2)
    resized_NCHW = F.interpolate(decoded_NCHW, (height, width), mode="bilinear", antialias=True, align_corners=False)
    out_SHWC[rows] = resized_NCHW.permute(0, 2, 3, 1).numpy()
