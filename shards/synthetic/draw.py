"""Frames: set, people and things through the view, lit, vignetted, grained and stored as JPEG."""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO
from random import Random

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from shards.synthetic.figures import draw_person, draw_thing
from shards.synthetic.sets import paint_set
from shards.synthetic.state import FRAME_SIZE, Frame, StoryState

JPEG_QUALITY = 70
BRIGHTNESS = 1.35  # makes up for what sets and lightings take away
GRAIN_STD, _GRAIN_MAX = 5.0, 15  # of 255
_MARGIN = 64  # the grain tile is this much larger than a frame, so that it can be moved


def draw_story(story: StoryState) -> list[bytes]:
    """One JPEG of FRAME_SIZE a frame."""
    rng = Random(f"{story.key}/grain")
    sets: dict[tuple[str, int], Image.Image] = {}
    jpegs = []
    for frame in story.frames:
        seen = (frame.location.key, frame.setup.angle)
        if seen not in sets:
            sets[seen] = paint_set(frame.location, frame.setup.angle)
        picture = draw_frame(story, frame, sets[seen])
        # Levels stay _GRAIN_MAX away from both ends, so this sum never wraps; one that clips takes ten times as long.
        jpegs.append(_encode(ImageChops.add_modulo(picture, _grain(rng.randrange(_MARGIN), rng.randrange(_MARGIN)))))
    return jpegs


def draw_frame(story: StoryState, frame: Frame, background: Image.Image) -> Image.Image:
    """RGB image of FRAME_SIZE, lit, without grain; levels _GRAIN_MAX to 255 - _GRAIN_MAX. Who acts is drawn last."""
    canvas = background.copy()
    draw = ImageDraw.Draw(canvas)
    for figure in reversed(frame.figures):
        draw_person(draw, figure, story.film.cast[figure.person])
    for prop in frame.props:
        draw_thing(draw, prop, story.film.things[prop.thing])
    picture = canvas.resize(FRAME_SIZE, Image.Resampling.BOX, box=frame.view)
    lit = np.outer(frame.gains, np.arange(256)) * BRIGHTNESS
    return picture.point(lit.round().clip(_GRAIN_MAX, 255 - _GRAIN_MAX).astype(int).ravel().tolist())


def _grain(left: int, top: int) -> Image.Image:
    return _grain_tile().crop((left, top, left + FRAME_SIZE[0], top + FRAME_SIZE[1]))


@lru_cache(maxsize=1)
def _grain_tile() -> Image.Image:
    """Differences modulo 256, at most _GRAIN_MAX either way."""
    shape = (FRAME_SIZE[1] + _MARGIN, FRAME_SIZE[0] + _MARGIN)
    grain = np.random.default_rng(0).normal(0, GRAIN_STD, shape).round().clip(-_GRAIN_MAX, _GRAIN_MAX)
    return Image.fromarray((grain % 256).astype(np.uint8)).convert("RGB")


def _encode(picture: Image.Image) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
