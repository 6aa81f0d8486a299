"""A shard set of a few small stories, written member by member, for tests that read shards but do not make them."""

import io
import math
import tarfile
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from storydist.data.files import sha256_file
from storydist.data.frames import encode_jpeg
from storydist.data.index import MEMBER_DTYPE, STORY_DTYPE, ShardIndex, write_index
from storydist.data.sample import TAG_KINDS, Sample, encode, sample_key
from storydist.data.text import Wordpieces, train_wordpieces

HEIGHT, WIDTH = 12, 24
WORDS = (
    "the",
    "tension",
    "rises",
    "as",
    "anna",
    "and",
    "bob",
    "walk",
    "into",
    "a",
    "dark",
    "room",
    "while",
    "it",
    "rains",
)
TAGS = [
    ("", "<pad>"),
    ("", "<unk>"),
    ("action", "runs"),
    ("action", "sleeps"),
    ("character", "anna"),
    ("story", "noir"),
]


def write_shards(
    folder: Path, *, train: int = 24, test: int = 6, scored: bool = True, seed: int = 3, jpeg: bool = False
) -> ShardIndex:
    """Stories of 4 to 8 frames; the score is 1 if "runs" comes before "sleeps", else 0: only the order tells.

    `jpeg`: frames are JPEG files instead of raw pixels.
    """
    generator = np.random.default_rng(seed)
    tokenizer = train_wordpieces([" ".join(WORDS)] * 3, 120)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder / "tokenizer")
    splits = {"train": train, "test": test}
    made = {split: [_story(split, i, generator, tokenizer, scored) for i in range(n)] for split, n in splits.items()}
    if jpeg:
        made = {split: [_as_jpeg(sample) for sample in samples] for split, samples in made.items()}
    suffixes: dict[str, int] = {}
    stories: list[tuple] = []
    members: list[tuple] = []
    shards: list[dict] = []
    for number, (split, samples) in enumerate(made.items()):
        path = folder / f"{split}-000000.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for sample in samples:
                first, encoded = len(members), encode(sample)
                for suffix, payload in encoded:
                    entry = tarfile.TarInfo(f"{sample.key}.{suffix}")
                    entry.size = len(payload)
                    offset = tar.offset + 512
                    tar.addfile(entry, io.BytesIO(payload))
                    members.append(
                        (offset, len(payload), zlib.crc32(payload), suffixes.setdefault(suffix, len(suffixes)))
                    )
                score = math.nan if sample.score is None else sample.score
                stories.append((number, first, len(encoded), sample.num_frames, score))
        shards.append(
            {
                "name": path.name,
                "size_bytes": path.stat().st_size,
                "sha256": sha256_file(path),
                "num_stories": len(samples),
            }
        )
    info = {
        "frames": "original" if jpeg else "raw",
        "height": None if jpeg else HEIGHT,
        "width": None if jpeg else WIDTH,
        "tokenizer": "train:120",
        "vocabulary_size": tokenizer.vocabulary_size,
        "suffixes": list(suffixes),
        "shards": shards,
        "splits": {
            split: {
                "first": 0 if split == "train" else train,
                "num_stories": len(s),
                "num_frames": sum(x.num_frames for x in s),
            }
            for split, s in made.items()
        },
        "tag_vocabulary": TAGS,
        "score": {"mean": 0.5, "std": 0.5, "min": 0.0, "max": 1.0, "count": train} if scored else None,
        "skipped": {},
        "files": {"tokenizer/tokenizer.json": sha256_file(folder / "tokenizer" / "tokenizer.json")},
        "options": {},
    }
    ids = [s.meta["story_id"] for samples in made.values() for s in samples]
    idf = _idf(made["train"], tokenizer.vocabulary_size)
    write_index(folder, info, np.array(stories, STORY_DTYPE), np.array(members, MEMBER_DTYPE), ids, idf)
    return ShardIndex.open(folder)


def _as_jpeg(sample: Sample) -> Sample:
    """The same story with JPEG frames, twice as high and as wide."""
    assert isinstance(sample.frames, np.ndarray)
    return replace(
        sample, frames=tuple(encode_jpeg(frame.repeat(2, axis=0).repeat(2, axis=1)) for frame in sample.frames)
    )


def _idf(samples: list[Sample], vocabulary_size: int) -> np.ndarray:
    seen: Counter[int] = Counter()
    documents = [part for s in samples for part in np.split(s.wordpieces, np.cumsum(s.lengths)[:-1])]
    for document in documents:
        seen.update(set(document.tolist()))
    return np.array([math.log((1 + len(documents)) / (1 + seen[i])) for i in range(vocabulary_size)], dtype=np.float32)


def _story(split: str, number: int, generator: np.random.Generator, tokenizer: Wordpieces, scored: bool) -> Sample:
    num_frames = int(generator.integers(6, 9)) if number else 4  # the first story is too short for a window
    texts = [" ".join(generator.choice(WORDS, generator.integers(3, 9))) for _ in range(num_frames)]
    wordpieces, lengths = tokenizer.encode(texts)
    frames = generator.integers(0, 256, (num_frames, HEIGHT, WIDTH, 3), dtype=np.uint8)
    frames[4::3] = frames[3 : num_frames - 1 : 3]  # some frames repeat the one before: near copies
    runs_first = bool(generator.integers(2))
    order = (2, 3) if runs_first else (3, 2)
    kind = TAG_KINDS.index
    tags = [(0, order[0], kind("action")), (num_frames - 1, order[1], kind("action")), (-1, 5, kind("story"))]
    meta = {"story_id": f"{split}/{number}", "split": split, "score": float(runs_first) if scored else None}
    return Sample(
        key=sample_key(split, number),
        frames=frames,
        wordpieces=wordpieces,
        lengths=lengths,
        tags=np.array(tags, dtype=np.int32),
        characters=generator.integers(0, 2, (num_frames, 3), dtype=np.uint8),
        times_s=np.arange(num_frames, dtype=np.float32),
        meta=meta,
        annotations={},
    )
