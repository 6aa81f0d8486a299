"""storydist's stream beside every known loader: the same stories, the same decoder, measured in turn.

    make bench-peers                                        # the other loaders, into an environment of their own
    .venv-peers/bin/python benchmarks/loader.py --out build/loader

Every measurement runs in a process of its own; a round is one of each, and rounds alternate their direction. Data is
made on the first run and kept in --data. Writes OUT.json and OUT.md and prints the latter. A loader that cannot be
installed or fails is in the tables with the reason.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import psutil

from benchmarks.loader_data import build_shards, make_source, read_samples
from benchmarks.loader_runs import TABLES, Run, RunError, measure, prepare, runs_of, stored_at
from benchmarks.loader_tables import render
from benchmarks.peers import CONTESTANTS, OUR_TARS
from storydist.command import ArgumentParser, positive_int, run_command

LIBRARIES = ("torch", "numpy", "pillow", "simplejpeg", "opencv-python-headless", "pyarrow", "multi-storage-client")


def main(argv: Sequence[str] | None = None) -> None:
    options = _parse(argv)
    data = options.data / f"{options.stories}-stories"
    facts = make_data(data, options.stories)
    runs = runs_of(options.tables, options.only, facts["frames"])
    failures: dict[str, str] = {}
    for contestant, frames in dict.fromkeys(
        (run.contestant, run.frames) for run in runs if run.contestant != "decoder"
    ):
        try:
            prepare(data, contestant, frames)
        except RunError as error:
            failures[f"{contestant}-{frames}"] = str(error)
    _warm(data, runs)
    content = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "settings": {"rounds": options.rounds, "tables": options.tables, "only": options.only},
        "machine": _machine(),
        "versions": _versions(),
        "data": facts,
        "failures": failures,
        "measurements": [],
    }
    for number in range(options.rounds):
        _round(data, runs if number % 2 == 0 else runs[::-1], number, content)
        _write(options.out, content)
    print(_write(options.out, content))


def make_data(data: Path, num_stories: int) -> dict[str, Any]:
    """Makes the stories and our tars, unless they are there. Returns what they hold."""
    known, source = data / "facts.json", data / "source"
    workers = 2 if num_stories > 50 else 1  # starting a process takes as long as making a few stories
    if not known.exists():
        if not source.exists():
            beside = source.with_name(f".source.partial-{os.getpid()}")
            make_source(beside, num_stories, workers)
            beside.rename(source)
        for frames in ("original", "raw"):
            with redirect_stdout(sys.stderr):
                build_shards(source, data / f"{OUR_TARS}-{frames}", num_stories, frames, workers)
        known.write_text(json.dumps(_facts(data / f"{OUR_TARS}-original")))
    return json.loads(known.read_text())


def _facts(folder: Path) -> dict[str, Any]:
    samples = list(read_samples(folder))
    counts = np.array([sample.num_frames for sample in samples])
    return {
        "stories": len(samples),
        "frames": int(counts.sum()),
        "windows": int((counts - 4).sum()),
        "jpeg_bytes": float(np.mean([len(frame) for sample in samples for frame in sample.frames])),
        "wordpieces": float(np.mean(np.concatenate([sample.lengths for sample in samples]))),
    }


def _warm(data: Path, runs: Sequence[Run]) -> None:
    """Reads every file once, so that all come from the page cache."""
    for folder in {stored_at(data, run.contestant, run.frames) for run in runs if run.contestant != "decoder"}:
        for path in filter(Path.is_file, folder.rglob("*")):
            with path.open("rb") as file:
                while file.read(1 << 24):
                    pass


def _round(data: Path, runs: Sequence[Run], number: int, content: dict[str, Any]) -> None:
    failures = content["failures"]
    start = time.monotonic()
    for run in runs:
        if run.name in failures or f"{run.contestant}-{run.frames}" in failures:
            continue
        try:
            content["measurements"].append(measure(data, run, number, check=number == 0))
        except RunError as error:
            failures[run.name] = str(error)
            print(f"{run.name}: {error}", file=sys.stderr)
    print(f"round {number + 1}: {time.monotonic() - start:.0f} s", file=sys.stderr)


def _write(out: Path | None, content: dict[str, Any]) -> str:
    """The report; with `out` also written beside the figures that it was made from."""
    text = render(content)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
        out.with_suffix(".md").write_text(text)
    return text


def _machine() -> dict[str, Any]:
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": models[0].partition(":")[2].strip() if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": psutil.virtual_memory().total / 2**30,
        "python": platform.python_version(),
        "kernel": platform.release(),
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in dict.fromkeys([*(contestant.distribution for contestant in CONTESTANTS), *LIBRARIES]):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="benchmarks/loader.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [contestant.name for contestant in CONTESTANTS]
    parser.add_argument("--only", type=_names, default=[], help=f"of {', '.join(names)} (default: all)")
    parser.add_argument(
        "--tables",
        type=_names,
        default=list(TABLES),
        help=f"of {', '.join(TABLES)} (jpeg0: without workers; default: all)",
    )
    parser.add_argument("--rounds", type=positive_int, default=5, help="(%(default)s)")
    parser.add_argument("--stories", type=positive_int, default=600, help="(%(default)s)")
    parser.add_argument("--data", type=Path, default=Path("build/loader-data"), help="kept data (%(default)s)")
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.md")
    options = parser.parse_args(argv)
    for option, allowed in (("only", names), ("tables", TABLES)):
        wrong = [name for name in getattr(options, option) if name not in allowed]
        if wrong:
            raise ValueError(f"argument --{option}: there is no {wrong[0]!r}; choose of {', '.join(allowed)}")
    return options


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


if __name__ == "__main__":
    raise SystemExit(run_command(main))
