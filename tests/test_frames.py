"""Decoding, resizing and encoding of images."""

import io

import numpy as np
import pytest
from PIL import Image

from storydist.data import frames
from storydist.data.frames import check_frame, decode_frame, encode_jpeg, frame_size


def encoded(pixels: np.ndarray, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def gradient(height: int = 24, width: int = 40) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 5, columns * 5, rows + columns], axis=-1).astype(np.uint8)


def test_same_size_keeps_the_pixels():
    assert np.array_equal(decode_frame(encoded(gradient()), 24, 40), gradient())


def test_resizing_averages_and_does_not_alias():
    stripes = np.zeros((60, 80, 3), np.uint8)
    stripes[:, ::2] = 255
    small = decode_frame(encoded(stripes), 15, 20)
    assert small.shape == (15, 20, 3) and small.dtype == np.uint8
    assert np.abs(small.astype(int) - 127).max() <= 16  # taking single pixels would give 0 or 255


def test_resizing_is_torchvisions():
    transforms = pytest.importorskip("torchvision.transforms.v2.functional")
    image = Image.fromarray(gradient(50, 70))
    expected = np.asarray(transforms.resize(image, [13, 21], interpolation=transforms.InterpolationMode.BILINEAR))
    assert np.array_equal(decode_frame(encoded(gradient(50, 70)), 13, 21), expected)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK"])
def test_every_colour_mode_becomes_rgb(mode):
    buffer = io.BytesIO()
    Image.fromarray(gradient()).convert(mode).save(buffer, "JPEG" if mode == "CMYK" else "PNG")
    assert decode_frame(buffer.getvalue(), 6, 10).shape == (6, 10, 3)


def test_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    turned = decode_frame(encoded(gradient(), "PNG", exif=exif), 40, 24)
    assert np.array_equal(turned, np.rot90(gradient(), -1))


def test_jpeg_is_close_and_repeatable():
    data = encode_jpeg(gradient())
    assert data == encode_jpeg(gradient()) and data[:3] == b"\xff\xd8\xff"
    assert np.abs(decode_frame(data, 24, 40).astype(int) - gradient()).mean() < 2
    assert frame_size(data) == (24, 40)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.6])
def test_cut_images_are_errors(kind, share):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(pixels, kind)
    for function in (check_frame, lambda image: decode_frame(image, 8, 8)):
        with pytest.raises(ValueError, match="bytes"):
            function(data[: int(len(data) * share)])


def test_other_formats_and_bombs_are_errors(monkeypatch):
    with pytest.raises(ValueError, match="not one of JPEG"):
        decode_frame(encoded(gradient(), "GIF"), 8, 8)
    monkeypatch.setattr(frames, "MAX_PIXELS", 24 * 40 - 1)
    for function in (check_frame, frame_size):
        with pytest.raises(ValueError, match="40x24 pixels"):
            function(encoded(gradient()))
