"""What the heads are trained on. Each loss is (sum, count), so that means are taken once, over all ranks and micro-
batches.

Dimensions as in storydist/model/story.py. Rows with valid 0 are in neither sum nor count.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from storydist.data.batch import Batch
from storydist.model import HEADS, Prediction
from storydist.settings import Settings

SumCount = tuple[Tensor, Tensor]


class LossConfig(Settings):
    """Weight of each head's loss; 0 leaves the head out of the model."""

    next_frame: float = Field(1.0, ge=0)
    reconstruction: float = Field(0.2, ge=0)
    next_text: float = Field(1.0, ge=0)
    text_embedding: float = Field(1.0, ge=0)
    score: float = Field(1.0, ge=0)
    characters: float = Field(0.2, ge=0)

    @model_validator(mode="after")
    def _something_to_learn(self) -> "LossConfig":
        if not set(self.heads()) - {"reconstruction"}:
            raise ValueError(
                "every head is switched off; give at least one of next_frame, next_text, text_embedding, score, "
                "characters a weight above 0"
            )
        return self

    def heads(self) -> tuple[str, ...]:
        """The heads whose loss has a weight, in the order of HEADS."""
        return tuple(head for head in HEADS if getattr(self, head) > 0)


def next_frame(prediction: Prediction, batch: Batch) -> SumCount:
    """Mean absolute pixel error in [0, 1] of each window, summed; windows."""
    assert prediction.next_frame_MCHW is not None
    target_MCHW = batch.frames_NHWC[batch.target_M].permute(0, 3, 1, 2).float() / 255
    error_M = (prediction.next_frame_MCHW - target_MCHW).abs().mean(dim=(1, 2, 3))
    return (error_M * batch.valid_M).sum(), batch.valid_M.sum()


def reconstruction(prediction: Prediction, batch: Batch) -> SumCount:
    """Mean absolute pixel error in [0, 1] of each frame drawn from its own latent, summed; frames."""
    assert prediction.reconstruction_NCHW is not None
    target_NCHW = batch.frames_NHWC.permute(0, 3, 1, 2).float() / 255
    valid_N = batch.valid_B[batch.frame_story_N]
    error_N = (prediction.reconstruction_NCHW - target_NCHW).abs().mean(dim=(1, 2, 3))
    return (error_N * valid_N).sum(), valid_N.sum()


def next_text(prediction: Prediction, batch: Batch) -> SumCount:
    """Cross-entropy in nats, summed; wordpieces."""
    logits, target, window = prediction.text_logits_TV, prediction.text_target_T, prediction.text_window_T
    assert logits is not None and target is not None and window is not None
    valid_T = batch.valid_M[window]
    entropy_T = F.cross_entropy(logits.float(), target, reduction="none")
    return (entropy_T * valid_T).sum(), valid_T.sum()


def text_embedding(prediction: Prediction, batch: Batch) -> SumCount:
    """1 - cosine to the frozen embedding of the target's description, summed; windows whose target has one."""
    assert prediction.text_embedding_ME is not None and prediction.text_target_NE is not None
    written_M = batch.valid_M * (batch.lengths_N.to(batch.valid_M.device) > 2)[batch.target_M]
    cosine_M = F.cosine_similarity(prediction.text_embedding_ME, prediction.text_target_NE[batch.target_M], dim=1)
    return ((1 - cosine_M) * written_M).sum(), written_M.sum()


def score(prediction: Prediction, batch: Batch, score_std: float) -> SumCount:
    """Squared error of the score over the training split's variance, summed; stories with a score."""
    assert prediction.score_B is not None
    known_B = batch.valid_B * batch.score_known_B
    error_B = (prediction.score_B - batch.score_B) / score_std
    return (error_B.square() * known_B).sum(), known_B.sum()


def characters(prediction: Prediction, batch: Batch) -> SumCount:
    """Binary cross-entropy in nats of who is in the target frame, summed; characters of each window's story."""
    assert prediction.character_logits_MP is not None
    mask_MP = batch.character_mask_BP[batch.window_story_M] * batch.valid_M[:, None]
    target_MP = batch.characters_NP[batch.target_M].float()
    entropy_MP = F.binary_cross_entropy_with_logits(prediction.character_logits_MP, target_MP, reduction="none")
    return (entropy_MP * mask_MP).sum(), mask_MP.sum()


def all_losses(config: LossConfig, prediction: Prediction, batch: Batch, score_std: float) -> dict[str, SumCount]:
    """{head: (sum, count)} for every head that is on; float32 scalars on the batch's device."""
    losses: dict[str, Callable[[], SumCount]] = {
        "next_frame": lambda: next_frame(prediction, batch),
        "reconstruction": lambda: reconstruction(prediction, batch),
        "next_text": lambda: next_text(prediction, batch),
        "text_embedding": lambda: text_embedding(prediction, batch),
        "score": lambda: score(prediction, batch, score_std),
        "characters": lambda: characters(prediction, batch),
    }
    return {head: losses[head]() for head in config.heads()}


def counts(heads: tuple[str, ...], batch: Batch) -> Tensor:
    """float64 [heads]: the counts that `all_losses` will give, known before the forward pass."""
    written_N = (batch.lengths_N > 2).to(batch.valid_M.device)
    text_M = (batch.target_lengths_M - 1).to(batch.valid_M.device)
    known = {
        "next_frame": batch.valid_M.sum(),
        "reconstruction": batch.valid_B[batch.frame_story_N].sum(),
        "next_text": (batch.valid_M * text_M).sum(),
        "text_embedding": (batch.valid_M * written_N[batch.target_M]).sum(),
        "score": (batch.valid_B * batch.score_known_B).sum(),
        "characters": (batch.character_mask_BP[batch.window_story_M] * batch.valid_M[:, None]).sum(),
    }
    return torch.stack([known[head].double() for head in heads])


def total(config: LossConfig, losses: dict[str, SumCount], global_counts: Tensor, gradient_scale: float) -> Tensor:
    """The weighted sum of losses, each divided by its global count, to call backward on.

    global_counts: float64 [heads], over all ranks and micro-batches. gradient_scale undoes what the strategy divides
    gradients by.
    """
    parts = [
        getattr(config, head) * loss_sum / global_counts[i].clamp(min=1).to(loss_sum.dtype)
        for i, (head, (loss_sum, _)) in enumerate(losses.items())
    ]
    return torch.stack(parts).sum() * gradient_scale
