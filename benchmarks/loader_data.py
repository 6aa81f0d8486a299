"""The stories that loaders are measured on: made here, sharded by shards/build.py.

A story is a function of SEED and its number: 5 to 22 frames of 575x240, JPEG of about 23 KB, and a description of about
100 wordpieces and four tags a frame. Frames are crops of three photographs that scikit-learn and matplotlib ship,
moved from frame to frame, with film grain, so that a decoder has as much to do as on film; the pictures themselves mean
nothing. Bytes also depend on the version of Pillow's libjpeg-turbo.
"""

import io
import tarfile
from collections.abc import Iterator
from functools import cache, partial
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
from PIL import Image

from shards import build
from shards.synthetic.write import DatasetWriter, Rendered
from shards.workers import map_in_order
from storydist.data.sample import Sample, decode

SEED = 20261125
WIDTH, HEIGHT = 575, 240
MIN_FRAMES, MAX_FRAMES = 5, 22
GRAIN, QUALITY = 4.5, 75  # standard deviation in grey levels, and JPEG quality: together about 23 KB a frame
NUM_SHARDS = 12
PHOTOGRAPHS = (
    ("sklearn.datasets", "images/china.jpg"),
    ("sklearn.datasets", "images/flower.jpg"),
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
)
CONSONANTS, VOWELS = tuple("bdfgklmnprstvz"), tuple("aeiou")
SYLLABLES = [consonant + vowel for consonant in CONSONANTS for vowel in VOWELS]


def make_source(folder: Path, num_stories: int, workers: int) -> None:
    """Writes StoryReasoning's parquet and metadata.csv, all stories in the train split."""
    folder.mkdir(parents=True)
    with DatasetWriter(folder) as writer:
        for story in map_in_order(make_story, range(num_stories), workers):
            writer.add(story)


def build_shards(source: Path, out: Path, num_stories: int, frames: str, workers: int) -> None:
    """Our tars, by the command that a user runs. `frames`: original or raw. Raises ValueError when it fails."""
    code = build.main(
        [
            *("--source", str(source), "--metadata", str(source / "metadata.csv"), "--out", str(out)),
            *("--frames", frames, "--size", "60x125", "--val", "0", "--test", "0", "--workers", str(workers)),
            *("--stories-per-shard", str(max(1, -(-num_stories // NUM_SHARDS)))),
        ]
    )
    if code:
        raise ValueError(f"shards/build.py could not make {out}")


def read_samples(folder: Path) -> Iterator[Sample]:
    """Every sample of our tars, in order, read with Python's own tarfile: what the peers' formats are written from."""
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            members: dict[str, bytes] = {}
            open_key = ""
            for entry in tar:
                key, _, suffix = entry.name.partition(".")
                if members and key != open_key:
                    yield decode(open_key, members)
                    members = {}
                file = tar.extractfile(entry)
                assert file is not None, entry.name
                open_key, members[suffix] = key, file.read()
            yield decode(open_key, members)


def make_story(number: int) -> Rendered:
    generator = np.random.default_rng((SEED, number))
    num_frames = int(generator.integers(MIN_FRAMES, MAX_FRAMES + 1))
    images = [{"bytes": jpeg, "path": None} for jpeg in _film(generator, num_frames)]
    words = _words()
    weights = 1 / np.arange(10, 10 + len(words))
    draw = partial(generator.choice, words, p=weights / weights.sum())
    texts = [" ".join(draw(int(generator.integers(80, 110)))) + "." for _ in range(num_frames)]
    story = " ".join(f"<gdi image{place}> {text} </gdi>" for place, text in enumerate(texts, 1))
    story_id = f"story-{number:06d}"
    tags = ["|".join(";".join(f"object:{word}" for word in draw(4, replace=False)) for _ in range(num_frames))]
    row = {
        "story_id": story_id,
        "images": images,
        "frame_count": num_frames,
        "chain_of_thought": "",
        "story": story,
    }
    times = ",".join(f"{1.5 * place:.2f}" for place in range(num_frames))
    metadata = (story_id, f"{generator.uniform(0, 10):.2f}", "calm, sea", f"film {number // 4}", times, *tags)
    return Rendered("train", row, metadata, (story_id, "0", "0", "0", "0", "0"))


def _film(generator: np.random.Generator, num_frames: int) -> Iterator[bytes]:
    """A camera that moves over a photograph; every fourth frame or so is a cut to another place or photograph."""
    photographs = _photographs()
    for place in range(num_frames):
        if place == 0 or generator.random() < 0.25:
            photograph = photographs[generator.integers(len(photographs))]
            width = photograph.width * generator.uniform(0.45, 0.9)
            height = width * HEIGHT / WIDTH
            corner = generator.uniform(0, 1, 2) * (photograph.width - width, photograph.height - height)
            light = generator.uniform(0.7, 1.1)
        limits = (photograph.width - width, photograph.height - height)
        corner = np.clip(corner + generator.normal(0, 12, 2), 0, limits)
        box = (*corner, corner[0] + width, corner[1] + height)
        pixels = np.asarray(photograph.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC, box=box), np.float32) * light
        pixels += generator.standard_normal((HEIGHT, WIDTH, 1), np.float32) * GRAIN
        buffer = io.BytesIO()
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=QUALITY)
        yield buffer.getvalue()


@cache
def _photographs() -> list[Image.Image]:
    photographs = []
    for package, name in PHOTOGRAPHS:
        with as_file(files(package) / name) as path, Image.open(path) as image:
            photographs.append(image.convert("RGB"))
    return photographs


@cache
def _words() -> list[str]:
    generator = np.random.default_rng(SEED)
    words: dict[str, None] = {}
    while len(words) < 1500:
        words["".join(generator.choice(SYLLABLES, int(generator.integers(1, 5))))] = None
    return list(words)
