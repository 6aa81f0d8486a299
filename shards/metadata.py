"""metadata.csv: scores, tags, splits, films, times and places of frames, one row a story.

Columns (names in any case, any order; others are ignored):

    story_id | video_id     required, unique
    story_score             required; a number, or empty: missing
    tags                    required; separated by commas or semicolons, may be empty
    split                   train, val (validation, valid, dev) or test; empty: decided by the split options
    movie                   the film that a story comes from
    timestamps              seconds of each frame, separated by commas, increasing, not negative
    frame_tags              frames separated by "|", tags by ";", each kind:value; replaces the tags read from the text
    frames_dir | frame_paths | video_path     where the frames are, relative to the CSV's folder; at most one of them

UTF-8 with or without a byte-order mark, any line ends. The header is row 1, as in a spreadsheet.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from shards.bad_story import BadStory
from shards.splits import SPLITS, split_name
from storydist.data.sample import TAG_KINDS, Tag

ID_COLUMNS = ("story_id", "video_id")
REQUIRED = ("story_score", "tags")
MEDIA_COLUMNS = ("frames_dir", "frame_paths", "video_path")
FRAME_TAG_KINDS = TAG_KINDS[1:]
MAX_SCORE = 3.0e38  # scores are kept as float32

OnBadRow = Callable[[BadStory], None]


@dataclass(frozen=True)
class MetadataRow:
    """One story's row. `number`: the header is 1. `media`: the field of the media column as written, "" without one."""

    number: int
    story_id: str
    score: float | None
    tags: tuple[str, ...]
    split: str | None
    movie: str | None
    times_s: tuple[float, ...] | None
    frame_tags: tuple[tuple[Tag, ...], ...] | None
    media: str


@dataclass(frozen=True)
class Metadata:
    """A whole file. `rows` by story id, in the file's order; `dropped`: ids of rows that were given to `on_bad_row`."""

    path: Path
    columns: tuple[str, ...]
    media_column: str | None
    rows: dict[str, MetadataRow]
    dropped: frozenset[str] = field(default_factory=frozenset)

    def where(self, row: MetadataRow, column: str) -> str:
        """Start of a message about one field."""
        return _where(self.path, row.number, row.story_id, column)


def read_metadata(path: str | Path, on_bad_row: OnBadRow | None = None) -> Metadata:
    """The file's rows. A wrong row is given to `on_bad_row` and left out, or raised as BadStory without one.

    Raises ValueError or FileNotFoundError for what is wrong with the file as a whole: missing, empty, not UTF-8, a
    column missing or twice, a story id twice.
    """
    path = Path(path)
    records = _records(path)
    columns = _columns(path, next(records, (1, []))[1])
    media = _one_of(path, columns, MEDIA_COLUMNS)
    rows: dict[str, MetadataRow] = {}
    seen: dict[str, int] = {}
    for number, cells in records:
        try:
            row = _row(path, number, columns, cells, media, seen)
        except BadStory as error:
            if on_bad_row is None:
                raise
            on_bad_row(error)
        else:
            rows[row.story_id] = row
    if not seen and not rows:
        raise ValueError(f"{path}: there is a header but no row below it; write one row a story")
    return Metadata(path, columns, media, rows, frozenset(seen) - frozenset(rows))


def _records(path: Path) -> Iterator[tuple[int, list[str]]]:
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder, not a metadata file; name the CSV in it")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such metadata file; check the path")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 text (byte {error.start}); save it as CSV in UTF-8") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)  # strict: a quote left open swallows no rows
    try:
        for number, cells in enumerate(reader, 1):
            if any(cell.strip() for cell in cells):
                yield number, cells
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: is not CSV ({error})") from None


def _columns(path: Path, header: list[str]) -> tuple[str, ...]:
    columns = tuple(cell.strip().lower() for cell in header)
    if not columns:
        raise ValueError(f"{path}: is empty; its first row must name the columns: story_id,story_score,tags")
    for separator, name in ((";", "semicolons"), ("\t", "tabs")):
        if len(columns) == 1 and separator in columns[0]:
            raise ValueError(f"{path}: the header {header[0]!r} is separated by {name}; save it with commas")
    twice = sorted({name for name in columns if name and columns.count(name) > 1})
    if twice:
        raise ValueError(f"{path}: column {', '.join(twice)} stands twice in the header; keep one")
    missing = [name for name in REQUIRED if name not in columns]
    if _one_of(path, columns, ID_COLUMNS) is None:
        missing.insert(0, "story_id (or video_id)")
    if missing:
        raise ValueError(
            f"{path}: column {', '.join(missing)} is missing; the header has {', '.join(columns)}. "
            "Add it (scores and tags may be left empty)"
        )
    return columns


def _one_of(path: Path, columns: tuple[str, ...], choices: tuple[str, ...]) -> str | None:
    found = [name for name in choices if name in columns]
    if len(found) > 1:
        raise ValueError(f"{path}: has columns {' and '.join(found)}; keep one of them")
    return found[0] if found else None


def _row(
    path: Path, number: int, columns: tuple[str, ...], cells: list[str], media: str | None, seen: dict[str, int]
) -> MetadataRow:
    values = dict(zip(columns, (cell.strip() for cell in cells), strict=False))
    id_column = ID_COLUMNS[0] if ID_COLUMNS[0] in columns else ID_COLUMNS[1]
    story_id = values.get(id_column, "")
    if not story_id:
        message = f"{path}, row {number}: column {id_column} is empty; write the story's id"
        raise BadStory(f"row {number}", id_column, "no story id", message)
    if story_id in seen:
        raise ValueError(
            f"{path}, row {number}: story {story_id} is already in row {seen[story_id]}; every story may have one row"
        )
    seen[story_id] = number
    fields = _Fields(path, number, story_id, values)
    if len(cells) > len(columns) and any(cell.strip() for cell in cells[len(columns) :]):
        raise fields.bad(
            columns[-1], "too many fields", f"the row has {len(cells)} fields, the header {len(columns)}",
            "put double quotes around a field that contains commas",
        )  # fmt: skip
    if len(cells) < len(columns):
        raise fields.bad(
            columns[len(cells)], "too few fields", f"the row has {len(cells)} fields, the header {len(columns)}",
            "leave a field empty rather than out",
        )  # fmt: skip
    return MetadataRow(
        number=number,
        story_id=story_id,
        score=fields.score(),
        tags=tuple(dict.fromkeys(_split_list(values.get("tags", "").lower()))),
        split=fields.split(),
        movie=values.get("movie") or None,
        times_s=fields.times_s(),
        frame_tags=fields.frame_tags(),
        media=fields.media(media),
    )


@dataclass(frozen=True)
class _Fields:
    """The fields of one row, each read or refused."""

    path: Path
    number: int
    story_id: str
    values: dict[str, str]

    def bad(self, column: str, reason: str, found: str, remedy: str) -> BadStory:
        where = _where(self.path, self.number, self.story_id, column)
        return BadStory(self.story_id, column, reason, f"{where}: {found}; {remedy}")

    def score(self) -> float | None:
        text = self.values.get("story_score", "")
        if not text:
            return None
        score = _number(text)
        remedy = "write a number such as 6.5, or leave the field empty if the score is unknown"
        if score is None:
            raise self.bad("story_score", "score is not a number", f"{text!r} is not a number", remedy)
        if not abs(score) <= MAX_SCORE:
            raise self.bad("story_score", "score is not finite", f"{text!r} is not a finite number", remedy)
        return score

    def split(self) -> str | None:
        text = self.values.get("split", "")
        name = split_name(text)
        if text and name is None:
            found = f"{text!r} is not a split"
            raise self.bad("split", "unknown split", found, f"use {', '.join(SPLITS)}, or leave it empty")
        return name

    def times_s(self) -> tuple[float, ...] | None:
        texts = _split_list(self.values.get("timestamps", ""))
        if not texts:
            return None
        times = [_number(text) for text in texts]
        column, remedy = "timestamps", "write seconds, increasing and from 0, such as 0.0,0.8,1.6"
        for text, time in zip(texts, times, strict=True):
            if time is None or not math.isfinite(time):
                raise self.bad(column, "timestamp is not a number", f"{text!r} is not a number of seconds", remedy)
            if time < 0:
                raise self.bad(column, "timestamp is negative", f"{text} is negative", remedy)
        numbers = [time for time in times if time is not None]
        for before, after in pairwise(numbers):
            if after <= before:
                raise self.bad(column, "timestamps do not increase", f"{after:g} follows {before:g}", remedy)
        return tuple(numbers)

    def frame_tags(self) -> tuple[tuple[Tag, ...], ...] | None:
        text = self.values.get("frame_tags", "")
        return tuple(self._tags_of_frame(frame) for frame in text.split("|")) if text else None

    def _tags_of_frame(self, text: str) -> tuple[Tag, ...]:
        tags = []
        for item in filter(None, (part.strip() for part in text.split(";"))):
            kind, _, value = (part.strip().lower() for part in item.partition(":"))
            if kind not in FRAME_TAG_KINDS or not value:
                remedy = f"write kind:value with kind one of {', '.join(FRAME_TAG_KINDS)}"
                raise self.bad("frame_tags", "malformed frame tag", f"{item!r} is not a tag", remedy)
            tags.append(Tag(kind, value))
        return tuple(dict.fromkeys(tags))

    def media(self, column: str | None) -> str:
        text = self.values.get(column, "") if column else ""
        if column and not text:
            raise self.bad(column, "no frames", "the field is empty", "write where the story's frames are")
        return text


def _where(path: Path, number: int, story_id: str, column: str) -> str:
    return f"{path}, row {number} (story {story_id}), column {column}"


def _split_list(text: str) -> list[str]:
    return [item for item in (part.strip() for part in re.split("[,;]", text)) if item]


def _number(text: str) -> float | None:
    try:
        return float(text) if "_" not in text else None
    except ValueError:
        return None
