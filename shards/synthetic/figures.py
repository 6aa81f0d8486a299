"""People and things, drawn on the canvas in front of a set."""

from __future__ import annotations

from math import cos, pi, sin

from PIL import ImageDraw

from shards.synthetic.sets import shade
from shards.synthetic.state import ARM, SHOULDER, Colour, Figure, Person, Prop, Thing

Draw = ImageDraw.ImageDraw
INK: Colour = (26, 20, 20)


def draw_person(draw: Draw, figure: Figure, person: Person) -> None:
    """A standing person: legs, coat, arms in the pose of the action, head with hair and a mouth that shows the mood."""
    unit, x = figure.size, figure.x
    if person.hair_style == 1:  # long hair hangs behind the shoulders
        draw.rounded_rectangle(
            (x - 0.085 * unit, figure.top, x + 0.085 * unit, figure.top + 0.27 * unit), 0.06 * unit, fill=person.hair
        )
    shoulder, waist = figure.top + 0.19 * unit, figure.top + 0.58 * unit
    dark = shade(person.coat, 0.62)
    for side in (-1, 1):
        draw.rectangle(
            (x + side * 0.045 * unit - 0.035 * unit, waist, x + side * 0.045 * unit + 0.035 * unit, figure.top + unit),
            fill=shade(person.coat, 0.35),
        )
    draw.polygon(
        [
            (x - 0.115 * unit, shoulder + 0.02 * unit),
            (x - 0.05 * unit, shoulder - 0.02 * unit),
            (x + 0.05 * unit, shoulder - 0.02 * unit),
            (x + 0.115 * unit, shoulder + 0.02 * unit),
            (x + 0.125 * unit, waist + 0.1 * unit),
            (x - 0.125 * unit, waist + 0.1 * unit),
        ],
        fill=person.coat,
    )
    draw.line((x, shoulder, x, waist + 0.1 * unit), fill=dark, width=max(2, round(0.012 * unit)))
    draw.rectangle((x - 0.03 * unit, shoulder - 0.05 * unit, x + 0.03 * unit, shoulder), fill=shade(person.skin, 0.85))
    _head(draw, figure, person)
    back, front = figure.action.arms
    _arm(draw, x - figure.facing * 0.105 * unit, figure.top + SHOULDER * unit, -figure.facing * back, unit, person)
    _arm(draw, x + figure.facing * 0.105 * unit, figure.top + SHOULDER * unit, figure.facing * front, unit, person)


def _arm(draw: Draw, x: float, y: float, angle: float, unit: float, person: Person) -> None:
    """`angle` degrees from hanging down, positive to the right."""
    turn = angle * pi / 180
    x_hand, y_hand = x + ARM * unit * sin(turn), y + ARM * unit * cos(turn)
    width = max(3, round(0.055 * unit))
    draw.line((x, y, x_hand, y_hand), fill=shade(person.coat, 0.8), width=width)
    _disc(draw, x, y, width / 2, shade(person.coat, 0.8))
    _disc(draw, x_hand, y_hand, 0.6 * width, person.skin)


def _head(draw: Draw, figure: Figure, person: Person) -> None:
    unit, x, top = figure.size, figure.x, figure.top
    half, y = 0.062 * unit, figure.top + 0.085 * unit
    draw.ellipse((x - half, top, x + half, top + 0.165 * unit), fill=person.skin)
    draw.pieslice((x - 1.12 * half, top - 0.015 * unit, x + 1.12 * half, top + 0.12 * unit), 180, 360, fill=person.hair)
    if person.hair_style == 2:
        draw.rectangle(
            (x - 1.9 * half, top + 0.03 * unit, x + 1.9 * half, top + 0.048 * unit), fill=shade(person.coat, 0.5)
        )
        draw.rectangle(
            (x - 1.1 * half, top - 0.05 * unit, x + 1.1 * half, top + 0.04 * unit), fill=shade(person.coat, 0.6)
        )
    look = figure.facing * 0.25 * half
    for side in (-0.4, 0.4):
        _disc(draw, x + side * half + look, y, max(1.5, 0.11 * half), INK)
    _mouth(draw, x + look, y + 0.042 * unit, 0.42 * half, figure.action.mouth)


def _mouth(draw: Draw, x: float, y: float, half: float, mood: float) -> None:
    width = max(2, round(0.22 * half))
    if mood == 2:
        draw.ellipse((x - 0.7 * half, y - 0.5 * half, x + 0.7 * half, y + 0.9 * half), fill=(110, 30, 30))
    elif mood == 0:
        draw.line((x - half, y, x + half, y), fill=INK, width=width)
    else:
        lift = -half if mood > 0 else 0.2 * half
        draw.arc(
            (x - half, y + lift, x + half, y + lift + 1.6 * half),
            *((20, 160) if mood > 0 else (200, 340)),
            fill=INK,
            width=width,
        )


def draw_thing(draw: Draw, prop: Prop, thing: Thing) -> None:
    """An object standing on `prop.base`, on a plinth that reaches below the view."""
    x, base, s, colour = prop.x, prop.base, prop.size, thing.colour
    dark, light = shade(colour, 0.6), shade(colour, 1.35)
    draw.rectangle((x - 0.55 * s, base, x + 0.55 * s, base + 3 * s), fill=(62, 46, 36))
    draw.rectangle((x - 0.62 * s, base, x + 0.62 * s, base + 0.08 * s), fill=(92, 70, 52))
    if thing.kind in ("lamp", "candle"):
        draw.rectangle((x - 0.06 * s, base - 0.6 * s, x + 0.06 * s, base), fill=dark)
        glow = 0.34 * s if thing.kind == "lamp" else 0.12 * s
        draw.polygon(
            [
                (x - glow, base - 0.5 * s),
                (x - glow / 2, base - s),
                (x + glow / 2, base - s),
                (x + glow, base - 0.5 * s),
            ],
            fill=colour if thing.kind == "lamp" else (255, 200, 90),
        )
    elif thing.kind == "bottle":
        draw.rounded_rectangle((x - 0.17 * s, base - 0.68 * s, x + 0.17 * s, base), 0.08 * s, fill=colour)
        draw.rectangle((x - 0.06 * s, base - s, x + 0.06 * s, base - 0.65 * s), fill=dark)
    elif thing.kind in ("letter", "book"):
        height = 0.3 * s if thing.kind == "letter" else 0.55 * s
        draw.polygon(
            [(x - 0.4 * s, base), (x - 0.3 * s, base - height), (x + 0.45 * s, base - height), (x + 0.35 * s, base)],
            fill=light,
            outline=dark,
            width=4,
        )
    elif thing.kind == "umbrella":
        draw.pieslice((x - 0.5 * s, base - s, x + 0.5 * s, base), 180, 360, fill=colour)
        draw.rectangle((x - 0.03 * s, base - 0.5 * s, x + 0.03 * s, base), fill=dark)
    elif thing.kind == "chair":
        draw.rectangle((x - 0.3 * s, base - s, x - 0.2 * s, base), fill=colour)
        draw.rectangle((x - 0.3 * s, base - 0.48 * s, x + 0.3 * s, base - 0.36 * s), fill=colour)
        draw.rectangle((x + 0.2 * s, base - 0.4 * s, x + 0.3 * s, base), fill=dark)
    else:  # suitcase, telephone, basket: a body with a handle
        draw.rounded_rectangle((x - 0.45 * s, base - 0.56 * s, x + 0.45 * s, base), 0.1 * s, fill=colour)
        draw.arc(
            (x - 0.25 * s, base - 0.85 * s, x + 0.25 * s, base - 0.3 * s),
            180,
            360,
            fill=dark,
            width=max(3, round(0.07 * s)),
        )
        draw.line((x - 0.45 * s, base - 0.3 * s, x + 0.45 * s, base - 0.3 * s), fill=dark, width=4)


def _disc(draw: Draw, x: float, y: float, radius: float, colour: Colour) -> None:
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
