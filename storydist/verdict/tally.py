"""Everything that is summed or collected of one predictor, the model or a floor, over a split.

A Tally of each rank is merged into one; only then is anything divided, ranked or resampled.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from storydist.verdict.metrics import (
    Mean,
    Moments,
    Rows,
    absolute_error,
    f1_counts,
    frame_descriptor,
    laplacian_variance,
    recall_at,
    retrieval_ranks,
)
from storydist.verdict.score_metrics import bootstrap_intervals, score_errors
from storydist.verdict.text_metrics import overlap, variety
from storydist.verdict.truth import Guess, Truth

RECALLS = (1, 10)


class Figure(NamedTuple):
    """A metric's value, None where it is undefined, and its 95 % interval where one was computed."""

    value: float | None
    interval: tuple[float, float] | None = None


@dataclass
class Tally:
    """Sums and rows of one predictor. `add` a batch, `merge` other ranks, then read `figures`."""

    l1: Mean = field(default_factory=Mean)
    l1_near: Mean = field(default_factory=Mean)
    l1_cut: Mean = field(default_factory=Mean)
    sharpness: Mean = field(default_factory=Mean)  # variance of the Laplacian over the targets'
    text: Mean = field(default_factory=Mean)  # nats per wordpiece
    gap: Mean = field(default_factory=Mean)  # nats per wordpiece, shuffled minus true condition
    characters: Mean = field(default_factory=Mean)  # micro F1
    pixels: Moments = field(default_factory=Moments)
    targets: Moments = field(default_factory=Moments)  # the same pixels' own
    frames: Rows = field(default_factory=Rows)
    embeddings: Rows = field(default_factory=Rows)
    scores: Rows = field(default_factory=Rows)
    texts: Rows = field(default_factory=Rows)

    def add(self, truth: Truth, guess: Guess, references: dict[int, str] | None = None) -> None:
        """Adds one batch. `references`: plain text of the targets by row of M, needed where the guess has texts."""
        place = {"story": truth.story_M, "position": truth.position_M}
        if guess.frame_MCHW is not None:
            self._add_frames(truth, guess.frame_MCHW.float(), place)
        if guess.embedding_ME is not None:
            pair = _embedding_pair(guess.embedding_ME, truth.target_embedding_ME)
            self.embeddings.add({**place, "key": truth.text_key_M, **pair})
        if guess.wordpiece_losses_T is not None:
            self.text.add(guess.wordpiece_losses_T.sum(), len(guess.wordpiece_losses_T))
        if guess.shuffle_losses_T is not None:
            self.gap.add(guess.shuffle_losses_T.sum(), len(guess.shuffle_losses_T))
        if guess.characters_MP is not None:
            self.characters.add(*f1_counts(guess.characters_MP, truth.target_characters_MP, truth.character_mask_MP))
        if guess.score_B is not None:
            self._add_scores(truth, guess.score_B)
        if guess.texts and references is not None:
            rows = np.array(sorted(guess.texts))
            text = {"text": [guess.texts[r] for r in rows], "reference": [references[r] for r in rows]}
            chosen = {"story": truth.story_M[rows], "position": truth.position_M[rows]}
            self.texts.add({**chosen, **{name: np.array(column, dtype=object) for name, column in text.items()}})

    def _add_frames(self, truth: Truth, frame_MCHW, place: dict[str, np.ndarray]) -> None:
        error = absolute_error(frame_MCHW, truth.target_MCHW)
        near = truth.near_M
        self.l1.add(error.sum(), len(error))
        self.l1_near.add(error[near].sum(), near.sum())
        self.l1_cut.add(error[~near].sum(), (~near).sum())
        self.sharpness.add(laplacian_variance(frame_MCHW).sum(), laplacian_variance(truth.target_MCHW).sum())
        self.pixels.add(frame_MCHW)
        self.targets.add(truth.target_MCHW)
        pair = _embedding_pair(frame_descriptor(frame_MCHW), frame_descriptor(truth.target_MCHW))
        self.frames.add({**place, "key": truth.frame_key_M, "error": error.cpu().numpy(), **pair})

    def _add_scores(self, truth: Truth, predicted_B: np.ndarray) -> None:
        known = ~np.isnan(truth.score_B)
        story = truth.story_B[known]
        columns = {"predicted": predicted_B[known].astype(np.float64), "true": truth.score_B[known]}
        self.scores.add({"story": story, "position": np.zeros_like(story), **columns})

    def merge(self, other: "Tally") -> None:
        """Adds another rank's tally of the same predictor."""
        for name, mine in vars(self).items():
            mine.merge(getattr(other, name))

    def figures(self, *, resamples: int = 0, seed: int = 0) -> dict[str, Figure]:
        """All metrics this predictor has spoken on. Score metrics get bootstrap intervals if `resamples` is above 0."""
        sums = {
            "image L1": self.l1,
            "image L1, near copies": self.l1_near,
            "image L1, cuts": self.l1_cut,
            "sharpness": self.sharpness,
            "text CE": self.text,
            "condition gap": self.gap,
            "character F1": self.characters,
        }
        found = {name: Figure(mean.value) for name, mean in sums.items() if mean.value is not None}
        if self.text.value is not None:
            found["perplexity"] = Figure(float(np.exp(self.text.value)))
        if self.pixels.count:
            found["spread"] = Figure(self.pixels.spread)
        return found | self._retrieval() | self._scores(resamples, seed) | self._texts()

    def _retrieval(self) -> dict[str, Figure]:
        found: dict[str, Figure] = {}
        for what, rows in (("frame", self.frames), ("text", self.embeddings)):
            columns = rows.columns()
            if columns:
                ranks, _ = retrieval_ranks(columns["predicted"], columns["target"], columns["key"])
                found |= {f"{what} R@{k}": Figure(recall_at(ranks, k)) for k in RECALLS}
                found[f"{what} median rank"] = Figure(float(np.median(ranks)))
        return found

    def _scores(self, resamples: int, seed: int) -> dict[str, Figure]:
        columns = self.scores.columns()
        if not columns:
            return {}
        errors = score_errors(columns["predicted"], columns["true"])
        if not resamples:
            return {name: Figure(value) for name, value in errors.items()}
        intervals = bootstrap_intervals(columns["predicted"], columns["true"], resamples=resamples, seed=seed)
        return {name: Figure(value, intervals[name]) for name, value in errors.items()}

    def _texts(self) -> dict[str, Figure]:
        columns = self.texts.columns()
        if not columns:
            return {}
        generated = columns["text"].tolist()
        return {
            n: Figure(v) for n, v in (overlap(generated, columns["reference"].tolist()) | variety(generated)).items()
        }

    def gallery_size(self, what: str) -> int:
        """Distinct targets among which "frame" or "text" retrieval ranks; 0 if there is none."""
        columns = (self.frames if what == "frame" else self.embeddings).columns()
        return len(np.unique(columns["key"])) if columns else 0

    def reference_texts(self) -> list[str]:
        """The targets' own texts, of the windows that got a generated one."""
        columns = self.texts.columns()
        return columns["reference"].tolist() if columns else []


def merged(tallies: Iterable[Tally]) -> Tally:
    """One tally of all ranks' tallies of the same predictor."""
    total = Tally()
    for tally in tallies:
        total.merge(tally)
    return total


def _embedding_pair(predicted, target) -> dict[str, np.ndarray]:
    return {"predicted": predicted.float().cpu().numpy(), "target": target.float().cpu().numpy()}
