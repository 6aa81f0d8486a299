"""The plot: which frame shows what. A function of (seed, split, number) alone; nothing is drawn here.

Scenes alternate between two camera set-ups (A-B-A-B), with now and then a third, wide one, or the same shot going on.
Actions follow a small Markov chain inside the mood of each third of the story.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from shards.synthetic import lexicon
from shards.synthetic.film import NUM_FILMS, make_film
from shards.synthetic.state import (
    CANVAS,
    Action,
    Box,
    Figure,
    Film,
    Frame,
    Ids,
    Lighting,
    Location,
    Prop,
    Setup,
    StoryState,
)

SPLITS = ("train", "test")
HOLD, ALTERNATE = 0.05, 0.88  # chances that a shot goes on; else that it cuts to the reverse one (the rest: wide)
FOLLOW = 0.45  # chance that an action is followed by its successor, where the mood allows it
KEEP_MOOD = 0.85  # chance that an action is of its third's mood
RENAMED = 0.05  # chance that a story gives one person a second id half-way
# From the top of a head to the feet beside the canvas: the closer, the more lies below the view.
FIGURE_SIZE = {"close": 2.3, "medium": 1.35, "wide": 0.72}


@dataclass(frozen=True)
class _Scene:
    number: int
    location: Location
    lighting: Lighting
    setups: tuple[Setup, Setup, Setup]  # A, B and the wide one
    num_frames: int


def make_story(seed: int, split: str, number: int) -> StoryState:
    """Story `number` of a split. Ids are digits: even in train, odd in test, so they never meet whatever the counts."""
    key = f"{seed}/{split}/{number}"
    rng = Random(f"{key}/plot")
    film = make_film(seed, rng.randrange(NUM_FILMS))
    num_frames = min(22, max(5, round(rng.gauss(13, 4))))
    people = rng.sample(range(len(film.cast)), rng.choice((2, 3, 3, 4)))
    brightening, warming = rng.uniform(-0.6, 0.6), rng.uniform(-0.7, 0.7)
    scenes = _make_scenes(rng, film, people, num_frames)
    actions = _make_actions(rng, num_frames)
    frames = _shoot(rng, film, scenes, actions, brightening, warming)
    return StoryState(
        story_id=str(2 * number + SPLITS.index(split)),
        key=key,
        film=film,
        frames=frames,
        ids=_make_ids(rng, film, frames),
        brightening=brightening,
        warming=warming,
    )


def _make_actions(rng: Random, num_frames: int) -> list[Action]:
    moods = [rng.choice((-1, -1, 0, 1, 1)) for _ in range(3)]
    actions: list[Action] = []
    for frame in range(num_frames):
        mood = moods[third(frame, num_frames)]
        if rng.random() > KEEP_MOOD:
            mood = rng.choice((-1, 0, 1))
        successor = lexicon.ACTION_BY_NAME[actions[-1].successor] if actions else None
        follows = successor in lexicon.MOODS[mood] and rng.random() < FOLLOW
        actions.append(successor if successor and follows else rng.choice(lexicon.MOODS[mood]))
    return actions


def third(frame: int, num_frames: int) -> int:
    """Which third of its story a frame lies in: 0, 1 or 2."""
    return min(2, 3 * frame // num_frames)


def _make_scenes(rng: Random, film: Film, people: list[int], num_frames: int) -> list[_Scene]:
    num_scenes = 1 if num_frames < 9 else rng.choice((1, 2, 2)) if num_frames < 15 else rng.choice((2, 2, 3))
    locations = rng.sample(film.locations, num_scenes)
    lighting = rng.choice(lexicon.LIGHTINGS)
    cuts = [
        round(num_frames * (part + (rng.uniform(-0.12, 0.12) if 0 < part < num_scenes else 0)) / num_scenes)
        for part in range(num_scenes + 1)
    ]
    scenes = []
    for scene, location in enumerate(locations):
        if scene and rng.random() < 0.4:
            lighting = rng.choice(lexicon.LIGHTINGS)
        setups = _make_setups(rng, film, rng.sample(people, min(3, len(people))))
        scenes.append(_Scene(scene, location, lighting, setups, cuts[scene + 1] - cuts[scene]))
    return scenes


def _make_setups(rng: Random, film: Film, people: list[int]) -> tuple[Setup, Setup, Setup]:
    angles = rng.sample(range(6), 3)
    things = rng.sample(range(len(film.things)), 2)
    first, second = people[0], people[1]
    return (
        _make_setup(rng, angles[0], rng.choice(("close", "medium")), (first,), things[:1]),
        _make_setup(
            rng, angles[1], rng.choice(("close", "medium")), (second, first)[: rng.choice((1, 1, 2))], things[1:]
        ),
        _make_setup(rng, angles[2], "wide", tuple(people), things),
    )


def _make_setup(rng: Random, angle: int, scale: str, people: tuple[int, ...], things: list[int]) -> Setup:
    side = rng.choice((-1, 1))
    spread = {1: (0.14,), 2: (-0.2, 0.2), 3: (-0.26, 0.02, 0.28)}[len(people)]
    return Setup(
        angle=angle,
        scale=scale,
        people=people,
        things=tuple(things),
        places=tuple(0.5 + side * place + rng.uniform(-0.03, 0.03) for place in spread),
        thing_places=tuple(0.5 - side * rng.uniform(0.1, 0.3) for _ in things),
        centre=(rng.uniform(0.46, 0.54), rng.uniform(0.47, 0.53)),
        zoom={"close": 0.76, "medium": 0.8, "wide": 0.9}[scale] + rng.uniform(-0.03, 0.03),
    )


def _shoot(
    rng: Random, film: Film, scenes: list[_Scene], actions: list[Action], brightening: float, warming: float
) -> tuple[Frame, ...]:
    frames: list[Frame] = []
    time_s = rng.uniform(60, 5400)
    exposure = 1.0
    for scene in scenes:
        shot = -1  # which of the scene's set-ups
        for place in range(scene.num_frames):
            held = place > 0 and rng.random() < HOLD
            if not held:
                shot = _next_shot(rng, shot)
                exposure = rng.uniform(0.94, 1.06)
            gap = rng.uniform(1, 2) if held else rng.uniform(4, 8) if place == 0 else rng.uniform(2, 5)
            time_s += gap if frames else 0
            progress = len(frames) / (len(actions) - 1) - 0.5
            gains = _gains(film, scene.lighting, exposure * (1 + brightening * progress), warming * progress)
            frames.append(
                _expose(
                    rng,
                    film,
                    scene,
                    scene.setups[shot],
                    actions[len(frames)],
                    frames[-1] if held else None,
                    gains,
                    time_s,
                )
            )
    return tuple(frames)


def _next_shot(rng: Random, shot: int) -> int:
    if shot < 0:
        return rng.choice((0, 2, 2))
    if shot == 2:
        return rng.choice((0, 0, 1))
    return 1 - shot if rng.random() < ALTERNATE else 2


def _gains(film: Film, lighting: Lighting, exposure: float, warmth: float) -> tuple[float, float, float]:
    red, green, blue = (exposure * gain * tint for gain, tint in zip(lighting.gains, film.tint, strict=True))
    return red * (1 + warmth), green, blue * (1 - warmth)


def _expose(
    rng: Random,
    film: Film,
    scene: _Scene,
    setup: Setup,
    action: Action,
    before: Frame | None,
    gains: tuple[float, float, float],
    time_s: float,
) -> Frame:
    """One frame. `before` is the frame whose shot goes on: things then move by a few pixels instead of anew."""
    if before is None:
        view = _reframe(rng, setup)
        figures = tuple(
            _place(rng, film, setup, who, action if who == 0 else rng.choice(lexicon.REACTIONS))
            for who in range(len(setup.people))
        )
    else:
        view = before.view
        figures = tuple(
            _shift(rng, figure, action if who == 0 else figure.action) for who, figure in enumerate(before.figures)
        )
    props = (
        before.props
        if before
        else tuple(
            Prop(thing, place * CANVAS[0], CANVAS[1] * 0.86, CANVAS[1] * (0.2 if setup.scale == "wide" else 0.3))
            for thing, place in zip(setup.things, setup.thing_places, strict=True)
        )
    )
    return Frame(
        scene.number,
        scene.location,
        scene.lighting,
        setup,
        view,
        gains,
        figures,
        props,
        round(time_s, 2),
        before is not None,
    )


def _reframe(rng: Random, setup: Setup) -> Box:
    zoom = setup.zoom * rng.uniform(0.96, 1.04)
    width, height = zoom * CANVAS[0], zoom * CANVAS[1]
    left = (setup.centre[0] + rng.uniform(-0.03, 0.03)) * CANVAS[0] - width / 2
    top = (setup.centre[1] + rng.uniform(-0.03, 0.03)) * CANVAS[1] - height / 2
    left = min(max(left, 0), CANVAS[0] - width)
    top = min(max(top, 0), CANVAS[1] - height)
    return left, top, left + width, top + height


def _place(rng: Random, film: Film, setup: Setup, who: int, action: Action) -> Figure:
    size = FIGURE_SIZE[setup.scale] * CANVAS[1] * film.cast[setup.people[who]].height * rng.uniform(0.94, 1.06)
    top = CANVAS[1] * (0.2 if setup.scale != "wide" else 0.95) - (size if setup.scale == "wide" else 0)
    return Figure(
        person=setup.people[who],
        action=action,
        x=(setup.places[who] + rng.uniform(-0.02, 0.02)) * CANVAS[0],
        top=top + rng.uniform(-9, 9),
        size=size,
        facing=1 if setup.places[who] < 0.5 else -1,
    )


def _shift(rng: Random, figure: Figure, action: Action) -> Figure:
    return Figure(
        figure.person,
        action,
        figure.x + rng.uniform(-6, 6),
        figure.top + rng.uniform(-3, 3),
        figure.size,
        figure.facing,
    )


def _make_ids(rng: Random, film: Film, frames: tuple[Frame, ...]) -> Ids:
    people = sorted({figure.person for frame in frames for figure in frame.figures})
    things = sorted({prop.thing for frame in frames for prop in frame.props})
    locations = list({frame.location.key: frame.location for frame in frames}.values())
    landmarks = [(place.key, mark) for place in locations for mark in dict.fromkeys(place.landmarks)]
    numbers = _numbered(rng, "char", len(people) + 1)
    renamed = (rng.choice(people), rng.randrange(1, len(frames)), numbers[-1]) if rng.random() < RENAMED else None
    return Ids(
        people=dict(zip(people, numbers, strict=False)),
        renamed=renamed,
        things=dict(zip(things, _numbered(rng, "obj", len(things)), strict=True)),
        backgrounds=dict(zip([place.key for place in locations], _numbered(rng, "bg", len(locations)), strict=True)),
        landmarks=dict(zip(landmarks, _numbered(rng, "lm", len(landmarks)), strict=True)),
    )


def _numbered(rng: Random, prefix: str, count: int) -> list[str]:
    """Ids in a random order with about one gap in five."""
    numbers = sorted(rng.sample(range(1, count + 2 + count // 4), count))
    rng.shuffle(numbers)
    return [f"{prefix}{number}" for number in numbers]
