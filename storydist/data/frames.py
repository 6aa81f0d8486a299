"""Images as pixels: decode, resize, encode.

Pixels are uint8, 0 to 255, RGB, [H, W, 3] in shards and batches; models see float32 = uint8 / 255, in [0, 1].
Resizing is Pillow's BILINEAR with its support widened to the scale (antialiased), after a full decode and without
cropping: what torchvision's `Resize` does to a PIL image. No scaled decode (`draft`) and no `reducing_gap`, which are
faster but change pixels. https://pillow.readthedocs.io/en/stable/handbook/concepts.html#filters
"""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 64_000_000  # a larger image is refused before it is decoded; 8000 x 8000
JPEG_QUALITY = 95
# Pillow's own limits are higher; its warning would stand beside our error.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)
# What Pillow's decoders raise for damaged files; they have no common class.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def decode_frame(data: bytes, height: int, width: int) -> np.ndarray:
    """An encoded image (JPEG, PNG, WebP) as uint8 RGB [height, width, 3], turned as its EXIF orientation says.

    Raises ValueError when the image is damaged, of another format, or larger than MAX_PIXELS.
    """
    with _opened(data) as image:
        ImageOps.exif_transpose(image, in_place=True)
        pixels = image if image.mode == "RGB" else image.convert("RGB")
        return np.asarray(pixels.resize((width, height), Image.Resampling.BILINEAR))


def check_frame(data: bytes) -> None:
    """Decodes an image fully and drops it. Raises ValueError as `decode_frame`."""
    with _opened(data) as image:
        image.load()


def frame_size(data: bytes) -> tuple[int, int]:
    """(height, width) in pixels as stored, from the header alone. Raises ValueError as `decode_frame`."""
    with _opened(data) as image:
        return image.height, image.width


def encode_jpeg(frame: np.ndarray) -> bytes:
    """JPEG of a uint8 [H, W, 3] frame: quality 95, full colour resolution (4:4:4). Same pixels, same bytes."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def check_size(image: Image.Image) -> None:
    """Raises ValueError when an opened image has more than MAX_PIXELS; to be called before it is decoded."""
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width}x{image.height} pixels, at most {MAX_PIXELS} are decoded")


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            check_size(image)
            yield image
    except _DAMAGE as error:
        reason = str(error) if "BytesIO" not in str(error) else f"not one of {', '.join(FORMATS)}"
        raise ValueError(f"{reason} ({len(data)} bytes)") from None
