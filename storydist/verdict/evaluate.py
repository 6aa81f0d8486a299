"""A model over a split -> Evaluation: every metric beside its floors, model and floors through the same code.

Two passes. The first reads the split once, in order, and adds up all numbers. The second generates descriptions for a
seeded sample of windows. Each rank works on its share; their tallies are merged, and every rank returns the same
Evaluation.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import Field, ValidationError

from storydist.data.batch import Batch
from storydist.data.files import write_atomic
from storydist.data.index import ShardIndex
from storydist.data.stream import DataConfig, evaluation_batches
from storydist.data.text import Wordpieces
from storydist.settings import Settings
from storydist.verdict.assemble import assemble
from storydist.verdict.baselines import FittedFloors, fit_floors, floor_guesses, floor_texts
from storydist.verdict.generate import Sampling, records, reference_texts, text_guess, told_windows
from storydist.verdict.tally import Tally, merged
from storydist.verdict.text_metrics import cross_entropy_sum, derangement
from storydist.verdict.truth import Guess, Truth, truth_of
from storydist.verdict.windows import Place, choose_windows

if TYPE_CHECKING:
    from storydist.model import StoryModel

Gather = Callable[[Any], list[Any]]  # every rank's picklable object, in order of rank, on every rank
Tallies = dict[str, Tally]  # by predictor; MODEL beside the floors

MODEL = "model"


class EvaluationConfig(Settings):
    """How a split is judged."""

    batch_stories: int = Field(8, ge=1, description="stories per rank and step")
    generate_windows: int = Field(
        200, ge=0, description="windows that get a generated description, drawn by the seed; 0: none"
    )
    temperature: float = Field(1.0, gt=0, description="of nucleus sampling")
    top_p: float = Field(0.9, gt=0, le=1, description="of nucleus sampling")
    resamples: int = Field(
        1000, ge=0, description="bootstrap resamples of stories behind the score's intervals; 0: no intervals"
    )
    num_examples: int = Field(6, ge=0, description="windows shown at random, and as many best and worst")
    seed: int = Field(0, ge=0, description="of samples, shuffles, floors and bootstrap")


def with_overrides(config: EvaluationConfig, asked: Mapping[str, Any]) -> EvaluationConfig:
    """The settings with those in `asked` that are not None. Raises ValueError naming one that is out of bounds."""
    given = {name: value for name, value in asked.items() if value is not None}
    try:
        return EvaluationConfig.model_validate(config.model_dump() | given)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(
            f"--{str(first['loc'][0]).replace('_', '-')}: {first['msg']}, found {first['input']!r}"
        ) from None


def alone(value: Any) -> list[Any]:
    """The gather of a single rank."""
    return [value]


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
    step: int | None = None,
    floors_path: Path | None = None,
) -> dict[str, Any]:
    """The Evaluation of a model (in evaluation mode, not wrapped) on every window and story of a split; JSON-able.

    {"split", "step", "num_stories", "num_windows", "index_fingerprint", "seed", "metrics": {name: {"value", "unit",
    "better", "floors", "reference", "subset", "interval", "about"}}, "examples": [record, ..]}. "better" is lower,
    higher or closest (to "reference", the targets' own figure). Metrics of heads that are off are left out.
    `floors_path`: JSON that keeps the floors' figures, used again while shards, heads and settings are the same.
    `gather` is called by every rank, equally often. Raises ValueError for an unknown or empty split.
    """
    if not choose_windows(index, split, context=data.context, limit=1, seed=0):
        raise ValueError(
            f"split {split!r} has no story of more than {data.context} frames, so there is nothing to evaluate"
        )
    key = _floors_key(index, split, data, config, model)
    kept = gather(_read_floors(floors_path, key) if rank == 0 else None)[0]
    fitted = None
    if kept is None:
        # Fitted once, on rank 0; what the others get is a few megabytes.
        fitted = gather(
            fit_floors(index, split, data, model.text_target, device=device, seed=config.seed) if rank == 0 else None
        )[0]
    tallies = _measure(model, index, split, data, config, fitted, device=device, rank=rank, world_size=world_size)
    if config.generate_windows:
        _generate(model, index, split, data, config, fitted, tallies, device=device, rank=rank, world_size=world_size)
    every = gather(tallies)
    total = {
        name: merged(tally[name] for tally in every if name in tally) for name in {n: None for t in every for n in t}
    }
    floors = (
        kept
        if kept is not None
        else {n: {m: f.value for m, f in t.figures().items()} for n, t in total.items() if n != MODEL}
    )
    if kept is None and rank == 0 and floors_path is not None:
        write_atomic(floors_path, json.dumps({"key": key, "floors": floors}, indent=1).encode())
    examples = _examples(model, index, total[MODEL], split, data, config, device)
    stories = index.split(split)
    return {
        "split": split,
        "step": step,
        "num_stories": len(stories),
        "num_windows": int(
            np.maximum(
                index.stories[stories.start : stories.stop]["num_frames"].astype(np.int64) - data.context, 0
            ).sum()
        ),
        "index_fingerprint": index.info.fingerprint,
        "seed": config.seed,
        "metrics": assemble(total[MODEL], floors, resamples=config.resamples, seed=config.seed),
        "examples": examples,
    }


def _measure(
    model: "StoryModel",
    index: ShardIndex,
    split: str,
    data: DataConfig,
    config: EvaluationConfig,
    fitted: FittedFloors | None,
    *,
    device: torch.device,
    rank: int,
    world_size: int,
) -> Tallies:
    """First pass: numbers of the model, and of the floors if they were fitted."""
    tallies: Tallies = {MODEL: Tally()}
    batches = evaluation_batches(
        index, split, data, batch_stories=config.batch_stories, rank=rank, world_size=world_size
    )
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + rank)
    for batch in batches:
        batch = batch.to(device)
        with torch.no_grad():
            truth = truth_of(batch, model.text_target)
            guess = model_guess(model, batch, truth, generator)
            tallies[MODEL].add(truth, guess)
            for name, floor in (floor_guesses(truth, fitted) if fitted else {}).items():
                tallies.setdefault(name, Tally()).add(truth, _as_spoken(floor, guess))
    return tallies


def model_guess(model: "StoryModel", batch: Batch, truth: Truth, generator: torch.Generator) -> Guess:
    """What the model says of a batch's valid windows and stories. `generator` (CPU) shuffles the conditions."""
    prediction = model(batch)
    windows, stories = batch.valid_M > 0, batch.valid_B > 0
    guess = Guess()
    if prediction.next_frame_MCHW is not None:
        guess.frame_MCHW = prediction.next_frame_MCHW[windows]
    if prediction.text_embedding_ME is not None:
        guess.embedding_ME = prediction.text_embedding_ME[windows]
    if prediction.character_logits_MP is not None:
        guess.characters_MP = prediction.character_logits_MP[windows] > 0
    if prediction.score_B is not None:
        guess.score_B = prediction.score_B[stories].float().cpu().numpy()
    if prediction.text_logits_TV is not None:
        guess.wordpiece_losses_T = _losses(prediction, windows, truth)
        order = derangement(batch.valid_M, generator)
        if order is not None:
            shuffled = model(batch, shuffle_condition=order.to(batch.valid_M.device))
            guess.shuffle_losses_T = _losses(shuffled, windows, truth) - guess.wordpiece_losses_T
    return guess


def _losses(prediction, windows_M: torch.Tensor, truth: Truth) -> torch.Tensor:
    """Loss of each target wordpiece of the valid windows, float64 [T].

    Raises ValueError if the model was scored on other wordpieces than the windows' targets hold.
    """
    real = windows_M[prediction.text_window_T]
    target = prediction.text_target_T[real]
    if len(target) != len(truth.wordpieces_T) or int(target.sum()) != int(truth.wordpieces_T.sum()):
        raise ValueError(
            f"the model was scored on {len(target)} wordpieces, not on the {len(truth.wordpieces_T)} of the targets; "
            "its text decoder must be scored on the description after the input frames"
        )
    return cross_entropy_sum(prediction.text_logits_TV[real], target)


def _as_spoken(floor: Guess, model: Guess) -> Guess:
    """The floor's guess where the model speaks too: figures without one to stand beside would only cost time."""
    return Guess(**{name: value for name, value in vars(floor).items() if vars(model)[name] is not None})


def _generate(
    model: "StoryModel",
    index: ShardIndex,
    split: str,
    data: DataConfig,
    config: EvaluationConfig,
    fitted: FittedFloors | None,
    tallies: Tallies,
    *,
    device: torch.device,
    rank: int,
    world_size: int,
) -> None:
    """Second pass: adds generated texts, and the floors' texts for the same windows."""
    tokenizer = Wordpieces.load(index.root / "tokenizer")
    places = choose_windows(index, split, context=data.context, limit=config.generate_windows, seed=config.seed)
    for told in told_windows(
        model,
        index,
        places,
        data,
        sampling_of(config),
        batch_stories=config.batch_stories,
        device=device,
        rank=rank,
        world_size=world_size,
    ):
        if told.prediction.text_logits_TV is None:
            return
        references = reference_texts(told.truth, tokenizer)
        tallies[MODEL].add(told.truth, text_guess(told), references)
        for name, floor in (
            floor_texts(told.truth, fitted.text, tokenizer.decode, fitted.seed) if fitted else {}
        ).items():
            tallies.setdefault(name, Tally()).add(told.truth, floor, references)


def _examples(
    model: "StoryModel",
    index: ShardIndex,
    tally: Tally,
    split: str,
    data: DataConfig,
    config: EvaluationConfig,
    device: torch.device,
) -> list[dict[str, Any]]:
    """Records of windows drawn at random, then of the best and the worst by image L1."""
    if not config.num_examples:
        return []
    drawn = choose_windows(index, split, context=data.context, limit=config.num_examples, seed=config.seed)
    picks: dict[Place, str] = dict.fromkeys(drawn, "random")
    columns = tally.frames.columns()
    if columns:
        order = np.argsort(columns["error"], kind="stable")
        for pick, rows in (("best", order[: config.num_examples]), ("worst", order[::-1][: config.num_examples])):
            for row in rows:
                picks.setdefault((int(columns["story"][row]), int(columns["position"][row])), pick)
    tokenizer = Wordpieces.load(index.root / "tokenizer")
    told = told_windows(
        model, index, list(picks), data, sampling_of(config), batch_stories=config.batch_stories, device=device
    )
    found = [record for part in told for record in records(part, tokenizer, picks)]
    return sorted(found, key=lambda r: (("random", "best", "worst").index(r["pick"]), _sort_error(r)))


def _sort_error(record: dict[str, Any]) -> float:
    if record["pick"] == "random" or record["image_l1"] is None:
        return 0.0
    return record["image_l1"] if record["pick"] == "best" else -record["image_l1"]


def sampling_of(config: EvaluationConfig) -> Sampling:
    """How descriptions are drawn."""
    return Sampling(temperature=config.temperature, top_p=config.top_p, seed=config.seed)


def _floors_key(
    index: ShardIndex, split: str, data: DataConfig, config: EvaluationConfig, model: "StoryModel"
) -> dict[str, Any]:
    """All that the floors' figures depend on; the frozen text embedding's width stands for the model's part in them."""
    return {
        "version": 1,
        "index": index.info.fingerprint,
        "split": split,
        "context": data.context,
        "max_wordpieces": data.max_wordpieces,
        "generate_windows": config.generate_windows,
        "seed": config.seed,
        "heads": sorted(model.heads),
        "text_target_width": model.config.text_target_width,
    }


def _read_floors(path: Path | None, key: dict[str, Any]) -> dict[str, dict[str, float | None]] | None:
    """Kept figures {floor: {metric: value}}, or None if there are none for this very key."""
    if path is None or not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None  # a cache that cannot be read is worth no more than none
    return found["floors"] if isinstance(found, dict) and found.get("key") == key else None
