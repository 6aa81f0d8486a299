"""Synthesise a data set of drawn films: StoryReasoning's schema, metadata.csv, and the parts of each score.

    python shards/synthesize.py --out DATA --train 300 --test 60 --seed 7

The bytes depend on the seed, the counts and --noise-only, never on --workers. A story is a function of the seed, its
split and its number there: a larger data set begins with the stories of a smaller one.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

if __name__ == "__main__" and __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from shards.synthetic.write import METADATA_FILE, SCORES_FILE, DatasetWriter, Rendered, parquet_name, render
from shards.workers import map_in_order
from storydist.command import ArgumentParser, run_command
from storydist.data.files import check_writable, naming


def main(arguments: list[str] | None = None) -> None:
    options = _parse(arguments)
    jobs = [
        (options.seed, split, number, options.noise_only)
        for split, count in (("train", options.train), ("test", options.test))
        for number in range(count)
    ]
    start = time.perf_counter()
    with _written_beside(options.out, options.overwrite) as folder, DatasetWriter(folder) as writer:
        for story in _shown(map_in_order(_render, jobs, options.workers), len(jobs)):
            writer.add(story)
    rate = len(jobs) / (time.perf_counter() - start)
    print(f"{options.out}: {options.train} train and {options.test} test stories, {rate:.1f} stories/s")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="shards/synthesize.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--train", type=int, default=300, help="number of training stories (default 300)")
    parser.add_argument("--test", type=int, default=60, help="number of test stories (default 60)")
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)")
    parser.add_argument(
        "--noise-only", action="store_true", help="scores of the same distribution that nothing predicts"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the synthetic data set in --out")
    options = parser.parse_args(arguments)
    for name, least in (("train", 1), ("test", 1), ("workers", 1), ("seed", 0)):
        if getattr(options, name) < least:
            raise ValueError(f"--{name} is {getattr(options, name)}; it must be {least} or more")
    return options


def _shown(stories: Iterator[Rendered], total: int) -> Iterator[Rendered]:
    """The same stories; on a terminal with a bar, the rate and the time left."""
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    start = time.perf_counter()
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("", total=total)
        for number, story in enumerate(stories, start=1):
            yield story
            rate = number / (time.perf_counter() - start)
            progress.update(task, advance=1, description=f"{rate:.1f} stories/s")


def _render(job: tuple[int, str, int, bool]) -> Rendered:
    return render(*job)


@contextmanager
def _written_beside(out: Path, overwrite: bool) -> Iterator[Path]:
    """A new folder beside `out` that takes its place once the block ends well and vanishes if it does not.

    Raises ValueError if `out` is in the way: a file, not empty without `overwrite`, or with files of another kind.
    """
    out = out.absolute()
    check_writable(out.parent)
    _check_target(out, overwrite)
    beside = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        beside.mkdir()
    except OSError as error:
        raise ValueError(f"cannot write to {out.parent} ({error.strerror}); choose another --out") from error
    try:
        with naming(out):
            yield beside
        if overwrite and out.exists():
            shutil.rmtree(out)
        beside.replace(out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _check_target(out: Path, overwrite: bool) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise ValueError(f"--out {out} is a file; choose a folder")
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir()}
    if found and not overwrite:
        raise ValueError(
            f"--out {out} is not empty; choose another folder, or add --overwrite to replace the data set in it"
        )
    foreign = found - {METADATA_FILE, SCORES_FILE, parquet_name("train"), parquet_name("test")}
    if foreign:
        raise ValueError(
            f"--out {out} also holds {min(foreign)!r}, which is not part of a synthetic data set; "
            "move it away or choose another folder"
        )


if __name__ == "__main__":
    raise SystemExit(run_command(main))
