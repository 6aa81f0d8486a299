"""The floors' figures for a split, kept beside a run: fitting them again would cost more than judging the model."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storydist.data.files import write_atomic
from storydist.data.index import ShardIndex
from storydist.data.settings import DataConfig

if TYPE_CHECKING:
    from storydist.model import StoryModel
    from storydist.verdict.settings import EvaluationConfig

FloorFigures = dict[str, dict[str, float | None]]  # {floor: {metric: value}}
VERSION = 1  # of what is kept; a new way to fit or measure a floor needs a new number


def floors_key(
    index: ShardIndex, split: str, data: DataConfig, config: "EvaluationConfig", model: "StoryModel"
) -> dict[str, Any]:
    """All that the floors' figures depend on; the frozen text embedding's width stands for the model's part in them."""
    return {
        "version": VERSION,
        "index": index.info.fingerprint,
        "split": split,
        "context": data.context,
        "size": list(data.size),
        "decode": data.decode,
        "on_bad_sample": data.on_bad_sample,
        "max_wordpieces": data.max_wordpieces,
        "generate_windows": config.generate_windows,
        "seed": config.seed,
        "heads": sorted(model.heads),
        "text_target_width": model.config.text_target_width,
    }


def read_floors(path: Path | None, key: dict[str, Any]) -> FloorFigures | None:
    """Kept figures {floor: {metric: value}}, or None if there are none for this very key."""
    if path is None or not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None  # a cache that cannot be read is worth no more than none
    return found["floors"] if isinstance(found, dict) and found.get("key") == key else None


def write_floors(path: Path, key: dict[str, Any], floors: FloorFigures) -> None:
    """Keeps figures under their key, in place of what stood there."""
    write_atomic(path, json.dumps({"key": key, "floors": floors}, indent=1).encode())
