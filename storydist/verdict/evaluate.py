"""A model over a split -> Evaluation: every metric beside its floors, model and floors through the same code.

Two passes. The first reads the split once, in order, and adds up all numbers. The second generates descriptions for a
seeded sample of windows. Each rank works on its share; their tallies are merged, and every rank returns the same
Evaluation.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from storydist.data.index import ShardIndex
from storydist.data.settings import DataConfig
from storydist.data.stream import evaluation_batches
from storydist.data.text import Wordpieces
from storydist.verdict.assemble import assemble
from storydist.verdict.baselines import FittedFloors, fit_floors, floor_guesses, floor_texts
from storydist.verdict.floor_cache import FloorFigures, floors_key, read_floors, write_floors
from storydist.verdict.generate import Sampling, Told, records, reference_texts, text_guess, told_windows
from storydist.verdict.guess import model_guess
from storydist.verdict.settings import EvaluationConfig
from storydist.verdict.tally import Tally, merged
from storydist.verdict.truth import Guess, truth_of
from storydist.verdict.windows import Place, choose_windows

if TYPE_CHECKING:
    from storydist.model import StoryModel

Gather = Callable[[Any], list[Any]]  # every rank's picklable object, in order of rank, on every rank
Tallies = dict[str, Tally]  # by predictor; MODEL beside the floors

MODEL = "model"


def alone(value: Any) -> list[Any]:
    """The gather of a single rank."""
    return [value]


def go_on() -> None:
    """The `between` of an evaluation that nothing interrupts."""


@dataclass(frozen=True)
class Subject:
    """What is judged, on what, and which share of it is this rank's."""

    model: "StoryModel"
    index: ShardIndex
    split: str
    data: DataConfig
    config: EvaluationConfig
    device: torch.device
    rank: int = 0
    world_size: int = 1
    between: Callable[[], None] = go_on

    def choose(self, limit: int) -> list[Place]:
        """At most `limit` windows of the split, drawn by the seed."""
        return choose_windows(self.index, self.split, context=self.data.context, limit=limit, seed=self.config.seed)


def evaluate(
    model: "StoryModel",
    index: ShardIndex,
    split: str,
    *,
    data: DataConfig,
    config: EvaluationConfig,
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
    gather: Gather = alone,
    between: Callable[[], None] = go_on,
    step: int | None = None,
    floors_path: Path | None = None,
) -> dict[str, Any]:
    """The Evaluation of a model (in evaluation mode, not wrapped) on every window and story of a split; JSON-able.

    {"split", "step", "num_stories", "num_skipped", "num_windows", "index_fingerprint", "seed", "metrics": {name:
    {"value", "unit", "better", "floors", "reference", "subset", "interval", "about"}}, "examples": [record, ..]}.
    "better" is lower, higher or closest (to "reference", the targets' own figure). Metrics of heads that are off are
    left out. "num_skipped": stories that could not be used and were skipped (data.on_bad_sample).
    `floors_path`: JSON that keeps the floors' figures, used again while shards, heads and settings are the same.
    `gather` is called by every rank, equally often, and so is `between`, ahead of each batch: what that raises ends the
    evaluation, on all ranks at the same place. Raises ValueError for an unknown or empty split.
    """
    subject = Subject(model, index, split, data, config, device, rank, world_size, between)
    if not subject.choose(1):
        raise ValueError(f"split {split!r} has no story of more than {data.context} frames: nothing to evaluate")
    total, floors, num_skipped = _judge(subject, gather, floors_path)
    stories = index.split(split)
    num_frames = index.stories[stories.start : stories.stop]["num_frames"].astype(np.int64)
    return {
        "split": split,
        "step": step,
        "num_stories": len(stories),
        "num_skipped": num_skipped,
        "num_windows": int(np.maximum(num_frames - data.context, 0).sum()),
        "index_fingerprint": index.info.fingerprint,
        "seed": config.seed,
        "metrics": assemble(total, floors, resamples=config.resamples, seed=config.seed),
        "examples": _examples(subject, total),
    }


def _judge(subject: Subject, gather: Gather, path: Path | None) -> tuple[Tally, FloorFigures, int]:
    """The model's tally over all ranks, the floors' figures (kept ones if there are any), and how many stories were
    skipped.
    """
    key = floors_key(subject.index, subject.split, subject.data, subject.config, subject.model)
    # Rank 0 reads and fits; what the others get is at most a few tens of megabytes.
    kept = gather(read_floors(path, key) if subject.rank == 0 else None)[0]
    fitted = None if kept is not None else gather(_fit(subject) if subject.rank == 0 else None)[0]
    tallies, num_skipped = _measure(subject, fitted)
    if subject.config.generate_windows and "next_text" in subject.model.heads:
        _generate(subject, fitted, tallies)
    every = gather(tallies)
    num_skipped = sum(gather(num_skipped))
    names = dict.fromkeys(name for tally in every for name in tally)
    total = {name: merged(tally[name] for tally in every if name in tally) for name in names}
    model = total.pop(MODEL)
    if kept is not None:
        return model, kept, num_skipped
    floors = {name: {m: figure.value for m, figure in tally.figures().items()} for name, tally in total.items()}
    if subject.rank == 0 and path is not None:
        write_floors(path, key, floors)
    return model, floors, num_skipped


def _fit(subject: Subject) -> FittedFloors:
    return fit_floors(
        subject.index,
        subject.split,
        subject.data,
        subject.model.text_target,
        device=subject.device,
        seed=subject.config.seed,
    )


def _measure(subject: Subject, fitted: FittedFloors | None) -> tuple[Tallies, int]:
    """First pass: numbers of the model, and of the floors if they were fitted; and how many stories were skipped."""
    tallies: Tallies = {MODEL: Tally()}
    num_skipped = 0
    batches = evaluation_batches(
        subject.index,
        subject.split,
        subject.data,
        batch_stories=subject.config.batch_stories,
        rank=subject.rank,
        world_size=subject.world_size,
    )
    for batch in batches:
        subject.between()
        num_skipped += len(batch.bad)
        # A batch is the same at every world size, and so is what its windows exchange.
        generator = torch.Generator().manual_seed(subject.config.seed * 1_000_003 + int(batch.story_B[0]))
        batch = batch.to(subject.device)
        with torch.no_grad():
            truth = truth_of(batch, subject.model.text_target)
            guess = model_guess(subject.model, batch, truth, generator)
            tallies[MODEL].add(truth, guess)
            for name, floor in (floor_guesses(truth, fitted) if fitted else {}).items():
                tallies.setdefault(name, Tally()).add(truth, _as_spoken(floor, guess))
    return tallies, num_skipped


def _as_spoken(floor: Guess, model: Guess) -> Guess:
    """The floor's guess where the model speaks too: figures without one to stand beside would only cost time."""
    return Guess(**{name: value for name, value in vars(floor).items() if vars(model)[name] is not None})


def _generate(subject: Subject, fitted: FittedFloors | None, tallies: Tallies) -> None:
    """Second pass: adds generated texts, and the floors' texts for the same windows."""
    tokenizer = Wordpieces.load(subject.index.root / "tokenizer")
    for told in _told(subject, subject.choose(subject.config.generate_windows), subject.rank, subject.world_size):
        references = reference_texts(told.truth, tokenizer)
        tallies[MODEL].add(told.truth, text_guess(told), references)
        for name, floor in (
            floor_texts(told.truth, fitted.text, tokenizer.decode, fitted.seed) if fitted else {}
        ).items():
            tallies.setdefault(name, Tally()).add(told.truth, floor, references)


def _told(subject: Subject, places: list[Place], rank: int = 0, world_size: int = 1) -> Iterator[Told]:
    return told_windows(
        subject.model,
        subject.index,
        places,
        subject.data,
        sampling_of(subject.config),
        batch_stories=subject.config.batch_stories,
        device=subject.device,
        rank=rank,
        world_size=world_size,
        between=subject.between,
    )


def _examples(subject: Subject, tally: Tally) -> list[dict[str, Any]]:
    """Records of windows drawn at random, then of the best and the worst by image L1; the same on every rank."""
    size = subject.config.num_examples
    if not size:
        return []
    picks: dict[Place, str] = dict.fromkeys(subject.choose(size), "random")
    columns = tally.frames.columns()
    if columns:
        order = np.argsort(columns["error"], kind="stable")
        for pick, rows in (("best", order[:size]), ("worst", order[::-1][:size])):
            for row in rows:
                picks.setdefault((int(columns["story"][row]), int(columns["position"][row])), pick)
    tokenizer = Wordpieces.load(subject.index.root / "tokenizer")
    found = [record for told in _told(subject, list(picks)) for record in records(told, tokenizer, picks)]
    return sorted(found, key=lambda r: (("random", "best", "worst").index(r["pick"]), _sort_error(r)))


def _sort_error(record: dict[str, Any]) -> float:
    if record["pick"] == "random" or record["image_l1"] is None:
        return 0.0
    return record["image_l1"] if record["pick"] == "best" else -record["image_l1"]


def sampling_of(config: EvaluationConfig) -> Sampling:
    """How descriptions are drawn."""
    return Sampling(temperature=config.temperature, top_p=config.top_p, seed=config.seed)
