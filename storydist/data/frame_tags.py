"""What a frame shows, as typed tags: read from a segment's mentions, named by the chain of thought's tables.

Values are short and lower-case, so that a vocabulary of them repeats from story to story:

- character: the name in the tables, whichever image it stands in; without one, the words of the mention;
- object, location: the head word of the mention ("a small box of tools" -> "box");
- action: the words of the mention, only the first of them if there are more than two.

A pronoun names nothing: its mention is read from the tables by id, or gives no tag.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from storydist.data.chain_of_thought import ChainOfThought
from storydist.data.markup import Mention, Segment, kind_of
from storydist.data.sample import Tag

_WORD = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*")
_POSSESSIVE = re.compile(r"['’]s$")
_DETERMINERS, _PRONOUNS, _PREPOSITIONS = (
    frozenset(words.split())
    for words in (
        "a an the this that these those his her its their my your our some any another each every one two three",
        "he she it they him them who whom which that this these those i we us you me himself herself itself themselves "
        "one both all others someone everyone somebody nobody here there his her its their",
        "of in on at with without under over behind beside near from to into onto by for against between among around "
        "across through above below beneath beyond inside outside along and or that which who",
    )
)
_NO_NAMES = frozenset(("unidentified", "unknown", "unnamed", "none", "n", "na"))


def frame_tags(segment: Segment, tables: ChainOfThought) -> tuple[Tag, ...]:
    """Tags of one frame, each once, in order of first mention; kinds character, object, location, action."""
    names, descriptions = tables.names(), tables.descriptions()
    tags = (tag for mention in segment.mentions for tag in _tags(mention, names, descriptions))
    return tuple(dict.fromkeys(tags))


def _tags(mention: Mention, names: dict[str, str], descriptions: dict[str, str]) -> Iterator[Tag]:
    if mention.kind == "action":
        words = _words(mention.text)
        if words:
            yield Tag("action", " ".join(words if len(words) <= 2 else words[:1]))
        return
    for entity_id in mention.ids or ("",):
        # Several ids may share a tag, each of its own kind.
        kind = kind_of(entity_id) or mention.kind
        if kind == "character":
            # Words shared by several characters ("the two men") name none of them.
            own_words = mention.text if len(mention.ids) <= 1 else ""
            value = _name(names.get(entity_id, "")) or _name(own_words)
        else:
            value = _head(mention.text) or _head(descriptions.get(entity_id, ""))
        if value:
            yield Tag(kind, value)


def _words(text: str) -> list[str]:
    return [_POSSESSIVE.sub("", word) for word in _WORD.findall(text.lower())]


def _name(text: str) -> str:
    words = _words(text)
    if words and words[0] in _DETERMINERS and len(words) > 1:
        words = words[1:]
    if not words or words[0] in _NO_NAMES or (len(words) == 1 and words[0] in _PRONOUNS):
        return ""
    return " ".join(words)


def _head(text: str) -> str:
    """Last word of the first noun phrase; "" for a pronoun."""
    words = _words(re.split(r"[,;:.()]", text.strip(" ,;:.()"), maxsplit=1)[0])
    while len(words) > 1 and words[0] in _DETERMINERS:
        words = words[1:]
    if not words or (len(words) == 1 and words[0] in _PRONOUNS):
        return ""
    for place, word in enumerate(words[1:], 1):
        if word in _PREPOSITIONS:
            return words[place - 1]
    return words[-1]
