"""Does a run of many steps grow? Resident memory, open files and threads of a tiny model's run, step by step.

    python benchmarks/long_run.py --steps 20000 --out long_run.json

The slope is that of a straight line through the samples of resident memory after the warm-up (the first quarter), by
least squares, with its standard error; samples of neighbouring steps depend on each other, so take the error for a
lower bound.
"""

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from storydist.command import positive_int, run_command

WARM_UP = 0.25  # share of the steps


@dataclass(frozen=True)
class Sample:
    """What the process holds at the beginning of a step."""

    step: int
    resident_bytes: int
    num_files: int
    num_threads: int


@dataclass(frozen=True)
class Line:
    """Bytes a step, its standard error, and what the line gains over all steps it was drawn through."""

    slope: float
    error: float
    gain_bytes: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=positive_int, default=20_000)
    parser.add_argument("--log-every", type=positive_int, default=1000, metavar="STEPS")
    parser.add_argument("--save-every", type=positive_int, default=1000, metavar="STEPS")
    parser.add_argument("--evaluate-every", type=int, default=2500, metavar="STEPS")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        samples = long_run(
            Path(folder), arguments.steps, arguments.log_every, arguments.save_every, arguments.evaluate_every
        )
    elapsed_s = time.perf_counter() - start
    line = fitted(samples)
    print("| step | resident, MiB | open files | threads |\n|---|---|---|---|")
    for sample in samples[:: max(1, len(samples) // 10)] + samples[-1:]:
        print(f"| {sample.step:,} | {sample.resident_bytes / 2**20:.1f} | {sample.num_files} | {sample.num_threads} |")
    grown = f"{line.slope:.1f} +- {line.error:.1f} bytes a step ({line.gain_bytes / 2**20:.2f} MiB in all)"
    print(f"\n{arguments.steps:,} steps in {elapsed_s:.0f} s; after the warm-up {grown}")
    if arguments.out:
        rows = [asdict(sample) for sample in samples]
        content = {"seconds": elapsed_s, "line": asdict(line), "samples": rows}
        arguments.out.write_text(json.dumps(content, indent=1) + "\n")


def long_run(
    folder: Path, num_steps: int, log_every: int, save_every: int, evaluate_every: int, sample_every: int = 20
) -> list[Sample]:
    """Trains the tests' model on the tests' shards in `folder`; a sample every `sample_every` steps."""
    from storydist.training.trainer import build_run, train
    from tests.small_runs import small_config
    from tests.tiny_shards import write_shards

    index = write_shards(folder / "shards")
    size = {"steps": num_steps, "global_batch": 2, "micro_batch": 2}
    when = {"log_every": log_every, "save_every": save_every, "evaluate_every": evaluate_every}
    train_settings = size | when | {"evaluate_split": "test"}
    run = build_run(small_config(index, folder / "run", train=train_settings), index, "long run")
    samples: list[Sample] = []
    phase = run.watchdog.phase

    def sampled(name: str, step: int, *stories: object) -> None:
        phase(name, step, *stories)  # type: ignore[arg-type]
        if name == "data" and step % sample_every == 1:
            samples.append(sample(step))

    run.watchdog.phase = sampled  # type: ignore[method-assign,assignment]
    with run.watchdog:
        code = train(run)
    assert code == 0, code
    return samples


def sample(step: int) -> Sample:
    resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
    resident_bytes = resident_pages * os.sysconf("SC_PAGE_SIZE")
    return Sample(step, resident_bytes, sum(1 for _ in Path("/proc/self/fd").iterdir()), threading.active_count())


def fitted(samples: list[Sample]) -> Line:
    """The line through resident memory after the warm-up."""
    kept = [s for s in samples if s.step > WARM_UP * samples[-1].step]
    steps = np.array([s.step for s in kept], dtype=np.float64)
    memory = np.array([s.resident_bytes for s in kept], dtype=np.float64)
    (slope, _), covariance = np.polyfit(steps, memory, 1, cov=True)
    return Line(float(slope), float(np.sqrt(covariance[0, 0])), float(slope * (steps[-1] - steps[0])))


if __name__ == "__main__":
    raise SystemExit(run_command(main))
