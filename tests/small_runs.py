"""Settings of a model small enough to train inside a test, and batches for it."""

from pathlib import Path
from typing import Any

import torch

from storydist.config import Config, parse_config
from storydist.data.batch import Batch, padding_run
from storydist.data.frame_runs import SampleReader
from storydist.data.index import ShardIndex
from storydist.data.settings import DataConfig
from storydist.data.stream import collate_runs, special_pieces
from storydist.losses import LossConfig
from storydist.model import ModelConfig, StoryModel, data_facts

SMALL = {
    "width": 16,
    "frame_channels": [4, 8],
    "latent_width": 16,
    "text_embedding": 8,
    "text_hidden": 8,
    "text_target_width": 12,
    "tag_width": 4,
    "attention_heads": 2,
}
STILL = SMALL | {"dropout": 0.0, "score_dropout": 0.0, "word_dropout": 0.0}  # nothing is drawn at random


def small_config(index: ShardIndex, run: Path, **sections: dict[str, Any]) -> Config:
    """A Config for `index`; `sections` add to or replace settings."""
    values: dict[str, Any] = {
        "run": {"dir": str(run)},
        "data": {"shards": str(index.root), "max_wordpieces": 20},
        "model": SMALL,
        "train": {"steps": 6, "global_batch": 4, "micro_batch": 4, "evaluate_every": 0, "log_every": 1, "threads": 1},
        "evaluate": {"generate_windows": 2, "resamples": 10, "num_examples": 1},
    }
    return parse_config({k: values.get(k, {}) | sections.get(k, {}) for k in values | sections}, source="test")


def small_model(index: ShardIndex, losses: LossConfig | None = None, **changes: Any) -> StoryModel:
    """An untrained model in evaluation mode."""
    torch.manual_seed(0)
    config = ModelConfig.model_validate(SMALL | changes)
    return StoryModel(config, (losses or LossConfig()).heads(), data_facts(index, data_config(index))).eval()


def data_config(index: ShardIndex) -> DataConfig:
    return DataConfig(shards=str(index.root), max_wordpieces=20)


def batch_of(index: ShardIndex, *stories: int, padding: bool = False) -> Batch:
    """A batch of these stories; with `padding`, a last one that no sum counts."""
    config = data_config(index)
    reader = SampleReader(index, config)
    runs = [reader.read(story) for story in stories]
    if padding:
        runs.append(padding_run(reader.size))
    return collate_runs(runs, config, special_pieces(index))
