"""What our own stories tell of themselves: enough to write the index of a shard set that has lost it.

The stories' members are those of storydist/data/sample.py, whoever packed them. Frames are not decoded: the shape of an
array, and the size of each story's first image, are taken from their headers.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from shards.grouping import FoundSample
from shards.pack import MAX_FRAMES
from shards.plan import NO_TAGS
from shards.rows import GrowingRows
from storydist.data.frames import frame_size
from storydist.data.npy import npy_shape
from storydist.data.sample import TAG_KINDS, UNKNOWN_TAG, Sample, decode
from storydist.data.tar import MAX_NAME_BYTES
from storydist.data.text import Wordpieces

NEEDED = ("wordpieces.npy", "lengths.npy", "tags.npy", "characters.npy", "times.npy", "json")
MAX_LOADED_BYTES = 1 << 26  # of a member that is read as a whole
MAX_TAG_ID = 1_000_000  # the vocabulary is a list, with a place for every id below
_RAW, _FIRST_IMAGES = "frames.npy", ("000.jpg", "000.png")
_NPY_HEADER_BYTES = 4096
_LAST_KIND = len(TAG_KINDS) - 1
_MAX_SCORE = float(np.finfo(np.float32).max)


@dataclass
class StoryFacts:
    """What the stories of one tar say beyond their rows.

    `split`: the same for all, None if none says any. `tags`: (kind, value) by id, where the words are there too;
    `max_tag`: the highest id. `raw`: frames are arrays, not images. `sizes`: (height, width) of the arrays, or of each
    story's first image; `resized`: such an image has another size than its story gives for the source; `png`: one of
    the images is PNG.
    """

    split: str | None = None
    tags: dict[int, tuple[str, str]] = field(default_factory=dict)
    max_tag: int = UNKNOWN_TAG
    sizes: set[tuple[int, int]] = field(default_factory=set)
    raw: bool = False
    resized: bool = False
    png: bool = False


def lacking(sample: FoundSample) -> list[str]:
    """The members that keep a sample from being one of our stories; none if it is one."""
    missing = [suffix for suffix in NEEDED if suffix not in sample.members]
    has_frames = any(suffix in sample.members for suffix in (_RAW, *_FIRST_IMAGES))
    return missing if has_frames else [*missing, f"{_RAW} or {_FIRST_IMAGES[0]}"]


@dataclass
class StoryScanner:
    """Reads the stories of one tar, open as `descriptor`, into `rows` and `facts`."""

    path: Path
    descriptor: int
    wordpieces: Wordpieces
    rows: GrowingRows
    facts: StoryFacts = field(default_factory=StoryFacts)

    def add(self, sample: FoundSample) -> None:
        """Takes in one story. Raises ValueError naming tar, offset and sample when it cannot be used."""
        try:
            story = self._decode(sample)
            self._check_wordpieces(story)
            self._take_split(story.meta)
            _learn_tags(self.facts, story)
            self._look_at_frames(sample, story)
            members = [(suffix, *place) for suffix, place in sample.members.items()]
            self.rows.add(_story_id(story.meta), story.num_frames, _score(story.meta), members)
            self.rows.add_descriptions(story.wordpieces, story.lengths)
        except ValueError as error:
            named = str(error) if str(error).startswith("sample ") else f"sample {sample.key}: {error}"
            raise ValueError(f"{self.path}: at offset {sample.offset}: {named}") from None

    def _decode(self, sample: FoundSample) -> Sample:
        """The story without its pixels: checked as a reader will check it, its frames counted."""
        missing = lacking(sample)
        if missing:
            raise ValueError(
                f"has no {', '.join(missing)}, but the samples before it are stories of ours; if it is none, move it "
                "elsewhere, or index all as plain members (--members)"
            )
        images = {suffix: b"" for suffix in sample.members if suffix.endswith((".jpg", ".png"))}
        if _RAW in sample.members:
            images = {f"{number:03d}.jpg": b"" for number in range(self._raw_shape(sample)[0])}
        story = decode(sample.key, {**images, **{suffix: self._load(sample, suffix) for suffix in NEEDED}})
        if not isinstance(story.meta, dict):
            raise ValueError(f"member json holds a {type(story.meta).__name__}, needed an object")
        if story.num_frames > MAX_FRAMES:
            raise ValueError(f"{story.num_frames} frames, at most {MAX_FRAMES} are indexed")
        return story

    def _raw_shape(self, sample: FoundSample) -> tuple[int, ...]:
        offset, size, _ = sample.members[_RAW]
        header = os.pread(self.descriptor, min(size, _NPY_HEADER_BYTES), offset)
        try:
            shape, _ = npy_shape(header, size, "|u1", (None, None, None, 3))
        except ValueError as error:
            raise ValueError(f"member {_RAW}: {error}") from None
        if shape[0] > MAX_FRAMES or 0 in shape:
            raise ValueError(f"member {_RAW}: is {shape}, needed 1 to {MAX_FRAMES} frames and at least a pixel")
        return shape

    def _load(self, sample: FoundSample, suffix: str) -> bytes:
        offset, size, _ = sample.members[suffix]
        if size > MAX_LOADED_BYTES:
            raise ValueError(f"member {suffix} has {size} bytes, at most {MAX_LOADED_BYTES} are read")
        return os.pread(self.descriptor, size, offset)

    def _check_wordpieces(self, story: Sample) -> None:
        size, found = self.wordpieces.vocabulary_size, story.wordpieces
        advice = "name the tokenizer that they were made with: --tokenizer"
        if len(found) and not 0 <= found.min() <= found.max() < size:
            raise ValueError(f"wordpieces up to {found.max()}, the tokenizer has {size}; {advice}")
        texts = story.meta.get("texts")
        if len(self.rows) or not isinstance(texts, list):
            return  # one story of a tar is compared word by word, which finds another tokenizer of the same size
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("member json gives texts that are no texts")
        flat, lengths = self.wordpieces.encode(texts)
        if not np.array_equal(flat, found) or not np.array_equal(lengths, story.lengths):
            raise ValueError(f"its wordpieces are not those that the tokenizer makes of its texts; {advice}")

    def _take_split(self, meta: dict[str, Any]) -> None:
        split = meta.get("split")
        if split is not None and not isinstance(split, str):
            raise ValueError(f"member json gives the split {split!r}, needed a name")
        if len(self.rows) and split != self.facts.split:
            raise ValueError(f"is of split {split!r}, those before it of {self.facts.split!r}; a tar holds one split")
        self.facts.split = split

    def _look_at_frames(self, sample: FoundSample, story: Sample) -> None:
        facts = self.facts
        raw = _RAW in sample.members
        if len(self.rows) and raw != facts.raw:
            raise ValueError("its frames are images, those of other stories arrays, or the other way round")
        facts.raw = raw
        if raw:
            height, width = self._raw_shape(sample)[1:3]
            facts.sizes.add((height, width))
            return
        suffix = next(suffix for suffix in _FIRST_IMAGES if suffix in sample.members)
        try:
            size = frame_size(self._load(sample, suffix))
        except ValueError as error:
            raise ValueError(f"member {suffix}: {error}") from None
        sources = story.meta.get("source_sizes")
        facts.sizes.add(size)
        facts.resized |= isinstance(sources, list) and len(sources) > 0 and sources[0] != list(size)
        facts.png |= any(suffix.endswith(".png") for suffix in sample.members)


def _story_id(meta: dict[str, Any]) -> str:
    story_id = meta.get("story_id")
    if not isinstance(story_id, str) or not 0 < len(story_id.encode()) <= MAX_NAME_BYTES or story_id.endswith("\0"):
        raise ValueError(f"member json gives the story_id {str(story_id)[:80]!r}, needed a text")
    return story_id


def _score(meta: dict[str, Any]) -> float | None:
    score = meta.get("score")
    if score is None:
        return None
    if isinstance(score, bool) or not isinstance(score, int | float) or not abs(score) < _MAX_SCORE:
        raise ValueError(f"member json gives the score {str(score)[:80]}, needed a number or null")
    return float(score)


def _learn_tags(facts: StoryFacts, story: Sample) -> None:
    """Words of tags beside their ids: the rows of tags.npy are the json's tags in order."""
    frames, ids, kinds = story.tags[:, 0], story.tags[:, 1], story.tags[:, 2]
    bounds = {"frame": (frames, -1, story.num_frames - 1), "tag": (ids, 1, MAX_TAG_ID), "kind": (kinds, 0, _LAST_KIND)}
    for column, (values, low, high) in bounds.items():
        if len(values) and not low <= values.min() <= values.max() <= high:
            found = f"{values.min()} to {values.max()}"
            raise ValueError(f"member tags.npy, column {column}: {found}, needed {low} to {high}")
    facts.max_tag = max(facts.max_tag, int(ids.max(initial=UNKNOWN_TAG)))
    words = _tag_words(story.meta)
    if words is None:
        return
    if [(frame, kind) for frame, kind, _ in words] != list(zip(frames.tolist(), kinds.tolist(), strict=True)):
        raise ValueError("members tags.npy and json do not have the same tags")
    for tag, (_, kind, value) in zip(ids.tolist(), words, strict=True):
        if tag != UNKNOWN_TAG and facts.tags.setdefault(tag, (TAG_KINDS[kind], value)) != (TAG_KINDS[kind], value):
            raise ValueError(f"tag {tag} is {value!r} here and {facts.tags[tag][1]!r} in a story before")


def _tag_words(meta: dict[str, Any]) -> list[tuple[int, int, str]] | None:
    """(frame or -1, kind id, value) of the tags in a json, None when it has none in words."""
    if "story_tags" not in meta or "frame_tags" not in meta:
        return None
    try:
        words = [(-1, TAG_KINDS.index("story"), value) for value in meta["story_tags"]]
        for frame, tags in enumerate(meta["frame_tags"]):
            words += [(frame, TAG_KINDS.index(kind), value) for kind, value in tags]
    except (TypeError, ValueError) as error:
        raise ValueError(f"member json, story_tags or frame_tags: {error}") from None
    if not all(isinstance(value, str) for *_, value in words):
        raise ValueError("member json, story_tags or frame_tags: a tag is no text")
    return words


def merged_facts(names: Sequence[str], facts: Sequence[StoryFacts]) -> dict[str, Any]:
    """frames, height, width and tag_vocabulary (as IndexInfo has them) of a set, from its tars' names and facts.

    Images count as encoded again for the set ("jpeg") when they are JPEG of one size, which is not that of their
    sources; otherwise as found ("original"). A tag id that no story shows keeps its place under a made-up value. Raises
    ValueError naming the tars when two are of different builds.
    """
    for name, own in zip(names, facts, strict=True):
        if own.raw != facts[0].raw:
            raise ValueError(f"the frames of {name} are {_form(own)}, those of {names[0]} {_form(facts[0])}")
    sizes = set().union(*(own.sizes for own in facts))
    if facts[0].raw and len(sizes) > 1:
        raise ValueError(f"the arrays of frames have different sizes, {sorted(sizes)[:4]}; a set has one")
    again = any(own.resized for own in facts) and len(sizes) == 1 and not any(own.png for own in facts)
    height, width = min(sizes) if facts[0].raw or again else (None, None)
    frames = "raw" if facts[0].raw else "jpeg" if again else "original"
    return {"frames": frames, "height": height, "width": width, "tag_vocabulary": _vocabulary(names, facts)}


def _form(facts: StoryFacts) -> str:
    return "arrays" if facts.raw else "images"


def _vocabulary(names: Sequence[str], facts: Sequence[StoryFacts]) -> list[tuple[str, str]]:
    tags: dict[int, tuple[str, str]] = {}
    for name, own in zip(names, facts, strict=True):
        for number, tag in own.tags.items():
            if tags.setdefault(number, tag) != tag:
                raise ValueError(f"tag {number} is {tag[1]!r} in {name}, {tags[number][1]!r} in a tar before it")
    last = max(own.max_tag for own in facts)
    return [*NO_TAGS, *(tags.get(number, ("", f"<lost {number}>")) for number in range(len(NO_TAGS), last + 1))]
