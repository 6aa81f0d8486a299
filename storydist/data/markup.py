"""Story markup -> typed annotations: one segment a frame, with its plain text and the mentions in it.

The markup is StoryReasoning's (https://huggingface.co/datasets/daniel3303/StoryReasoning): `<gdi imageN>` around each
frame's description; inside it `<gdo char1>` entities, `<gda char1>` actions and `<gdl bg1>` places. It was written by
a language model, so nothing is taken for granted:

- any `</gdo>`, `</gda>`, `</gdl>` closes the innermost open tag; a closer without an opener is dropped;
- tags left open close at the end of their segment, a segment at the next `<gdi` or at the end of the text;
- an entity's kind is read from its id (char, obj, bg, lm), not from its tag; only `gda` always means an action;
- text outside of the segments is kept (`preamble`, `Segment.trailing`).

Parsing never raises and loses no word. Linear in the length of the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

# The second form is a tag whose ">" is missing: only ids are taken, so that no word of the text goes with it.
_TAG = re.compile(
    r"<\s*(?P<close>/?)\s*gd(?P<letter>[ioal])\b"
    r"(?:(?P<ids>[^<>]*)>|(?P<bare_ids>(?:[\s,;]*(?:char|obj|bg|lm|image)\d+\b)*))",
    re.IGNORECASE,
)
_ID = re.compile(r"\b(?:char|obj|bg|lm|image|[a-z_]+(?=\d))[\w-]*", re.IGNORECASE)
_NUMBER = re.compile(r"\d+")
_RUN = re.compile(r"\S+")
_KIND_BY_PREFIX = {"char": "character", "obj": "object", "bg": "location", "lm": "location"}
_KIND_BY_LETTER = {"o": "object", "a": "action", "l": "location"}
# What may not be pushed away from the word before it, when only a tag stood between them.
_ATTACHED = re.compile(r"[.,;:!?)\]}…%]|['’](?:s|S|d|m|t|re|ve|ll)?(?!\w)")
# Endings that writers put behind a closing tag: `<gdo obj1>car</gdo>s`.
_ENDING = re.compile(r"(?:e?s|e?d|ing|ly)\b")


@dataclass(frozen=True, slots=True)
class Mention:
    """One tag in a segment. `kind`: character, object, location or action. `ids`: lower case, in order, each once; may
    be empty. `text` == segment.text[start:end]; may be empty."""

    kind: str
    ids: tuple[str, ...]
    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Segment:
    """One frame's description. `image`: the number in the tag, else one more than the segment before. `text`: plain,
    all white space as single spaces. `mentions`: in order of their opening tags. `trailing`: plain text behind the
    segment's end."""

    image: int
    text: str
    mentions: tuple[Mention, ...]
    trailing: str = ""


@dataclass(frozen=True, slots=True)
class StoryMarkup:
    """A story's segments in order of the text; `preamble`: plain text before the first."""

    preamble: str
    segments: tuple[Segment, ...]

    def plain_text(self) -> str:
        """Every word of the story, in order, without tags."""
        parts = [self.preamble]
        for segment in self.segments:
            parts += [segment.text, segment.trailing]
        return " ".join(part for part in parts if part)

    def in_image_order(self) -> tuple[Segment, ...]:
        """Segments by image number; equal numbers keep the order of the text."""
        return tuple(sorted(self.segments, key=lambda segment: segment.image))


def parse_story(text: str) -> StoryMarkup:
    """Typed annotations of a story. Never raises; a text without `<gdi` is all preamble."""
    preamble, segments = "", list[Segment]()
    for image, plain, mentions in _passages(text):
        if image is not None:
            segments.append(Segment(image, plain, mentions))
        elif not segments:
            preamble = plain
        elif plain:
            segments[-1] = replace(segments[-1], trailing=plain)
    return StoryMarkup(preamble, tuple(segments))


def kind_of(entity_id: str) -> str | None:
    """Kind of an entity by its id's prefix: character, object or location; None for any other id."""
    prefix = re.match(r"[a-z]*", entity_id.lower())
    return _KIND_BY_PREFIX.get(prefix.group() if prefix else "")


def characters_mentioned(segment: Segment) -> tuple[str, ...]:
    """Ids of the characters that a segment names or lets act, in order of first mention."""
    ids = (entity_id for mention in segment.mentions for entity_id in mention.ids)
    return tuple(dict.fromkeys(entity_id for entity_id in ids if kind_of(entity_id) == "character"))


def _passages(text: str) -> Iterator[tuple[int | None, str, tuple[Mention, ...]]]:
    """(image number, or None between segments; plain text; mentions), end to end over the whole text."""
    passage, previous = _Passage(), 0
    image: int | None = None
    for tag, words in _tokens(text):
        if tag is None:
            passage.add(words)
        elif tag["letter"].lower() != "i":
            if tag["close"]:
                passage.close()
            else:
                passage.open(tag["letter"].lower(), _ids(tag))
        elif not tag["close"] or image is not None:
            yield image, *passage.finish()
            passage, image = _Passage(), None if tag["close"] else _image_number(tag, previous)
            previous = previous if image is None else image
        else:
            passage.cross()
    yield image, *passage.finish()


def _tokens(text: str) -> Iterator[tuple[re.Match[str] | None, str]]:
    """(None, words) and (tag, "") in order of the text."""
    position = 0
    for tag in _TAG.finditer(text):
        if tag.start() > position:
            yield None, text[position : tag.start()]
        yield tag, ""
        position = tag.end()
    if position < len(text):
        yield None, text[position:]


def _ids(tag: re.Match[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(found.lower() for found in _ID.findall(tag["ids"] or tag["bare_ids"] or "")))


def _image_number(tag: re.Match[str], previous: int) -> int:
    number = _NUMBER.search(tag["ids"] or tag["bare_ids"] or "")
    # More digits than any story has frames is damage, not a number.
    return int(number.group()) if number and len(number.group()) <= 6 else previous + 1


@dataclass(slots=True)
class _Open:
    """A tag that has been opened; `start` is None until its first word."""

    kind: str
    ids: tuple[str, ...]
    start: int | None = None
    end: int | None = None


@dataclass(slots=True)
class _Passage:
    """Plain text and mentions of one segment while it is read. White space is only written with the next word, so that
    the text before a tag decides nothing that the text behind it must undo."""

    pieces: list[str] = field(default_factory=list)
    length: int = 0
    last: str = ""  # last character written
    space: bool = False  # white space since then
    crossed: str = ""  # tags since then: "" none, "/" only closing ones, "<" an opening one too
    opened: list[_Open] = field(default_factory=list)
    stack: list[_Open] = field(default_factory=list)
    unplaced: list[_Open] = field(default_factory=list)

    def open(self, letter: str, ids: tuple[str, ...]) -> None:
        kind = _KIND_BY_LETTER[letter]
        if kind != "action" and ids:
            kind = kind_of(ids[0]) or kind
        entry = _Open(kind, ids)
        self.opened.append(entry)
        self.stack.append(entry)
        self.unplaced.append(entry)
        self.crossed = "<"

    def close(self) -> None:
        if self.stack:
            self.stack.pop().end = self.length
        self.cross()

    def cross(self) -> None:
        """A closing tag, or one without an effect, stands here."""
        self.crossed = self.crossed or "/"

    def add(self, text: str) -> None:
        for run in _RUN.finditer(text):
            self.space = self.space or run.start() > 0
            self._write(run.group())
        self.space = self.space or text[-1:].isspace()

    def _write(self, word: str) -> None:
        if self.pieces and self._gap(word):
            self.pieces.append(" ")
            self.length += 1
        for entry in self.unplaced:
            if entry.end is None:
                entry.start = self.length
        self.unplaced.clear()
        self.pieces.append(word)
        self.length += len(word)
        self.last, self.space, self.crossed = word[-1], False, ""

    def _gap(self, word: str) -> bool:
        """Whether a space goes before `word`."""
        if self.space:
            return not (self.crossed and _ATTACHED.match(word))
        if not self.crossed or not word[0].isalnum():
            return False
        if self.crossed == "/" and self.last.isalnum() and _ENDING.match(word):
            return False
        return self.last.isalnum() or self.last in ".,;:!?"

    def finish(self) -> tuple[str, tuple[Mention, ...]]:
        text = "".join(self.pieces)
        return text, tuple(_mention(entry, text) for entry in self.opened)


def _mention(entry: _Open, text: str) -> Mention:
    end = len(text) if entry.end is None else entry.end
    start = end if entry.start is None else entry.start
    return Mention(entry.kind, entry.ids, text[start:end], start, end)
