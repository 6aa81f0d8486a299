"""What the heartbeat costs: a rank's telling its phase, and the watchdog's thread beside it.

    python benchmarks/heartbeat.py --config configs/demo.yaml --shards demo/shards
    python benchmarks/heartbeat.py                                         # the tests' model on the tests' shards

Three figures, of the real loop: processor time of one `Watchdog.phase` and of one look of the thread, each by itself,
over that of a step; and steps with the watchdog against steps without it, in turns of a few steps within one run.
`--busy-disk` lets another process write and flush all the while.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from storydist.command import positive_int, run_command

WARM_UP = 2  # turns of each kind that are not counted
FLUSHER = """
import os, sys
with open(sys.argv[1], "wb") as file:
    while True:
        file.seek(0)
        file.write(os.urandom(4 << 20))
        file.flush()
        os.fsync(file.fileno())
"""


@dataclass
class Turn:
    """Some steps one after the other, with the watchdog or without."""

    watched: bool
    steps: int
    wall_s: float
    cpu_s: float  # of the whole process


@dataclass
class Costs:
    """Of single calls: seconds of processor time, and of the clock, for which the loop waits."""

    phase_cpu_s: list[float] = field(default_factory=list)
    phase_wall_s: list[float] = field(default_factory=list)
    look_cpu_s: list[float] = field(default_factory=list)
    flush_wall_s: list[float] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, help="default: the tests' model")
    parser.add_argument("--shards", type=Path)
    parser.add_argument("--turns", type=positive_int, default=20, help="of each kind; default: %(default)s")
    parser.add_argument("--steps", type=positive_int, default=10, help="of a turn; default: %(default)s")
    parser.add_argument("--busy-disk", action="store_true")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = _run(folder, arguments)
        with _busy(folder / "noise") if arguments.busy_disk else _idle():
            turns, costs = measured(run, arguments.turns, arguments.steps)
    print(_told(turns, costs))


def _run(folder: Path, arguments: argparse.Namespace) -> Any:
    from storydist.config import load_config
    from storydist.data.index import ShardIndex
    from storydist.training.trainer import build_run
    from tests.small_runs import small_config
    from tests.tiny_shards import write_shards

    num_steps = 2 * (arguments.turns + WARM_UP) * arguments.steps + 1
    rare = {"steps": num_steps, "log_every": num_steps, "save_every": num_steps, "evaluate_every": 0}
    if arguments.config is None:
        index = write_shards(folder / "shards")
        return build_run(small_config(index, folder / "run", train=rare), index, "heartbeat")
    index = ShardIndex.open(arguments.shards)
    words = [f"train.{key}={value}" for key, value in rare.items()]
    places = [f"data.shards={arguments.shards}", f"run.dir={folder / 'run'}"]
    return build_run(load_config(arguments.config, [*words, *places, *arguments.overrides]), index, "heartbeat")


@contextmanager
def _busy(path: Path) -> Iterator[None]:
    flusher = subprocess.Popen([sys.executable, "-c", FLUSHER, str(path)])
    try:
        yield
    finally:
        flusher.kill()
        flusher.wait()


@contextmanager
def _idle() -> Iterator[None]:
    yield


def measured(run: Any, num_turns: int, num_steps: int) -> tuple[list[Turn], Costs]:
    """Trains `run` in turns of `num_steps` steps, with the watchdog and without it; what the turns took, warm-up
    included, and what single calls took within those that were watched.
    """
    from storydist.training.trainer import train

    watchdog, turns, costs, begun = run.watchdog, list[Turn](), Costs(), list[float]()
    phase, look, flush = watchdog.phase, watchdog._look, os.fdatasync

    def timed_phase(name: str, step: int, *stories: Any) -> None:
        if name == "data" and step % num_steps == 1:
            end_turn()
        cpu, wall = time.thread_time(), time.perf_counter()
        phase(name, step, *stories)
        if watched():
            costs.phase_wall_s.append(time.perf_counter() - wall)
            costs.phase_cpu_s.append(time.thread_time() - cpu)

    def timed_look() -> None:
        cpu = time.thread_time()
        look()
        costs.look_cpu_s.append(time.thread_time() - cpu)

    def timed_flush(descriptor: int) -> None:
        wall = time.perf_counter()
        flush(descriptor)
        costs.flush_wall_s.append(time.perf_counter() - wall)

    def watched() -> bool:
        return watchdog._heartbeat is not None

    def end_turn() -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        if begun:
            turns.append(Turn(watched(), num_steps, wall - begun[0], cpu - begun[1]))
        if watched():
            watchdog.__exit__(None, None, None)
        else:
            watchdog._ended.clear()
            watchdog.__enter__()
        begun[:] = time.perf_counter(), time.process_time()

    watchdog.phase, watchdog._look, os.fdatasync = timed_phase, timed_look, timed_flush
    try:
        code = train(run)
    finally:
        os.fdatasync = flush
        if watched():
            watchdog.__exit__(None, None, None)
    assert code == 0 and len(turns) == 2 * (num_turns + WARM_UP), (code, len(turns))
    return turns, costs


def _told(turns: list[Turn], costs: Costs) -> str:
    num_phases = len(costs.phase_cpu_s) / sum(turn.steps for turn in turns if turn.watched)
    turns = turns[2 * WARM_UP :]
    step_wall_s = statistics.median(turn.wall_s / turn.steps for turn in turns)
    step_cpu_s = statistics.median(turn.cpu_s / turn.steps for turn in turns)
    phase_s, look_s = statistics.mean(costs.phase_cpu_s), statistics.mean(costs.look_cpu_s or [0.0])
    pairs = list(zip(turns[::2], turns[1::2], strict=True))
    rows = [
        ("a step, milliseconds: clock, processor", f"{1e3 * step_wall_s:.1f}, {1e3 * step_cpu_s:.1f}"),
        ("phases told in a step", f"{num_phases:.1f}"),
        ("microseconds of processor time a phase, mean", f"{1e6 * phase_s:.1f}"),
        ("the same by the clock: median, 99 of 100, most", _quantiles(costs.phase_wall_s, 1e6)),
        ("share of a step: phases", f"{100 * num_phases * phase_s / step_cpu_s:.3f} %"),
        ("microseconds of processor time a look (each second)", f"{1e6 * look_s:.0f}"),
        ("share of a step: looks", f"{100 * look_s * step_wall_s / step_cpu_s:.3f} %"),
        ("milliseconds a flush (beside the loop): median, 99 of 100, most", _quantiles(costs.flush_wall_s, 1e3)),
        ("steps with it over steps without, processor time", _ratio([_over(a, b, "cpu_s") for a, b in pairs])),
        ("the same by the clock", _ratio([_over(a, b, "wall_s") for a, b in pairs])),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _over(one: Turn, other: Turn, what: str) -> float:
    with_it, without = (one, other) if one.watched else (other, one)
    return getattr(with_it, what) / getattr(without, what)


def _ratio(values: list[float]) -> str:
    error = statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.median(values):.4f} (mean {statistics.mean(values):.4f}, standard error {error:.4f})"


def _quantiles(values: list[float], scale: float) -> str:
    ordered = sorted(values) or [0.0]
    picked = (ordered[len(ordered) // 2], ordered[int(0.99 * (len(ordered) - 1))], ordered[-1])
    return ", ".join(f"{scale * value:.1f}" for value in picked)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
