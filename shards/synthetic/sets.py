"""Backgrounds: what a camera set-up sees of a location, without people, drawn on the canvas."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from random import Random

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from shards.synthetic.film import dressing
from shards.synthetic.state import CANVAS, Colour, Location

WIDTH, HEIGHT = CANVAS
SKY: Colour = (236, 240, 235)  # what is seen through windows, before the lighting

Draw = ImageDraw.ImageDraw


def paint_set(location: Location, angle: int) -> Image.Image:
    """RGB image of CANVAS size, unlit: the same for a location and angle in every story and process."""
    rng = Random(f"{location.key}/{angle}/set")
    horizon = HEIGHT * (rng.uniform(0.66, 0.76) if location.indoor else rng.uniform(0.55, 0.68))
    image = _gradient(location.far, location.near, horizontal=location.indoor and rng.random() < 0.6)
    draw = ImageDraw.Draw(image)
    if location.indoor:
        _room(draw, location, rng, horizon)
    else:
        _view(draw, location, rng, horizon)
    for landmark, place, size in dressing(location, angle):
        LANDMARKS[landmark](draw, place * WIDTH, horizon, size * HEIGHT, location)
    return ImageChops.multiply(image, _surface(angle % 3))


def shade(colour: Colour, factor: float) -> Colour:
    red, green, blue = (min(255, max(0, round(factor * part))) for part in colour)
    return red, green, blue


def _gradient(start: Colour, end: Colour, horizontal: bool) -> Image.Image:
    ramp = np.linspace(start, end, WIDTH if horizontal else HEIGHT).astype(np.uint8)
    strip = Image.frombytes("RGB", (WIDTH, 1) if horizontal else (1, HEIGHT), ramp.tobytes())
    return strip.resize(CANVAS, Image.Resampling.NEAREST)


@lru_cache(maxsize=3)
def _surface(side: int) -> Image.Image:
    """To multiply a set with: light that falls off from the left, the middle or the right (`side` 0-2), and blotches.

    Without blotches (plaster, cloud, soil) a JPEG of flat colour would be far smaller than that of a real frame.
    """
    across = (np.arange(WIDTH) / WIDTH - (0.32, 0.5, 0.68)[side]) / 0.8
    down = (np.arange(HEIGHT) / HEIGHT - 0.45) / 1.1
    light = np.exp(-(across[None, :] ** 2) - down[:, None] ** 2)
    blotches = 0.88 + (_noise(1, 6, 0.11) + _noise(2, 2, 0.06))
    return Image.fromarray((255 * light * blotches).round().clip(0, 255).astype(np.uint8)).convert("RGB")


def _noise(seed: int, cell: int, std: float) -> np.ndarray:
    """Float64 [HEIGHT, WIDTH] around 0, smooth over `cell` pixels."""
    coarse = np.random.default_rng(seed).normal(0, 1, (HEIGHT // cell + 2, WIDTH // cell + 2)).astype(np.float32)
    return std * np.asarray(Image.fromarray(coarse).resize(CANVAS, Image.Resampling.BILINEAR), dtype=np.float64)


def _room(draw: Draw, location: Location, rng: Random, horizon: float) -> None:
    for stripe in range(rng.choice((0, 0, 9, 14))):
        x = WIDTH * stripe / 9
        draw.rectangle((x, 0, x + 18, horizon), fill=shade(location.near, 1.1))
    draw.rectangle((0, horizon * 0.78, WIDTH, horizon), fill=shade(location.near, rng.uniform(0.6, 0.8)))
    draw.rectangle((0, horizon, WIDTH, HEIGHT), fill=location.ground)
    for plank in range(-4, 13):  # boards run to a vanishing point
        x = WIDTH * plank / 8
        draw.line((WIDTH / 2 + (x - WIDTH / 2) * 0.5, horizon, x, HEIGHT), fill=shade(location.ground, 0.78), width=3)
    draw.rectangle((0, 0, WIDTH, 26), fill=shade(location.far, 0.7))


def _view(draw: Draw, location: Location, rng: Random, horizon: float) -> None:
    if rng.random() < 0.5:
        x, y, radius = rng.uniform(0.1, 0.9) * WIDTH, rng.uniform(0.12, 0.3) * HEIGHT, rng.uniform(26, 48)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(250, 244, 220))
    jagged = location.name in ("street", "harbour", "rooftop")
    for layer, tone in ((0.30, 0.85), (0.14, 0.62)):
        points: list[tuple[float, float]] = [(0, horizon)]
        x = 0.0
        while x < WIDTH:
            step, top = rng.uniform(60, 150), horizon - HEIGHT * layer * rng.uniform(0.4, 1.3)
            points += [(x, top), (x + step, top)] if jagged else [(x + step / 2, top)]
            x += step
        draw.polygon([*points, (WIDTH, horizon)], fill=shade(location.near, tone))
    draw.rectangle((0, horizon, WIDTH, HEIGHT), fill=location.ground)
    for _ in range(14):
        x, y, length = rng.uniform(0, WIDTH), rng.uniform(horizon, HEIGHT), rng.uniform(40, 190)
        draw.line((x, y, x + length, y), fill=shade(location.ground, rng.choice((0.8, 1.2))), width=5)


# Landmarks: `x` middle, `y` the horizon, `s` the height of the canvas times the landmark's size.


def _window(draw: Draw, x: float, y: float, s: float, location: Location) -> None:
    box = (x - 0.16 * s, y - 0.58 * s, x + 0.16 * s, y - 0.16 * s)
    draw.rectangle(box, fill=SKY, outline=shade(location.accent, 0.6), width=9)
    draw.line((x, box[1], x, box[3]), fill=shade(location.accent, 0.6), width=6)
    draw.line((box[0], y - 0.37 * s, box[2], y - 0.37 * s), fill=shade(location.accent, 0.6), width=6)


def _door(draw: Draw, x: float, y: float, s: float, location: Location) -> None:
    draw.rectangle((x - 0.13 * s, y - 0.56 * s, x + 0.13 * s, y + 8), fill=shade(location.accent, 0.55))
    draw.rectangle((x - 0.09 * s, y - 0.5 * s, x + 0.09 * s, y - 0.3 * s), fill=shade(location.accent, 0.7))
    draw.ellipse((x + 0.08 * s, y - 0.24 * s, x + 0.11 * s, y - 0.21 * s), fill=(220, 190, 90))


def _painting(draw: Draw, x: float, y: float, s: float, location: Location) -> None:
    box = (x - 0.14 * s, y - 0.55 * s, x + 0.14 * s, y - 0.32 * s)
    draw.rectangle(box, fill=location.accent, outline=(150, 110, 40), width=9)
    draw.polygon(
        [(x - 0.1 * s, y - 0.35 * s), (x, y - 0.5 * s), (x + 0.1 * s, y - 0.35 * s)], fill=shade(location.accent, 0.5)
    )


def _clock(draw: Draw, x: float, y: float, s: float, location: Location) -> None:
    draw.rectangle((x - 0.08 * s, y - 0.6 * s, x + 0.08 * s, y + 6), fill=shade(location.near, 0.4))
    draw.ellipse((x - 0.06 * s, y - 0.57 * s, x + 0.06 * s, y - 0.45 * s), fill=(240, 236, 220))
    draw.line((x, y - 0.51 * s, x + 0.03 * s, y - 0.54 * s), fill=(20, 20, 20), width=3)


def _fireplace(draw: Draw, x: float, y: float, s: float, location: Location) -> None:
    draw.rectangle((x - 0.22 * s, y - 0.34 * s, x + 0.22 * s, y + 10), fill=shade(location.far, 0.55))
    draw.rectangle((x - 0.14 * s, y - 0.24 * s, x + 0.14 * s, y + 10), fill=(24, 18, 16))
    draw.polygon([(x - 0.09 * s, y + 4), (x - 0.02 * s, y - 0.17 * s), (x + 0.09 * s, y + 4)], fill=(250, 150, 40))


def _shelf(draw: Draw, x: float, y: float, s: float, location: Location) -> None:
    draw.rectangle((x - 0.2 * s, y - 0.6 * s, x + 0.2 * s, y + 6), fill=shade(location.near, 0.45))
    spines = (location.accent, shade(location.far, 1.2), shade(location.accent, 0.6), (200, 190, 160))
    for row in range(3):
        base = y - (0.42 - 0.18 * row) * s
        for book in range(7):
            left = x - 0.18 * s + book * 0.052 * s
            draw.rectangle(
                (left, base - (0.1 + 0.02 * (book % 3)) * s, left + 0.04 * s, base), fill=spines[(book * 3 + row) % 4]
            )


def _counter(draw: Draw, x: float, y: float, s: float, location: Location) -> None:
    draw.rectangle((x - 0.3 * s, y - 0.14 * s, x + 0.3 * s, y + 14), fill=shade(location.accent, 0.75))
    draw.rectangle((x - 0.32 * s, y - 0.17 * s, x + 0.32 * s, y - 0.13 * s), fill=shade(location.far, 1.15))


def _pillar(draw: Draw, x: float, y: float, s: float, location: Location) -> None:
    draw.rectangle((x - 0.09 * s, 0, x + 0.09 * s, y + 20), fill=shade(location.far, 1.15))
    draw.rectangle((x - 0.09 * s, 0, x - 0.04 * s, y + 20), fill=shade(location.far, 0.75))
    draw.rectangle((x - 0.12 * s, y, x + 0.12 * s, y + 24), fill=shade(location.far, 0.9))


def _stairs(draw: Draw, x: float, y: float, s: float, location: Location) -> None:
    for step in range(7):
        top = y - step * 0.08 * s
        draw.rectangle(
            (x - 0.24 * s + step * 0.05 * s, top - 0.08 * s, x + 0.24 * s, y + 10),
            fill=shade(location.accent, 0.5 + 0.08 * step),
        )


def _lamp_post(draw: Draw, x: float, y: float, s: float, location: Location) -> None:
    draw.rectangle((x - 6, y - 0.66 * s, x + 6, y + 14), fill=(34, 34, 40))
    draw.ellipse((x - 0.06 * s, y - 0.74 * s, x + 0.06 * s, y - 0.62 * s), fill=(255, 236, 170))


def _house(draw: Draw, x: float, y: float, s: float, location: Location) -> None:
    draw.rectangle((x - 0.24 * s, y - 0.36 * s, x + 0.24 * s, y + 6), fill=shade(location.accent, 0.85))
    draw.polygon(
        [(x - 0.28 * s, y - 0.36 * s), (x, y - 0.58 * s), (x + 0.28 * s, y - 0.36 * s)],
        fill=shade(location.accent, 0.45),
    )
    for side in (-0.13, 0.13):
        draw.rectangle((x + (side - 0.05) * s, y - 0.26 * s, x + (side + 0.05) * s, y - 0.14 * s), fill=(250, 230, 150))


def _tower(draw: Draw, x: float, y: float, s: float, location: Location) -> None:
    draw.polygon(
        [(x - 0.1 * s, y + 6), (x - 0.07 * s, y - 0.62 * s), (x + 0.07 * s, y - 0.62 * s), (x + 0.1 * s, y + 6)],
        fill=shade(location.near, 0.45),
    )
    draw.rectangle((x - 0.09 * s, y - 0.7 * s, x + 0.09 * s, y - 0.6 * s), fill=location.accent)


def _bench(draw: Draw, x: float, y: float, s: float, location: Location) -> None:
    for height in (0.2, 0.13, 0.06):
        draw.rectangle(
            (x - 0.2 * s, y - height * s, x + 0.2 * s, y - (height - 0.04) * s), fill=shade(location.accent, 0.6)
        )
    for side in (-0.17, 0.15):
        draw.rectangle((x + side * s, y - 0.2 * s, x + (side + 0.02) * s, y + 0.08 * s), fill=(30, 28, 28))


def _boat(draw: Draw, x: float, y: float, s: float, location: Location) -> None:
    draw.polygon(
        [
            (x - 0.34 * s, y - 0.1 * s),
            (x + 0.34 * s, y - 0.1 * s),
            (x + 0.22 * s, y + 0.06 * s),
            (x - 0.22 * s, y + 0.06 * s),
        ],
        fill=location.accent,
    )
    draw.rectangle((x - 4, y - 0.58 * s, x + 4, y - 0.1 * s), fill=(50, 36, 28))
    draw.polygon([(x + 8, y - 0.56 * s), (x + 8, y - 0.14 * s), (x + 0.24 * s, y - 0.14 * s)], fill=(232, 228, 214))


def _crane(draw: Draw, x: float, y: float, s: float, location: Location) -> None:
    draw.line((x, y, x, y - 0.7 * s), fill=(60, 50, 44), width=12)
    draw.line((x - 0.1 * s, y - 0.66 * s, x + 0.34 * s, y - 0.66 * s), fill=location.accent, width=11)
    draw.line((x + 0.3 * s, y - 0.66 * s, x + 0.3 * s, y - 0.36 * s), fill=(40, 40, 40), width=5)


def _tree(draw: Draw, x: float, y: float, s: float, location: Location) -> None:
    draw.rectangle((x - 0.03 * s, y - 0.3 * s, x + 0.03 * s, y + 0.06 * s), fill=(74, 52, 36))
    for layer in range(3):
        top, half = y - (0.7 - 0.15 * layer) * s, (0.11 + 0.05 * layer) * s
        draw.polygon(
            [(x, top), (x - half, top + 0.26 * s), (x + half, top + 0.26 * s)],
            fill=shade(location.near, 0.42 + 0.1 * layer),
        )


def _rock(draw: Draw, x: float, y: float, s: float, location: Location) -> None:
    draw.polygon(
        [
            (x - 0.28 * s, y + 0.05 * s),
            (x - 0.18 * s, y - 0.2 * s),
            (x + 0.02 * s, y - 0.32 * s),
            (x + 0.2 * s, y - 0.14 * s),
            (x + 0.27 * s, y + 0.05 * s),
        ],
        fill=shade(location.ground, 0.62),
    )
    draw.polygon(
        [(x - 0.18 * s, y - 0.2 * s), (x + 0.02 * s, y - 0.32 * s), (x - 0.02 * s, y - 0.08 * s)],
        fill=shade(location.ground, 1.1),
    )


def _fence(draw: Draw, x: float, y: float, s: float, location: Location) -> None:
    for rail in (0.16, 0.06):
        draw.rectangle(
            (x - 0.4 * s, y - rail * s, x + 0.4 * s, y - (rail - 0.03) * s), fill=shade(location.accent, 0.5)
        )
    for post in range(7):
        left = x - 0.4 * s + post * 0.13 * s
        draw.rectangle((left, y - 0.22 * s, left + 0.035 * s, y + 0.06 * s), fill=shade(location.accent, 0.4))


LANDMARKS: dict[str, Callable[[Draw, float, float, float, Location], None]] = {
    "window": _window,
    "door": _door,
    "painting": _painting,
    "clock": _clock,
    "fireplace": _fireplace,
    "shelf": _shelf,
    "counter": _counter,
    "pillar": _pillar,
    "stairs": _stairs,
    "lamp post": _lamp_post,
    "house": _house,
    "tower": _tower,
    "bench": _bench,
    "boat": _boat,
    "crane": _crane,
    "tree": _tree,
    "rock": _rock,
    "fence": _fence,
}
