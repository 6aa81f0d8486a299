"""A few stories in StoryReasoning's columns, for tests of the sharding step."""

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from shards import build, verify
from storydist.command import run_command

ROOT = Path(__file__).resolve().parents[1]
HEIGHT, WIDTH = 24, 40
STORY_COLUMNS = ("story_id", "images", "frame_count", "chain_of_thought", "story")


def image(seed: int, kind: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 10, 3), dtype=np.uint8)
    large = Image.fromarray(pixels).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    large.save(buffer, kind)
    return buffer.getvalue()


def row(number: int, num_frames: int = 3) -> dict:
    """Story `s{number}`; its images are functions of its number."""
    frames = range(1, num_frames + 1)
    text = "\n".join(
        f"<gdi image{frame}> <gdo char{number % 3 + 1}>Ana</gdo> <gda char1>walks</gda> to the "
        f"<gdl bg{frame}>harbour</gdl> in scene {number % 5}. </gdi>"
        for frame in frames
    )
    images = [{"bytes": image(number * 100 + frame), "path": None} for frame in frames]
    return dict(zip(STORY_COLUMNS, (f"s{number}", images, num_frames, "", text), strict=True))


def write_source(folder: Path, num_train: int = 10, num_test: int = 3) -> Path:
    """Parquet train and test splits and metadata.csv; story s1 has no score. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = range(num_train + num_test)
    write_table(
        folder / "train-00000-of-00001.parquet", [row(number, 2 + number % 3) for number in numbers[:num_train]]
    )
    write_table(folder / "test-00000-of-00001.parquet", [row(number) for number in numbers[num_train:]])
    write_metadata(folder, {f"s{number}": "" if number == 1 else str(number / 4) for number in numbers})
    return folder


def write_table(path: Path, rows: list[dict]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path)


def write_metadata(folder: Path, scores: dict[str, str]) -> None:
    lines = [f'{story_id},{score},"calm, sea",m{place // 2}' for place, (story_id, score) in enumerate(scores.items())]
    (folder / "metadata.csv").write_text("\n".join(["story_id,story_score,tags,movie", *lines]) + "\n")


def run_file(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A command of shards/ as a user types it."""
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=120, check=False)


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def build_arguments(source: Path, out: Path, *more: object) -> list[str]:
    """What shards/build.py is called with: small shards, so that there are several."""
    metadata = ["--metadata", source / "metadata.csv"]
    fixed = ["--source", source, *metadata, "--out", out, "--size", "12x20", "--stories-per-shard", 3, *more]
    return [str(argument) for argument in fixed]


def build_set(source: Path, out: Path, *more: object) -> subprocess.CompletedProcess[str]:
    """shards/build.py in this process, which saves starting one."""
    return call(build.main, build_arguments(source, out, *more))


def verify_set(*arguments: object) -> subprocess.CompletedProcess[str]:
    """shards/verify.py in this process."""
    return call(verify.main, arguments)


def call(main: Callable[[list[str]], int], given: Iterable[object]) -> subprocess.CompletedProcess[str]:
    """A command's `main` in this process, as the command runs it."""
    arguments = [str(argument) for argument in given]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run_command(lambda: main(arguments))
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def content(root: Path) -> dict[str, bytes]:
    """Every file under a folder with its bytes."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
