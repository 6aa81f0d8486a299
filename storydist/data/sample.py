"""One story: as a source gives it (`Story`) and as it lies in a tar (`Sample`); encode and decode.

A sample's tar members, in this order (S frames, T wordpieces, N tags, P characters, H W image):

    KEY.frames.npy             uint8 [S, H, W, 3], or instead KEY.000.jpg, KEY.001.jpg ... (.png where a source had PNG)
    KEY.wordpieces.npy         int32 [T]: all descriptions end to end, without special tokens
    KEY.lengths.npy            int32 [S]: wordpieces of each frame's description, may be 0
    KEY.tags.npy               int32 [N, 3]: frame (-1: the story's own), tag id, kind id (position in TAG_KINDS)
    KEY.characters.npy         uint8 [S, P]: 1 where a frame mentions a character; columns by first mention
    KEY.times.npy              float32 [S]: seconds from the first frame, NaN: unknown
    KEY.json                   ids, split, score, texts, tags in words
    KEY.story.txt, KEY.chain_of_thought.txt, KEY.annotations.json     raw text and its typed parse

KEY is `split-position`, eight digits, no dots. The bytes are a function of the content alone.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from storydist.data.chain_of_thought import ChainOfThought
from storydist.data.markup import StoryMarkup
from storydist.data.npy import from_npy, to_npy

TAG_KINDS = ("story", "character", "object", "action", "location")  # a kind's id is its position
PAD_TAG, UNKNOWN_TAG = 0, 1  # tag ids that stand for no value
TEXT_SUFFIXES = ("story.txt", "chain_of_thought.txt", "annotations.json")  # last in a tar; training does not need them
IMAGE_SUFFIX = re.compile(r"(\d{3,5})\.(?:jpg|png)")


class Tag(NamedTuple):
    """What a frame shows: `kind` is one of TAG_KINDS, `value` lower-case text."""

    kind: str
    value: str


@dataclass(frozen=True)
class Story:
    """One story as a source gives it, before tokenising and resizing. S frames."""

    story_id: str
    split: str
    movie: str | None
    score: float | None  # None: missing
    story_tags: tuple[str, ...]
    images: tuple[bytes, ...]  # S files as found, JPEG or PNG; () when only text was asked for
    times_s: tuple[float, ...] | None  # seconds from the first frame; None: unknown
    texts: tuple[str, ...]  # S plain descriptions, may be ""
    frame_tags: tuple[tuple[Tag, ...], ...]  # S
    characters: tuple[tuple[str, ...], ...]  # S: ids of the characters that a frame mentions
    story: str  # raw text as found, "" if none
    chain_of_thought: str  # raw text as found, "" if none
    markup: StoryMarkup  # parse of `story`
    tables: ChainOfThought  # parse of `chain_of_thought`


@dataclass(frozen=True, eq=False)
class Sample:
    """One story as it lies in a tar: shapes and units in the module's docstring.

    `frames` is the uint8 array, or a tuple of S encoded images. The last three fields are empty when their members were
    not given to `decode`. `meta`: story_id, split, movie, score, story_tags, texts, frame_tags, character_ids,
    frame_count, source_sizes ([height, width] of each image as found).
    """

    key: str
    frames: np.ndarray | tuple[bytes, ...]
    wordpieces: np.ndarray
    lengths: np.ndarray
    tags: np.ndarray
    characters: np.ndarray
    times_s: np.ndarray
    meta: dict[str, Any]
    story: str = ""
    chain_of_thought: str = ""
    annotations: dict[str, Any] | None = None

    @property
    def num_frames(self) -> int:
        return len(self.lengths)

    @property
    def score(self) -> float | None:
        """In the unit of the metadata; None: missing."""
        return self.meta["score"]


def sample_key(split: str, position: int) -> str:
    """KEY of the story at `position` in its split."""
    return f"{split}-{position:08d}"


def encode(sample: Sample) -> list[tuple[str, bytes]]:
    """A sample's tar members as (suffix, bytes), in tar order."""
    return [
        *_encode_frames(sample.frames),
        ("wordpieces.npy", to_npy(sample.wordpieces)),
        ("lengths.npy", to_npy(sample.lengths)),
        ("tags.npy", to_npy(sample.tags)),
        ("characters.npy", to_npy(sample.characters)),
        ("times.npy", to_npy(sample.times_s)),
        ("json", to_json(sample.meta)),
        ("story.txt", sample.story.encode()),
        ("chain_of_thought.txt", sample.chain_of_thought.encode()),
        ("annotations.json", to_json(sample.annotations)),
    ]


def _encode_frames(frames: np.ndarray | tuple[bytes, ...]) -> list[tuple[str, bytes]]:
    if isinstance(frames, np.ndarray):
        return [("frames.npy", to_npy(frames))]
    return [(f"{number:03d}.{image_suffix(image)}", image) for number, image in enumerate(frames)]


def image_suffix(image: bytes) -> str:
    """Format of an image, "jpg" or "png", by its first bytes. Raises ValueError for any other format."""
    if image[:3] == b"\xff\xd8\xff":
        return "jpg"
    if image[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    raise ValueError(f"is neither JPEG nor PNG (it begins with {image[:8]!r})")


def to_json(value: object) -> bytes:
    """Compact JSON with sorted keys, UTF-8. Raises ValueError for NaN and infinities."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


class SampleArrays(NamedTuple):
    """What training needs of a sample besides its frames: shapes and units in the module's docstring."""

    wordpieces: np.ndarray
    lengths: np.ndarray
    tags: np.ndarray
    characters: np.ndarray
    times_s: np.ndarray


def decode_arrays(key: str, members: Mapping[str, bytes | memoryview]) -> SampleArrays:
    """The arrays in tar members {suffix: payload}, read-only views. Raises ValueError as `decode`."""
    suffix = "lengths.npy"
    try:
        lengths = from_npy(members[suffix], "<i4", (None,))
        counts = lengths.tolist()
        if not counts or min(counts) < 0:
            raise ValueError(f"holds {len(counts)} lengths, or a negative one")
        suffix = "wordpieces.npy"
        wordpieces = from_npy(members[suffix], "<i4", (sum(counts),))
        suffix = "tags.npy"
        tags = from_npy(members[suffix], "<i4", (None, 3))
        suffix = "characters.npy"
        characters = from_npy(members[suffix], "|u1", (len(counts), None))
        suffix = "times.npy"
        times_s = from_npy(members[suffix], "<f4", (len(counts),))
    except KeyError:
        raise ValueError(
            f"sample {key}, member {suffix}: is missing; there are {', '.join(members) or 'no members'}"
        ) from None
    except ValueError as error:
        raise ValueError(f"sample {key}, member {suffix}: {error}") from None
    return SampleArrays(wordpieces, lengths, tags, characters, times_s)


def decode(key: str, members: Mapping[str, bytes | memoryview]) -> Sample:
    """The sample in tar members {suffix: payload}; arrays are read-only views of the payloads.

    TEXT_SUFFIXES may be left out. Raises ValueError naming key and member when a member is missing or damaged, or when
    members disagree on the number of frames or wordpieces.
    """
    arrays = decode_arrays(key, members)
    frames = _decode_frames(key, members)
    if len(frames) != len(arrays.lengths):
        raise ValueError(f"sample {key}: {len(frames)} frames but {len(arrays.lengths)} descriptions")
    return Sample(
        key=key,
        frames=frames,
        **arrays._asdict(),
        meta=_json(key, members, "json"),
        story=bytes(members.get("story.txt", b"")).decode(),
        chain_of_thought=bytes(members.get("chain_of_thought.txt", b"")).decode(),
        annotations=_json(key, members, "annotations.json") if "annotations.json" in members else None,
    )


def _decode_frames(key: str, members: Mapping[str, bytes | memoryview]) -> np.ndarray | tuple[bytes, ...]:
    if "frames.npy" in members:
        return _array(key, members, "frames.npy", "|u1", (None, None, None, 3))
    names = {int(match[1]): name for name in members if (match := IMAGE_SUFFIX.fullmatch(name))}
    if sorted(names) != list(range(len(names))):
        raise ValueError(f"sample {key}: frames are missing, there are {sorted(names)}")
    return tuple(bytes(members[names[number]]) for number in range(len(names)))


def _array(
    key: str, members: Mapping[str, bytes | memoryview], suffix: str, dtype: str, shape: tuple[int | None, ...]
) -> np.ndarray:
    try:
        return from_npy(_member(key, members, suffix), dtype, shape)
    except ValueError as error:
        raise ValueError(f"sample {key}, member {suffix}: {error}") from None


def _json(key: str, members: Mapping[str, bytes | memoryview], suffix: str) -> Any:
    try:
        return json.loads(bytes(_member(key, members, suffix)))
    except (ValueError, RecursionError) as error:  # the second: brackets nested a thousand deep
        raise ValueError(f"sample {key}, member {suffix}: {error}") from None


def _member(key: str, members: Mapping[str, bytes | memoryview], suffix: str) -> bytes | memoryview:
    if suffix not in members:
        raise ValueError(f"is missing; there are {', '.join(sorted(members)) or 'no members'}")
    return members[suffix]
