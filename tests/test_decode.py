"""The scaled decode beside the exact one."""

import io

import numpy as np
import pytest
from PIL import Image

from storydist.data.decode import BadImage, decode_exact, decode_scaled


def picture(height: int = 240, width: int = 575, seed: int = 0) -> np.ndarray:
    """Soft shapes with grain, uint8 [H, W, 3]."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    waves = [127 + 80 * np.sin(rows / (20 + 9 * c) + columns / (33 - 5 * c) + seed) for c in range(3)]
    grain = generator.normal(0, 6, (height, width, 1))
    return np.clip(np.stack(waves, axis=-1) + grain, 0, 255).astype(np.uint8)


def encoded(pixels: np.ndarray, kind: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def both(images: list[bytes], height: int = 60, width: int = 125) -> tuple[np.ndarray, np.ndarray]:
    exact, scaled = (np.zeros((len(images), height, width, 3), np.uint8) for _ in range(2))
    decode_exact(images, exact)
    decode_scaled(images, scaled)
    return exact, scaled


def test_scaled_pixels_are_near_the_exact_ones():
    exact, scaled = both([encoded(picture(seed=s)) for s in range(4)])
    error = np.abs(exact.astype(int) - scaled)
    assert 0 < error.mean() < 3
    assert np.corrcoef(exact.ravel(), scaled.ravel())[0, 1] > 0.999


def test_pictures_of_many_sizes_and_kinds_keep_their_places():
    kinds = [
        encoded(picture(seed=0)),
        encoded(picture(300, 400, 1)),
        encoded(picture(300, 400, 2), "PNG"),
        encoded(picture(300, 400, 3)),
        encoded(picture(40, 50, 4)),  # smaller than the target
        encoded(picture(seed=5)[:, :, 0]),  # grey
    ]
    exact, scaled = both(kinds)
    for one, other in zip(exact, scaled, strict=True):
        assert np.abs(one.astype(int) - other).mean() < 3
    assert np.array_equal(exact[2], scaled[2])  # PNG has no scaled decode


@pytest.mark.parametrize("kind", ["turned", "cmyk"])
def test_what_libjpeg_does_not_turn_or_convert_is_decoded_exactly(kind):
    if kind == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6
        data = encoded(picture(), exif=exif)
    else:
        buffer = io.BytesIO()
        Image.fromarray(picture()).convert("CMYK").save(buffer, "JPEG")
        data = buffer.getvalue()
    exact, scaled = both([data])
    assert np.array_equal(exact, scaled)


def test_stray_bytes_that_pillow_passes_over_are_no_damage():
    data = encoded(picture())
    scan = data.index(b"\xff\xda")
    exact, scaled = both([data[:scan] + b"\x00\x00" + data[scan:]])
    assert np.abs(exact.astype(int) - scaled).mean() < 3


@pytest.mark.parametrize("decode", [decode_exact, decode_scaled])
@pytest.mark.parametrize("damage", [lambda d: d[: len(d) // 2], lambda d: b"GIF89a" + d, lambda d: b""])
def test_a_bad_image_is_named_by_its_place(decode, damage):
    good = encoded(picture())
    with pytest.raises(BadImage) as raised:
        decode([good, good, damage(good)], np.zeros((3, 60, 125, 3), np.uint8))
    assert raised.value.number == 2
