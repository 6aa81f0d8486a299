"""Films: a cast, places and things that several stories share."""

from __future__ import annotations

import colorsys
from functools import lru_cache
from random import Random

from shards.synthetic import lexicon
from shards.synthetic.state import CANVAS, Box, Colour, Film, Frame, Location, Person, Thing

NUM_FILMS = 40


@lru_cache(maxsize=NUM_FILMS)
def make_film(seed: int, number: int) -> Film:
    """Film `number` (0 to NUM_FILMS - 1) of a seed, the same in every process. Titles are unique within a seed."""
    rng = Random(f"{seed}/film/{number}")
    titles = [f"The {first} {second}" for first in lexicon.TITLE_FIRST for second in lexicon.TITLE_SECOND]
    Random(f"{seed}/titles").shuffle(titles)
    kinds = rng.sample(range(len(lexicon.LOCATIONS)), 4)
    return Film(
        title=titles[number],
        cast=_make_cast(rng),
        locations=tuple(_make_location(rng, f"{seed}/{number}/{kind}", kind) for kind in kinds),
        things=tuple(_make_thing(rng, kind) for kind in rng.sample(lexicon.THINGS, 5)),
        tint=(rng.uniform(0.88, 1.08), rng.uniform(0.9, 1.05), rng.uniform(0.85, 1.1)),
    )


def _make_cast(rng: Random) -> tuple[Person, ...]:
    women, men = rng.sample(lexicon.WOMEN, 3), rng.sample(lexicon.MEN, 2)
    named = [(name, ("she", "her")) for name in women] + [(name, ("he", "his")) for name in men]
    role = (rng.choice(lexicon.ROLES), ("they", "their"))
    # One coat colour each: that is how a viewer tells them apart.
    coats = rng.sample(sorted(lexicon.COLOUR_WORDS), len(named) + 1)
    people = [
        _make_person(rng, name, pronouns, coat) for (name, pronouns), coat in zip([*named, role], coats, strict=True)
    ]
    rng.shuffle(people)
    return tuple(people)


def _make_person(rng: Random, name: str, pronouns: tuple[str, str], coat: str) -> Person:
    noun = {"she": "woman", "he": "man"}.get(pronouns[0], "person")
    hair = rng.choice(sorted(lexicon.HAIRS))
    garment = rng.choice(lexicon.GARMENTS)
    height = rng.uniform(0.88, 1.1)
    build = "tall" if height > 1.03 else "short" if height < 0.94 else rng.choice(("young", "older", "slim"))
    return Person(
        name=name,
        pronouns=pronouns,
        look=f"{with_article(f'{build} {noun}')} with {hair} in {with_article(f'{coat} {garment}')}",
        garment=f"{coat} {garment}",
        skin=rng.choice(lexicon.SKINS),
        hair=lexicon.HAIRS[hair],
        coat=lexicon.COLOUR_WORDS[coat],
        hair_style=rng.choice((0, 0, 2)) if noun == "man" else rng.choice((0, 1, 1, 2)),
        height=height,
    )


def _make_location(rng: Random, key: str, kind: int) -> Location:
    name, words, indoor, hue, saturation, brightness, landmarks = lexicon.LOCATIONS[kind]
    hue = (hue + rng.uniform(-0.06, 0.06)) % 1.0
    brightness = min(1.0, max(0.2, brightness + rng.uniform(-0.1, 0.1)))
    far = _colour(hue, saturation, brightness)
    near = _colour(hue + rng.uniform(-0.05, 0.05), min(1.0, saturation * 1.2), brightness * rng.uniform(0.6, 0.8))
    ground = _colour(hue + rng.uniform(0.05, 0.25), saturation * 0.8, brightness * rng.uniform(0.35, 0.6))
    accent = _colour(hue + rng.uniform(0.3, 0.7), 0.6, rng.uniform(0.5, 0.9))
    return Location(key, name, words, indoor, far, near, ground, accent, landmarks)


def _make_thing(rng: Random, kind: str) -> Thing:
    colour = rng.choice(sorted(lexicon.COLOUR_WORDS))
    return Thing(kind, with_article(f"{colour} {kind}"), lexicon.COLOUR_WORDS[colour])


def with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _colour(hue: float, saturation: float, brightness: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, min(saturation, 1.0), min(brightness, 1.0))
    return round(255 * red), round(255 * green), round(255 * blue)


def dressing(location: Location, angle: int) -> tuple[tuple[str, float, float], ...]:
    """What a camera at `angle` sees, back to front: (landmark, place across the canvas in [0, 1], size beside 1)."""
    rng = Random(f"{location.key}/{angle}/dressing")
    chosen = rng.sample(location.landmarks, rng.choice((2, 3)))
    places = rng.sample((0.12, 0.34, 0.62, 0.86), len(chosen))
    return tuple(
        (landmark, place + rng.uniform(-0.05, 0.05), rng.uniform(0.85, 1.25))
        for landmark, place in zip(chosen, places, strict=True)
    )


def landmark_box(place: float, size: float) -> Box:
    """About where a landmark of `dressing` lies on the canvas."""
    x, height = place * CANVAS[0], size * CANVAS[1]
    return x - 0.18 * height, 0.7 * CANVAS[1] - 0.6 * height, x + 0.18 * height, 0.72 * CANVAS[1]


def seen_landmarks(frame: Frame) -> dict[str, Box]:
    """The landmarks in a frame and where they lie on the canvas."""
    marks = {mark: landmark_box(place, size) for mark, place, size in dressing(frame.location, frame.setup.angle)}
    return {mark: box for mark, box in marks.items() if frame.shows(box)}
