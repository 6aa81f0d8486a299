"""Kills training runs, over and over, and looks whether they end as runs that nobody touched. (make chaos)

    python benchmarks/chaos.py --out chaos --kills 200
    python benchmarks/chaos.py --out chaos --tables        # of what was done so far

Each case (strategy, precision, ranks) trains once undisturbed. Then the same run is started, killed where a drawn plan
says, and started again by the same command, until it has come to its end: weights, moments, moving average, state and
lines of metrics then have to be the same, bit for bit, and so has every other checkpoint that both keep; in the elastic
case, where ranks and strategy change from life to life, losses within 1e-5. Dropout and moving average are on (dropout
not in the elastic case), launchers change. After each kill nothing of the run may be left, every checkpoint that has a
name has to be whole, and the newest not older than the last one told as saved.

Plans follow from --seed, case and number alone. What was done is in OUT/CASE/journal.jsonl, and the same command goes
on from there. Exit codes: 0 nothing was lost or wrong; 1 something was.
"""

import argparse
import json
import os
import random
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import yaml

from benchmarks.chaos_compare import difference, distance
from benchmarks.chaos_life import Life, Plan, draw, live, undisturbed
from benchmarks.chaos_processes import kill, living
from benchmarks.chaos_tables import tables
from storydist.command import positive_int, run_command
from storydist.data.files import write_atomic

LAUNCHERS = ("torchrun", "accelerate", "python")
STRAIGHT = "straight"
GIVE_UP = 5  # rounds of a case that went wrong: each keeps its folder


@dataclass(frozen=True)
class Case:
    """Settings that a run is killed under. Of several strategies or numbers of ranks each life draws one, dropout is
    off then (its draws depend on the rank), and runs need to end the same within rounding only.
    """

    name: str
    strategies: tuple[str, ...]
    precision: str
    world_sizes: tuple[int, ...] = (2,)

    @property
    def is_elastic(self) -> bool:
        return len(self.strategies) * len(self.world_sizes) > 1

    def train(self, out: Path, run: Path, steps: int) -> list[str]:
        """The words after launch/train.py, but for the strategy."""
        settings = [f"train.precision={self.precision}", f"train.steps={steps}", f"run.dir={run}"]
        still = ["model.dropout=0", "model.score_dropout=0", "model.word_dropout=0"] if self.is_elastic else []
        return ["--config", str(out / "settings.yaml"), *settings, *still]


CASES = (
    Case("ddp-fp32-2", ("ddp",), "fp32"),
    Case("zero2-fp32-2", ("zero2",), "fp32"),
    Case("ddp-bf16-2", ("ddp",), "bf16"),
    Case("zero2-bf16-2", ("zero2",), "bf16"),
    Case("ddp-fp32-1", ("ddp",), "fp32", (1,)),
    Case("elastic-fp32", ("ddp", "zero1", "zero2", "zero3"), "fp32", (2, 1)),
)


def main() -> int:
    arguments = parse_arguments()
    out = arguments.out.resolve()
    cases = [case for case in CASES if case.name in arguments.cases]
    prepare(out)
    shares = [arguments.kills // len(cases) + (i < arguments.kills % len(cases)) for i in range(len(cases))]
    campaigns = [
        Campaign(out, case, kills, arguments.seed, arguments.steps, tuple(arguments.launchers))
        for case, kills in zip(cases, shares, strict=True)
    ]
    if not arguments.tables:
        with ThreadPoolExecutor(arguments.jobs) as pool:
            for done in [pool.submit(campaign.run) for campaign in campaigns]:
                done.result()
    journals = {campaign.case.name: campaign.entries() for campaign in campaigns}
    (out / "chaos.json").write_text(json.dumps(journals, indent=1) + "\n")
    text, is_well = tables(journals)
    print(text)
    return 0 if is_well else 1


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [case.name for case in CASES]
    parser.add_argument("--out", type=Path, required=True, help="folder for runs and journals")
    parser.add_argument("--kills", type=positive_int, default=200, help="over all cases; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=positive_int, default=40, help="of a run; default: %(default)s")
    parser.add_argument("--cases", nargs="+", choices=names, default=names, metavar="CASE", help=", ".join(names))
    parser.add_argument("--launchers", nargs="+", choices=LAUNCHERS, default=LAUNCHERS)
    parser.add_argument("--jobs", type=positive_int, default=1, help="cases at a time; default: %(default)s")
    parser.add_argument("--tables", action="store_true", help="start nothing, tell what was done")
    return parser.parse_args()


def prepare(out: Path) -> None:
    """Makes the tests' shards and a small model's settings in `out`."""
    from tests.small_runs import SMALL
    from tests.tiny_shards import write_shards

    out.mkdir(parents=True, exist_ok=True)
    if not (out / "shards" / "index.json").exists():
        shutil.rmtree(out / "shards", ignore_errors=True)
        write_shards(out / "shards")
    size = {"global_batch": 4, "micro_batch": 1, "threads": 1, "device": "cpu", "hang_s": 60}
    when = {"log_every": 2, "save_every": 3, "evaluate_every": 6, "evaluate_split": "test"}
    settings = {
        "model": SMALL | {"dropout": 0.1, "word_dropout": 0.1},
        "data": {"shards": str(out / "shards"), "max_wordpieces": 20},
        "optim": {"ema_decay": 0.9},
        "train": size | when,
        "evaluate": {"generate_windows": 2, "resamples": 10, "num_examples": 1},
    }
    write_atomic(out / "settings.yaml", yaml.safe_dump(settings).encode())


@dataclass(frozen=True)
class Campaign:
    """The runs of one case, one after the other, until it has seen `kills` kills."""

    out: Path
    case: Case
    kills: int
    seed: int
    steps: int
    launchers: tuple[str, ...]

    @property
    def folder(self) -> Path:
        return self.out / self.case.name

    @property
    def journal(self) -> Path:
        return self.folder / "journal.jsonl"

    def entries(self) -> list[dict[str, Any]]:
        """What was done so far."""
        return list(_whole_lines(self.journal))

    def run(self) -> None:
        self.folder.mkdir(exist_ok=True)
        straight, ended = self.folder / STRAIGHT, self.folder / f"{STRAIGHT}.ended"
        if not ended.exists():
            kill(living(straight))
            shutil.rmtree(straight, ignore_errors=True)
            life = self.live(straight, None)
            if not life.finished:
                raise ValueError(f"{self.case.name}: the undisturbed run did not end well: {life.problems}")
            ended.touch()
        while self.goes_on():
            self.next_life(straight)

    def goes_on(self) -> bool:
        """There are kills to come, or a run to be ended."""
        entries = self.entries()
        wrong = sum(entry["kind"] == "end" and entry["difference"] is not None for entry in entries)
        under_way = bool(entries) and entries[-1]["kind"] == "life"
        return wrong < GIVE_UP and (self.num_kills(entries) < self.kills or under_way)

    @staticmethod
    def num_kills(entries: list[dict[str, Any]]) -> int:
        return sum(entry["kind"] == "life" and entry["killed"] for entry in entries)

    def next_life(self, straight: Path) -> None:
        entries = self.entries()
        number = sum(entry["kind"] == "life" for entry in entries)
        run = self.folder / f"run-{sum(entry['kind'] == 'end' for entry in entries)}"
        if not (entries and entries[-1]["kind"] == "life" and entries[-1]["plan"].get("at_once")):
            kill(living(run))  # of a harness that was ended itself
        generator = random.Random(f"{self.seed} {self.case.name} {number}")
        plan = draw(generator, self.launchers, self.case.world_sizes, self.case.strategies)
        life = self.live(run, plan if self.num_kills(entries) < self.kills else None)
        self.write({"kind": "life", "run": run.name, "number": number, **life.as_json()})
        if life.finished or any(problem.startswith("lost") for problem in life.problems):
            found = self.compare(straight, run) if life.finished else {"difference": "not ended"}
            self.write({"kind": "end", "run": run.name, **found})
            if found["difference"] is None:
                shutil.rmtree(run)
                run.with_suffix(".log").unlink()

    def live(self, run: Path, plan: Plan | None) -> Life:
        plan = plan or undisturbed(self.launchers[0], self.case.world_sizes[0], self.case.strategies[0])
        environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # each start would compile our modules anew
        return live(run, plan, self.case.train(self.out, run, self.steps), environment)

    def compare(self, straight: Path, run: Path) -> dict[str, Any]:
        if not self.case.is_elastic:
            return {"difference": difference(straight, run)}
        found, losses, weights = distance(straight, run)
        return {"difference": found, "losses": losses, "weights": weights}

    def write(self, entry: dict[str, Any]) -> None:
        with self.journal.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
            yield json.loads(line)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
