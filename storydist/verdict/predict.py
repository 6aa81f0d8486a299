"""A few windows told in full, on disk: a picture strip each, one line of JSON each, and a summary to read."""

import base64
import io
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from storydist.data.files import write_atomic
from storydist.data.index import ShardIndex
from storydist.data.settings import DataConfig
from storydist.data.text import Wordpieces
from storydist.verdict.evaluate import sampling_of
from storydist.verdict.generate import records, told_windows
from storydist.verdict.report import number
from storydist.verdict.settings import EvaluationConfig
from storydist.verdict.windows import choose_windows

if TYPE_CHECKING:
    from storydist.model import StoryModel

GAP_PIXELS = 4  # white between the frames of a strip
FRAME_FIELDS = ("input_frames", "target_frame", "predicted_frame")


def predict(
    model: "StoryModel",
    index: ShardIndex,
    split: str,
    num_windows: int,
    *,
    data: DataConfig,
    config: EvaluationConfig,
    device: torch.device,
) -> list[dict[str, Any]]:
    """Records (see `records`) of windows drawn by the seed, in stored order. ValueError if the split has none."""
    places = choose_windows(index, split, context=data.context, limit=num_windows, seed=config.seed)
    if not places:
        raise ValueError(
            f"split {split!r} has no story of more than {data.context} frames, so there is nothing to predict"
        )
    tokenizer = Wordpieces.load(index.root / "tokenizer")
    told = told_windows(
        model, index, places, data, sampling_of(config), batch_stories=config.batch_stories, device=device
    )
    return [record for part in told for record in records(part, tokenizer, dict.fromkeys(places, "random"))]


def write_predictions(folder: Path, found: Sequence[dict[str, Any]]) -> Path:
    """Writes 000.png .. (inputs, target, prediction), predictions.jsonl over what was there; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("[0-9][0-9][0-9].png"):
        old.unlink()
    lines = []
    for place, record in enumerate(found):
        write_atomic(folder / f"{place:03d}.png", strip(record))
        told = {name: value for name, value in record.items() if name not in (*FRAME_FIELDS, "pick")}
        lines.append(json.dumps({"strip": f"{place:03d}.png", **told}, ensure_ascii=False))
    write_atomic(folder / "predictions.jsonl", ("\n".join(lines) + "\n").encode())
    return folder


def strip(record: dict[str, Any]) -> bytes:
    """PNG of a record's inputs, its target and, if there is one, its prediction; a wider gap parts the inputs off."""
    frames = [*record["input_frames"], None, record["target_frame"], record["predicted_frame"]]
    pictures = [_pixels(frame) for frame in frames if frame is not None]
    gap = np.full((pictures[0].shape[0], GAP_PIXELS, 3), 255, dtype=np.uint8)
    num_inputs = len(record["input_frames"])
    parts: list[np.ndarray] = []
    for place, picture in enumerate(pictures):
        parts += ([gap, gap, gap] if place == num_inputs else [gap] if place else []) + [picture]
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(parts, axis=1)).save(buffer, "PNG")
    return buffer.getvalue()


def _pixels(jpeg_base64: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(jpeg_base64))).convert("RGB"))


def summary(record: dict[str, Any]) -> str:
    """A record in a few lines."""
    kind = "near copy" if record["near_copy"] else "cut"
    lines = [
        f"story {record['story_id']}, frame {record['position'] + 1} ({kind}), image L1 {number(record['image_l1'])}"
    ]
    if record["score_predicted"] is not None:
        lines[0] += f", score {number(record['score_true'])} predicted {number(record['score_predicted'])}"
    lines.append(_wrapped("last input", record["input_texts"][-1]))
    lines.append(_wrapped("target", record["target_text"]))
    if record["generated_text"] is not None:
        lines.append(_wrapped("generated", record["generated_text"]))
    return "\n".join(lines)


def _wrapped(label: str, text: str) -> str:
    return textwrap.fill(text or "(none)", width=110, initial_indent=f"  {label + ':':12}", subsequent_indent=" " * 14)
