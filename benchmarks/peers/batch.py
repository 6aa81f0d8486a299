"""What all loaders do alike: encoded frames to pixels, stories to one batch.

A batch is a dict. Laid out as "windows", what a loader's users would write: frames uint8 [M, 5, 60, 125, 3], wordpieces
int32 [M, 5, L] padded with 0 and lengths int32 [M, 5], M windows of 5 consecutive frames, so that each frame is in up
to 5 of them. Laid out as "once": frames [N, ...], wordpieces [N, L], lengths [N] and windows int64 [M, 5], rows of N.
Both also say num_frames (each frame of a story once) and num_windows.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import simplejpeg
import torch
from PIL import Image

from storydist.data.sample import Sample

HEIGHT, WIDTH, WINDOW = 60, 125, 5
STORIES_PER_BATCH = 4  # about 35 windows
SHUFFLE_BUFFER = 100  # stories, for loaders that shuffle by a buffer

Batch = dict[str, Any]
Encoded = bytes | memoryview


@dataclass(frozen=True)
class Reading:
    """How a loader is to read. `decoder`: pil, fast or raw (nothing to decode); `layout` and `unit`: windows or once,
    story or window; only storydist reads as one of several ranks, or by windows.
    """

    folder: Path
    decoder: str
    workers: int
    seed: int
    epochs: int
    layout: str = "windows"
    unit: str = "story"
    rank: int = 0
    world_size: int = 1

    @property
    def collate(self) -> Callable[[Sequence["Story"]], Batch]:
        return collate_windows if self.layout == "windows" else collate_once


class Story(NamedTuple):
    """frames uint8 [S, 60, 125, 3]; wordpieces int32 [T], all descriptions end to end; lengths int32 [S]."""

    frames: np.ndarray
    wordpieces: np.ndarray
    lengths: np.ndarray


def pixels(frames: Sequence[Encoded], decoder: str) -> np.ndarray:
    """uint8 [S, 60, 125, 3] of S encoded frames, or of their raw bytes."""
    return np.stack([DECODERS[decoder](frame) for frame in frames])


def _pil(frame: Encoded) -> np.ndarray:
    return resized(Image.open(io.BytesIO(frame)).convert("RGB"))


def resized(image: Image.Image) -> np.ndarray:
    return np.asarray(image.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR))


def _fast(frame: Encoded) -> np.ndarray:
    # libjpeg-turbo's DCT gives the smallest of 1/8 .. 8/8 of the size that is no smaller than wanted.
    scaled = simplejpeg.decode_jpeg(frame, "RGB", min_height=HEIGHT, min_width=WIDTH, min_factor=1)
    return cv2.resize(scaled, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)


def _raw(frame: Encoded) -> np.ndarray:
    return np.frombuffer(frame, np.uint8).reshape(HEIGHT, WIDTH, 3)


DECODERS = {"pil": _pil, "fast": _fast, "raw": _raw}


def pack(sample: Sample) -> dict[str, Any]:
    """A story as one row of a table for formats that want fixed columns: all values but `key` are bytes."""
    frames = [bytes(frame) for frame in sample.frames]
    return {
        "key": sample.key,
        "frames": b"".join(frames),
        "sizes": np.array([len(frame) for frame in frames], np.int32).tobytes(),
        "wordpieces": sample.wordpieces.tobytes(),
        "lengths": sample.lengths.tobytes(),
    }


def unpack(row: dict[str, Any], decoder: str) -> Story:
    """The decoded story of such a row."""
    frames = memoryview(row["frames"])
    ends = np.cumsum(np.frombuffer(row["sizes"], np.int32)).tolist()
    encoded = [frames[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    wordpieces, lengths = (np.frombuffer(row[name], np.int32) for name in ("wordpieces", "lengths"))
    return Story(pixels(encoded, decoder), wordpieces, lengths)


def collate_windows(stories: Sequence[Story]) -> Batch:
    """A batch laid out as "windows"."""
    texts, lengths = _pad_texts(stories)
    counts = [len(story.frames) - WINDOW + 1 for story in stories]
    frames = np.empty((sum(counts), WINDOW, HEIGHT, WIDTH, 3), np.uint8)
    row = 0
    for story, count in zip(stories, counts, strict=True):
        for place in range(WINDOW):
            frames[row : row + count, place] = story.frames[place : place + count]
        row += count
    windows = window_rows([len(story.frames) for story in stories])
    return {
        "frames": torch.from_numpy(frames),
        "wordpieces": torch.from_numpy(texts[windows]),
        "lengths": torch.from_numpy(lengths[windows]),
        "num_frames": len(lengths),
        "num_windows": len(windows),
    }


def collate_once(stories: Sequence[Story]) -> Batch:
    """A batch laid out as "once"."""
    texts, lengths = _pad_texts(stories)
    windows = window_rows([len(story.frames) for story in stories])
    return {
        "frames": torch.from_numpy(np.concatenate([story.frames for story in stories])),
        "wordpieces": torch.from_numpy(texts),
        "lengths": torch.from_numpy(lengths),
        "windows": torch.from_numpy(windows),
        "num_frames": len(lengths),
        "num_windows": len(windows),
    }


def window_rows(counts: Sequence[int]) -> np.ndarray:
    """int64 [M, 5]: the rows of every window of stories of so many frames, laid end to end."""
    ends = np.cumsum(counts)
    starts = [np.arange(end - count, end - WINDOW + 1) for count, end in zip(counts, ends, strict=True)]
    return np.concatenate(starts)[:, None] + np.arange(WINDOW)


def _pad_texts(stories: Sequence[Story]) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.concatenate([story.lengths for story in stories])
    padded = np.zeros((len(lengths), int(lengths.max(initial=0))), np.int32)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = np.concatenate([story.wordpieces for story in stories])
    return padded, lengths
