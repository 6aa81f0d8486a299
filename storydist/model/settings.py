"""Sizes and choices of the model, and what it must know of the shards."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field

from storydist.data.frame_runs import frame_size
from storydist.data.index import ShardIndex
from storydist.data.settings import DataConfig
from storydist.settings import Settings

HEADS = ("next_frame", "reconstruction", "next_text", "text_embedding", "score", "characters")
WINDOW_HEADS = frozenset(("next_frame", "next_text", "text_embedding", "characters"))  # they continue a story


class ModelConfig(Settings):
    """Sizes and choices of StoryModel."""

    width: int = Field(256, ge=4, description="D: of a fused frame and of the temporal state")
    frame_channels: tuple[int, ...] = Field(
        (32, 64, 128, 192), min_length=2, description="of the CNN, each level half the size of the last"
    )
    latent_width: int = Field(256, ge=2, description="of one frame's latent")
    latent: Literal["layernorm", "relu"] = "layernorm"
    text_embedding: int = Field(128, ge=2, description="of one wordpiece")
    text_hidden: int = Field(192, ge=2, description="of the text LSTMs")
    text_target_width: int = Field(256, ge=2, description="E: of the frozen text embedding")
    tag_width: int = Field(64, ge=1)
    tags: Literal["before", "after", "both", "none"] = Field(
        "both", description="tags join before the temporal model, at the score head, or both"
    )
    temporal: Literal["gru", "lstm"] = "gru"
    attention_heads: int = Field(4, ge=0, description="of the attention over the context; 0: the last state alone")
    copy_frames: bool = Field(True, description="the next frame may take pixels from the input frames")
    copy_words: bool = Field(True, description="the next description may favour words of the input descriptions")
    dropout: float = Field(0.1, ge=0, lt=1)
    score_dropout: float = Field(0.3, ge=0, lt=1)
    word_dropout: float = Field(
        0.2, ge=0, lt=1, description="share of the decoder's input words replaced by PAD while training"
    )


@dataclass(frozen=True)
class DataFacts:
    """What the model must know of the shards.

    height, width: of a frame; context: K; idf: float32 [V], 0 for special pieces; presence: float32 [V], the share of
    training descriptions in which a wordpiece stands; score_mean, score_std: of the training split.
    """

    height: int
    width: int
    context: int
    idf: np.ndarray
    presence: np.ndarray
    num_tags: int
    score_mean: float
    score_std: float


def data_facts(index: ShardIndex, config: DataConfig) -> DataFacts:
    """DataFacts of a shard set, from its train split. Special pieces and those never seen in training get no weight."""
    num_texts = index.info.splits["train"].num_frames
    presence = (1 + num_texts) / np.exp(index.wordpiece_idf, dtype=np.float64) - 1
    seen = presence > 0.5  # the idf is a float32: documents come back as nearly whole numbers
    idf = np.where(seen, index.wordpiece_idf, 0).astype(np.float32)
    height, width = frame_size(index, config)
    score = index.info.score
    return DataFacts(
        height=height,
        width=width,
        context=config.context,
        idf=idf,
        presence=(np.where(seen, presence, 0) / num_texts).astype(np.float32),
        num_tags=len(index.info.tag_vocabulary),
        score_mean=score.mean if score else 0.0,
        score_std=(score.std or 1.0) if score else 1.0,
    )
