"""Chain of thought -> typed tables: who, what and where in each image, and the narrative's phases.

StoryReasoning writes markdown: `## Image N` with tables `### Characters`, `### Objects`, `### Setting`, then
`## Narrative Structure`. Tables may be missing, empty or without their headings; objects are listed together with
places; boxes may leave the image; a "|" inside a cell makes a row too long. Nothing raises; lines that are no table
rows are kept in `notes`. What a table says of an image often disagrees with the story: check before joining by id.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from storydist.data.markup import kind_of

Box = tuple[float, float, float, float]

_IMAGE_HEADING = re.compile(r"\s*#+\s*\**\s*image\s*#?(\d{1,6})\b", re.IGNORECASE)
_HEADING = re.compile(r"\s*#+\s*\**\s*(characters?|objects?|settings?|narrative structure)\b", re.IGNORECASE)
_RULE = frozenset(" \t|:+=-")  # all that the line below a table's header is made of
_PIPE = re.compile(r"(?<!\\)\|")
_BOX = re.compile(r"[\[(]?\s*" + r"\s*,\s*".join([r"(-?\d+(?:\.\d+)?)"] * 4) + r"\s*[\])]?$")
_COLUMNS = {
    "characters": (
        "character id", "name", "description", "emotions", "actions", "narrative function", "bounding box"
    ),
    "objects": ("object id", "description", "function", "interaction", "narrative function", "bounding box"),
    "settings": ("setting element", "description", "mood", "time", "narrative function"),
    "narrative": ("narrative phase", "description", "key events", "images"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Character:
    """A row of a Characters table; `box`: x1, y1, x2, y2 in pixels as written, None if there is none."""

    id: str
    name: str
    description: str
    emotions: str
    actions: str
    narrative_function: str
    box: Box | None


@dataclass(frozen=True, slots=True)
class Thing:
    """A row of an Objects table, which holds places too; `kind` by the id: object, location, or "" if it tells none."""

    id: str
    kind: str
    description: str
    function: str
    interaction: str
    narrative_function: str
    box: Box | None


@dataclass(frozen=True, slots=True)
class Setting:
    """A row of a Setting table; `mood` and `time` are often "Unknown"."""

    element: str
    description: str
    mood: str
    time: str
    narrative_function: str


@dataclass(frozen=True, slots=True)
class Phase:
    """A row of the narrative structure; `images` is prose ("Image 1-3")."""

    phase: str
    description: str
    key_events: str
    images: str


@dataclass(frozen=True, slots=True)
class ImageTables:
    """What is said of one image, tables in order of their rows."""

    image: int
    characters: tuple[Character, ...]
    objects: tuple[Thing, ...]
    settings: tuple[Setting, ...]


@dataclass(frozen=True, slots=True)
class ChainOfThought:
    """All tables of a story; `notes`: every other line of text except headings."""

    images: tuple[ImageTables, ...]
    narrative: tuple[Phase, ...]
    notes: tuple[str, ...]

    def names(self) -> dict[str, str]:
        """Character id -> its first name in the tables. Two ids may share a name."""
        rows = (row for image in self.images for row in image.characters)
        return {row.id: row.name for row in reversed(list(rows)) if row.name}

    def descriptions(self) -> dict[str, str]:
        """Object or place id -> its first description in the tables."""
        rows = (row for image in self.images for row in image.objects)
        return {row.id: row.description for row in reversed(list(rows)) if row.description}


def parse_chain_of_thought(text: str) -> ChainOfThought:
    """Typed tables of a chain of thought. Never raises; "" gives no images and no phases."""
    reader = _Reader()
    for line in text.splitlines():
        reader.read(line)
    return reader.finish()


def clip_box(box: Box, width: int, height: int) -> Box | None:
    """`box` inside an image of `width` x `height` pixels, corners in order; None if nothing of it lies inside."""
    left, right = sorted((min(max(box[0], 0), width), min(max(box[2], 0), width)))
    top, bottom = sorted((min(max(box[1], 0), height), min(max(box[3], 0), height)))
    return (left, top, right, bottom) if right > left and bottom > top else None


@dataclass(slots=True)
class _Reader:
    """Line by line; the table in hand is known by its heading, or by its first column's name without one."""

    images: list[ImageTables] = field(default_factory=list)
    narrative: list[Phase] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    image: int | None = None
    section: str = ""
    columns: Sequence[str] = ()
    rows: dict[str, list] = field(default_factory=dict)

    def read(self, line: str) -> None:
        if image := _IMAGE_HEADING.match(line):
            self._close_image()
            self.image, self.section = int(image.group(1)), ""
        elif heading := _HEADING.match(line):
            self._enter(heading.group(1).lower())
        elif set(line) <= _RULE:
            return
        elif "|" in line:
            self._read_row(line, _cells(line))
        else:
            self.notes.append(line.strip())

    def _enter(self, heading: str) -> None:
        if heading.startswith("narrative"):
            self._close_image()
        sections = {"c": "characters", "o": "objects", "s": "settings", "n": "narrative"}
        self.section = sections[heading[0]]
        self.columns = _COLUMNS[self.section]

    def _read_row(self, line: str, cells: list[str]) -> None:
        names = [cell.lower() for cell in cells]
        for section, columns in _COLUMNS.items():
            if names[0] == columns[0] and set(names) <= set(columns):
                if section == "narrative":
                    self._close_image()
                self.section, self.columns = section, names
                return
        if not any(cells):
            return
        if not self.section or (self.image is None and self.section != "narrative"):
            self.notes.append(line.strip())
            return
        row = dict(zip(self.columns, _fit(cells, self.columns), strict=True))
        if self.section == "narrative":
            self.narrative.append(Phase(*(row.get(name, "") for name in _COLUMNS["narrative"])))
        else:
            self.rows.setdefault(self.section, []).append(_ROWS[self.section](row))

    def _close_image(self) -> None:
        if self.image is not None:
            tables = (tuple(self.rows.get(name, ())) for name in ("characters", "objects", "settings"))
            self.images.append(ImageTables(self.image, *tables))
        self.image, self.rows = None, {}

    def finish(self) -> ChainOfThought:
        self._close_image()
        return ChainOfThought(tuple(self.images), tuple(self.narrative), tuple(self.notes))


def _cells(line: str) -> list[str]:
    line = line.strip()
    line = line.removeprefix("|")
    if line.endswith("|") and not line.endswith("\\|"):
        line = line[:-1]
    return [cell.replace("\\|", "|").strip().strip("*`").strip() for cell in _PIPE.split(line)]


def _fit(cells: list[str], columns: Sequence[str]) -> list[str]:
    """One cell a column. A row that is too long had a "|" in its free text: the description takes what is over. In a
    row that is too short a box still goes to the box column."""
    over = len(cells) - len(columns)
    if over > 0:
        place = columns.index("description") if "description" in columns else 0
        merged = " | ".join(cells[place : place + over + 1])
        return [*cells[:place], merged, *cells[place + over + 1 :]]
    padding = [""] * -over
    if over < 0 and columns[-1] == "bounding box" and _BOX.match(cells[-1]):
        return [*cells[:-1], *padding, cells[-1]]
    return [*cells, *padding]


def _box(cell: str) -> Box | None:
    numbers = _BOX.match(cell)
    if not numbers:
        return None
    x1, y1, x2, y2 = (float(number) for number in numbers.groups())
    return x1, y1, x2, y2


def _character(row: dict[str, str]) -> Character:
    return Character(
        id=row["character id"].lower(),
        name=row.get("name", ""),
        description=row.get("description", ""),
        emotions=row.get("emotions", ""),
        actions=row.get("actions", ""),
        narrative_function=row.get("narrative function", ""),
        box=_box(row.get("bounding box", "")),
    )


def _thing(row: dict[str, str]) -> Thing:
    return Thing(
        id=row["object id"].lower(),
        kind=kind_of(row["object id"]) or "",
        description=row.get("description", ""),
        function=row.get("function", ""),
        interaction=row.get("interaction", ""),
        narrative_function=row.get("narrative function", ""),
        box=_box(row.get("bounding box", "")),
    )


def _setting(row: dict[str, str]) -> Setting:
    return Setting(*(row.get(name, "") for name in _COLUMNS["settings"]))


_ROWS = {"characters": _character, "objects": _thing, "settings": _setting}
