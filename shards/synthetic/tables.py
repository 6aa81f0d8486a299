"""The chain of thought: tables of each image and the narrative structure, written as the real data set writes them."""

from __future__ import annotations

from random import Random

from shards.synthetic import lexicon
from shards.synthetic.film import seen_landmarks
from shards.synthetic.state import FRAME_SIZE, Box, Frame, StoryState

# Share of tables or rows.
QUIRKS = {
    "table missing": 0.03,
    "table empty": 0.02,
    "row missing": 0.06,
    "row of an absent character": 0.05,
    "no landmark rows": 0.3,
    "no background row": 0.3,
    "box overshoots": 0.08,
    "box is the frame": 0.1,
    "time unknown": 0.4,
    "mood unknown": 0.25,
    "pipe in a cell": 0.01,
    "image missing": 0.02,
    "structure missing": 0.01,
}
HEADS = {
    "Characters": "| Character ID | Name | Description | Emotions | Actions | Narrative Function | Bounding Box |\n"
    "|--------------|------|-------------|----------|---------|-------------------|--------------|",
    "Objects": "| Object ID | Description | Function | Interaction | Narrative Function | Bounding Box |\n"
    "|-----------|-------------|----------|------------|-------------------|--------------|",
    "Setting": "| Setting Element | Description | Mood | Time | Narrative Function |\n"
    "|-----------------|-------------|------|------|-------------------|",
    "Narrative Structure": "| Narrative Phase | Description | Key Events | Images |\n"
    "|-----------------|-------------|-----------|--------|",
}
PHASES = ("Introduction", "Development", "Conflict", "Turning Point", "Conclusion")
FUNCTIONS = ("Protagonist", "Supporting character", "Observer")


def tabulate_story(story: StoryState) -> str:
    """The `chain_of_thought` column."""
    rng = Random(f"{story.key}/tables")
    last = len(story.frames) - (rng.random() < QUIRKS["image missing"])
    parts = [_image(story, number, rng) for number in range(last)]
    if rng.random() >= QUIRKS["structure missing"]:
        parts.append(_structure(story, rng))
    return "\n\n\n".join(parts)


def _image(story: StoryState, number: int, rng: Random) -> str:
    rows = {
        "Characters": _characters(story, number, rng),
        "Objects": _objects(story, story.frames[number], rng),
        "Setting": _setting(story.frames[number], rng),
    }
    tables = []
    for title, cells in rows.items():
        if rng.random() < QUIRKS["table missing"]:
            continue
        lines = [] if rng.random() < QUIRKS["table empty"] else [f"| {' | '.join(row)} |" for row in cells]
        tables.append("\n".join([f"### {title}", HEADS[title], *lines]))
    return "\n\n".join([f"## Image {number + 1}", *tables])


def _characters(story: StoryState, number: int, rng: Random) -> list[list[str]]:
    frame = story.frames[number]
    rows = []
    for place, figure in enumerate(frame.seen_figures):
        if place and rng.random() < QUIRKS["row missing"]:
            continue
        person = story.film.cast[figure.person]
        action = f"{figure.action.verbs[0].capitalize()} {rng.choice(figure.action.endings)}"
        rows.append(
            [
                story.ids.person(figure.person, number),
                person.name,
                _cell(_capital(person.look), rng),
                figure.action.emotion,
                action,
                FUNCTIONS[min(place, 2)],
                _box(frame, figure.box, rng),
            ]
        )
    missing = sorted(set(story.ids.people) - {figure.person for figure in frame.figures})
    if missing and rng.random() < QUIRKS["row of an absent character"]:
        absent = rng.choice(missing)
        rows.append(
            [
                story.ids.person(absent, number),
                story.film.cast[absent].name,
                "Partially visible figure",
                "Unknown",
                "None",
                "Background",
                _box(frame, (0, 0, 0, 0), rng),
            ]
        )
    return rows


def _objects(story: StoryState, frame: Frame, rng: Random) -> list[list[str]]:
    """Objects, landmarks and backgrounds in one table, as found."""
    rows = []
    for prop in frame.seen_props:
        thing = story.film.things[prop.thing]
        rows.append(
            [
                story.ids.things[prop.thing],
                _capital(thing.words),
                f"Everyday {thing.kind}",
                "None",
                "Prop",
                _box(frame, prop.box, rng),
            ]
        )
    if rng.random() >= QUIRKS["no landmark rows"]:
        for mark, box in seen_landmarks(frame).items():
            rows.append(
                [
                    story.ids.landmarks[frame.location.key, mark],
                    f"The {mark}",
                    "Part of the place",
                    "None",
                    "Sets the scene",
                    _box(frame, box, rng),
                ]
            )
    if rng.random() >= QUIRKS["no background row"]:
        rows.append(
            [
                story.ids.backgrounds[frame.location.key],
                _capital(frame.location.words),
                "Background",
                "None",
                "Setting",
                _full_box(),
            ]
        )
    return rows


def _setting(frame: Frame, rng: Random) -> list[list[str]]:
    mood = rng.choice(lexicon.MOOD_WORDS[frame.mood]).capitalize()
    time = "Unknown" if rng.random() < QUIRKS["time unknown"] else frame.lighting.time
    rows = [
        ["Location", _capital(frame.location.words), mood, time, "Place of the events"],
        ["Environment", "Indoor" if frame.location.indoor else "Outdoor", mood, time, "Frames the action"],
        ["Lighting", frame.lighting.name.capitalize(), mood, time, "Supports the mood"],
        ["Atmosphere", f"A {mood.lower()} atmosphere", mood, time, "Carries the emotion"],
    ]
    for row in rows:
        if rng.random() < QUIRKS["mood unknown"]:
            row[2] = "Unknown"
    return [rows[0], *(row for row in rows[1:] if rng.random() < 0.6)]


def _structure(story: StoryState, rng: Random) -> str:
    """Five phases; the images are named in prose of several styles."""
    frames, lines = story.frames, []
    for place, phase in enumerate(PHASES):
        first = place * len(frames) // len(PHASES)
        last = max(first, (place + 1) * len(frames) // len(PHASES) - 1)
        figure = frames[first].figures[0]
        name = story.film.cast[figure.person].name
        mood = rng.choice(lexicon.MOOD_WORDS[frames[first].mood])
        event = f"{name} {figure.action.verbs[0]} {rng.choice(figure.action.endings)}"
        lines.append(
            f"| {phase} | The mood is {mood} in {frames[first].location.words} "
            f"| {event} | {_images(first + 1, last + 1, rng)} |"
        )
    return "\n".join(["## Narrative Structure", "", HEADS["Narrative Structure"], *lines])


def _images(first: int, last: int, rng: Random) -> str:
    numbers = range(first, last + 1)
    if len(numbers) == 1:
        return f"Image {first}"
    return rng.choice(
        (
            ", ".join(f"Image {number}" for number in numbers),
            f"Images {first}-{last}",
            f"Images {', '.join(map(str, numbers[:-1]))} and {last}",
            f"Image {first} to Image {last}",
        )
    )


def _cell(words: str, rng: Random) -> str:
    return words.replace(" with ", " | with ") if rng.random() < QUIRKS["pipe in a cell"] else words


def _capital(words: str) -> str:
    return words[0].upper() + words[1:]


def _full_box() -> str:
    return f"0,0,{FRAME_SIZE[0]},{FRAME_SIZE[1]}"


def _box(frame: Frame, box: Box, rng: Random) -> str:
    """`x1,y1,x2,y2` in pixels of the frame; some reach up to a tenth beyond it, some are simply the whole frame."""
    fate = rng.random()
    if fate < QUIRKS["box is the frame"]:
        return _full_box()
    left, top, right, bottom = frame.in_view(box)
    if fate < QUIRKS["box is the frame"] + QUIRKS["box overshoots"]:
        right = round(FRAME_SIZE[0] * rng.uniform(1.0, 1.1))
        bottom = round(FRAME_SIZE[1] * rng.uniform(1.0, 1.1))
    return f"{left},{top},{right},{bottom}"
