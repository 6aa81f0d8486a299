"""Chosen windows told in full: generated descriptions, and records of input, target and prediction for a page."""

import base64
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from storydist.data.batch import Batch
from storydist.data.index import ShardIndex
from storydist.data.settings import DataConfig
from storydist.data.stream import special_pieces
from storydist.data.text import Wordpieces
from storydist.verdict.metrics import absolute_error
from storydist.verdict.truth import Guess, Truth, truth_of
from storydist.verdict.windows import Place, window_batches

if TYPE_CHECKING:
    from storydist.model import Prediction, StoryModel

JPEG_QUALITY = 92


class Sampling(NamedTuple):
    """Nucleus sampling (Holtzman et al. 2020, arXiv 1904.09751)."""

    temperature: float = 1.0
    top_p: float = 0.9
    seed: int = 0


class Told(NamedTuple):
    """One batch of chosen windows. `texts`: generated description by row of M, {} if the model writes none."""

    batch: Batch
    truth: Truth
    prediction: "Prediction"
    texts: dict[int, str]


def told_windows(
    model: "StoryModel",
    index: ShardIndex,
    places: Sequence[Place],
    data: DataConfig,
    sampling: Sampling,
    *,
    batch_stories: int,
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
    between: Callable[[], None] = lambda: None,
) -> Iterator[Told]:
    """Predictions and generated texts of chosen windows, this rank's share of the batches.

    `between` is called ahead of every `world_size` batches. Batches and their random numbers depend on `places`,
    `batch_stories` and the seed, never on the number of ranks.
    """
    special, tokenizer = special_pieces(index), Wordpieces.load(index.root / "tokenizer")
    for number, batch in enumerate(window_batches(index, places, data, batch_stories)):
        if number % world_size == 0:
            between()
        if number % world_size != rank:
            continue
        batch = batch.to(device)
        with torch.no_grad():
            truth, prediction = truth_of(batch, model.text_target), model(batch)
            texts: dict[int, str] = {}
            if prediction.text_logits_TV is not None:
                generator = torch.Generator().manual_seed(sampling.seed * 1_000_003 + number)
                ids = model.generate(
                    batch,
                    first=special.cls,
                    last=special.sep,
                    max_wordpieces=data.max_wordpieces,
                    generator=generator,
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                )
                texts = {row: tokenizer.decode(words) for row, words in enumerate(ids)}
        yield Told(batch, truth, prediction, texts)


def reference_texts(truth: Truth, tokenizer: Wordpieces) -> dict[int, str]:
    """The targets' own descriptions by row of M, as the tokenizer spells them and cut at max_wordpieces."""
    return {row: tokenizer.decode(ids.tolist()) for row, ids in enumerate(truth.target_texts_M)}


def text_guess(told: Told) -> Guess:
    """The generated descriptions as a guess."""
    return Guess(texts=told.texts)


def records(told: Told, tokenizer: Wordpieces, picks: Mapping[Place, str]) -> list[dict[str, Any]]:
    """One JSON-able record per window: ids, pictures (base64 JPEG), texts, scores, L1. `picks`: why it was chosen."""
    truth, frames = told.truth, told.prediction.next_frame_MCHW
    errors = None if frames is None else absolute_error(frames, truth.target_MCHW).tolist()
    references = reference_texts(truth, tokenizer)
    scores = None if told.prediction.score_B is None else told.prediction.score_B.float().tolist()
    story_row = told.batch.window_story_M.tolist()
    found = []
    for m, (story, position) in enumerate(zip(truth.story_M.tolist(), truth.position_M.tolist(), strict=True)):
        known = bool(told.batch.score_known_B[story_row[m]])
        found.append(
            {
                "pick": picks.get((story, position), ""),
                "story_id": told.batch.ids[story_row[m]],
                "position": position,
                "near_copy": bool(truth.near_M[m]),
                "image_l1": None if errors is None else errors[m],
                "input_frames": [jpeg(frame) for frame in truth.inputs_MKCHW[m]],
                "target_frame": jpeg(truth.target_MCHW[m]),
                "predicted_frame": None if frames is None else jpeg(frames[m]),
                "input_texts": [tokenizer.decode(ids.tolist()) for ids in truth.input_texts_MK[m]],
                "target_text": references[m],
                "generated_text": told.texts.get(m),
                "score_true": float(told.batch.score_B[story_row[m]]) if known else None,
                "score_predicted": None if scores is None else scores[story_row[m]],
            }
        )
    return found


def pixels(frame_CHW: Tensor) -> np.ndarray:
    """uint8 [H, W, 3] of a picture in [0, 1]."""
    # CHW -> HWC
    return (frame_CHW.float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()


def jpeg(frame_CHW: Tensor) -> str:
    """A picture in [0, 1] as base64 JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels(frame_CHW)).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return base64.b64encode(buffer.getvalue()).decode()
