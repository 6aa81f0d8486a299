"""Batch: the stories of one micro-batch as tensors, laid end to end without padding frames.

Dimensions: B stories, N frames (of all stories), K context frames, M windows, L wordpieces, G tags, H W C image, P
characters.
A window is K consecutive frames and the frame after them; every position of every story is one (stride 1).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from storydist.data.sample import TAG_KINDS

PAD = 0  # of wordpieces and of tags alike
ON_CPU = ("lengths_N", "target_lengths_M")  # so that where texts end is known without waiting for the device


class SpecialPieces(NamedTuple):
    """Ids of the tokenizer's special wordpieces."""

    cls: int
    sep: int


@dataclass(frozen=True)
class FrameRun:
    """Consecutive frames of one story: what one sample brings to a batch. S frames.

    frames uint8 [S, H, W, 3]; wordpieces: S arrays int32 (no special pieces); tags int32 [S'] rows (frame within the
    run or -1, tag, kind);
    characters uint8 [S, P]; times_s float32 [S], NaN unknown; first_position: place of the first frame in its story;
    score NaN unknown;
    valid 0.0 marks padding, which no sum counts.
    """

    story: int
    story_id: str
    frames: np.ndarray
    wordpieces: list[np.ndarray]
    tags: np.ndarray
    characters: np.ndarray
    times_s: np.ndarray
    first_position: int
    score: float
    valid: float = 1.0


@dataclass
class Batch:
    """See the module's legend. Integer tensors are int64 unless said; masks are bool; valid_* float32 in {0, 1}."""

    ids: list[str]
    story_B: Tensor
    valid_B: Tensor
    score_B: Tensor  # float32, in the score's unit; 0 where unknown
    score_known_B: Tensor
    story_tags_BG: Tensor
    story_tag_mask_BG: Tensor
    character_mask_BP: Tensor
    frames_NHWC: Tensor  # uint8
    frame_story_N: Tensor  # row of B
    position_N: Tensor  # place in its story
    seconds_N: Tensor  # float32 from the story's first frame; 0 where unknown
    seconds_known_N: Tensor
    wordpieces_NL: Tensor  # [CLS] w1 .. wn [SEP] PAD ..; no [SEP] where the text was cut short
    lengths_N: Tensor  # on the CPU
    tags_NG: Tensor
    tag_kinds_NG: Tensor
    tag_mask_NG: Tensor
    characters_NP: Tensor  # uint8; columns are local to the frame's story
    windows_MK: Tensor  # rows of N
    target_M: Tensor  # row of N
    window_story_M: Tensor  # row of B
    target_lengths_M: Tensor  # lengths_N of the targets, on the CPU too
    valid_M: Tensor

    def to(self, device: torch.device) -> "Batch":
        """The same batch on `device`, lengths excepted."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory, so that `to` does not block."""
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, value in values.items():
            if isinstance(value, Tensor) and name not in ON_CPU:
                values[name] = change(value)
        return Batch(**values)


def collate(
    runs: Sequence[FrameRun], *, context: int, special: SpecialPieces, max_wordpieces: int, max_tags: int
) -> Batch:
    """One batch from `runs`, at least one. A text keeps its first max_wordpieces - 2 pieces, a frame or story its first
    max_tags tags.
    """
    counts = np.array([len(run.frames) for run in runs])
    first_row = np.cumsum(counts) - counts
    story_N = np.repeat(np.arange(len(runs)), counts)
    scores = np.array([run.score for run in runs], dtype=np.float32)
    seconds = np.concatenate([run.times_s for run in runs]).astype(np.float32)
    wordpieces, lengths = _pad_texts([text for run in runs for text in run.wordpieces], special, max_wordpieces)
    frame_tags, story_tags = _split_tags(runs, max_tags)
    characters, character_mask = _pad_characters(runs)
    windows, window_story = _windows(counts, first_row, context)
    run_valid = np.array([run.valid for run in runs], dtype=np.float32)
    valid_windows = run_valid[window_story]
    if not len(windows):  # every parameter takes part in every backward, if only by a window that counts nothing
        windows = np.zeros((1, context + 1), dtype=np.int64)
        window_story, valid_windows = np.zeros(1, dtype=np.int64), np.zeros(1, np.float32)
    tensor = torch.from_numpy
    return Batch(
        ids=[run.story_id for run in runs],
        story_B=torch.tensor([run.story for run in runs]),
        valid_B=tensor(run_valid),
        score_B=tensor(np.nan_to_num(scores, nan=0.0)),
        score_known_B=tensor(~np.isnan(scores)),
        story_tags_BG=tensor(story_tags[:, :, 0]),
        story_tag_mask_BG=tensor(story_tags[:, :, 2] > 0),
        character_mask_BP=tensor(character_mask),
        frames_NHWC=tensor(np.concatenate([run.frames for run in runs])),
        frame_story_N=tensor(story_N),
        position_N=tensor(np.concatenate([run.first_position + np.arange(len(run.frames)) for run in runs])),
        seconds_N=tensor(np.nan_to_num(seconds, nan=0.0)),
        seconds_known_N=tensor(~np.isnan(seconds)),
        wordpieces_NL=tensor(wordpieces),
        lengths_N=tensor(lengths),
        tags_NG=tensor(frame_tags[:, :, 0]),
        tag_kinds_NG=tensor(frame_tags[:, :, 1]),
        tag_mask_NG=tensor(frame_tags[:, :, 2] > 0),
        characters_NP=tensor(characters),
        windows_MK=tensor(windows[:, :context]),
        target_M=tensor(windows[:, context]),
        window_story_M=tensor(window_story),
        target_lengths_M=tensor(lengths[windows[:, context]]),
        valid_M=tensor(valid_windows),
    )


def _pad_texts(
    texts: Sequence[np.ndarray], special: SpecialPieces, max_wordpieces: int
) -> tuple[np.ndarray, np.ndarray]:
    kept = [text[: max_wordpieces - 2] for text in texts]
    ends = [[special.sep] if len(k) == len(t) else [] for k, t in zip(kept, texts, strict=True)]
    lengths = np.array([1 + len(k) + len(e) for k, e in zip(kept, ends, strict=True)], dtype=np.int64)
    padded = np.full((len(texts), int(lengths.max())), PAD, dtype=np.int64)
    padded[:, 0] = special.cls
    for row, text, end in zip(padded, kept, ends, strict=True):
        row[1 : 1 + len(text)] = text
        row[1 + len(text) : 1 + len(text) + len(end)] = end
    return padded, lengths


def _pad_tags(rows: Sequence[np.ndarray], max_tags: int) -> np.ndarray:
    """int64 [rows, G, 3] of (tag, kind, present) from arrays [g, 2] of (tag, kind)."""
    width = min(max_tags, max((len(r) for r in rows), default=0))
    padded = np.zeros((len(rows), max(width, 1), 3), dtype=np.int64)
    for out, row in zip(padded, rows, strict=True):
        kept = row[:max_tags]
        out[: len(kept), :2] = kept
        out[: len(kept), 2] = 1
    return padded


def _split_tags(runs: Sequence[FrameRun], max_tags: int) -> tuple[np.ndarray, np.ndarray]:
    """Tags of all frames and of all stories, padded."""
    per_frame: list[np.ndarray] = []
    per_story: list[np.ndarray] = []
    for run in runs:
        assert run.tags.ndim == 2 and run.tags.shape[1] == 3, run.tags.shape
        assert run.tags.size == 0 or run.tags[:, 2].max() < len(TAG_KINDS), run.story_id
        per_story.append(run.tags[run.tags[:, 0] < 0, 1:])
        per_frame.extend(run.tags[run.tags[:, 0] == frame, 1:] for frame in range(len(run.frames)))
    return _pad_tags(per_frame, max_tags), _pad_tags(per_story, max_tags)


def _pad_characters(runs: Sequence[FrameRun]) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [N, P] and bool [B, P]: presence, and which columns are characters of the story."""
    width = max(1, *(run.characters.shape[1] for run in runs)) if runs else 1
    present = np.zeros((sum(len(run.frames) for run in runs), width), dtype=np.uint8)
    mask = np.zeros((len(runs), width), dtype=bool)
    row = 0
    for story, run in enumerate(runs):
        num_frames, num_characters = run.characters.shape
        present[row : row + num_frames, :num_characters] = run.characters
        mask[story, :num_characters] = True
        row += num_frames
    return present, mask


def _windows(counts: np.ndarray, first_row: np.ndarray, context: int) -> tuple[np.ndarray, np.ndarray]:
    """int64 [M, K + 1] rows of N, target last, and int64 [M] the story of each window."""
    per_story = np.maximum(counts - context, 0)
    story = np.repeat(np.arange(len(counts)), per_story)
    start = np.arange(len(story)) - np.repeat(np.cumsum(per_story) - per_story, per_story) + first_row[story]
    return start[:, None] + np.arange(context + 1), story
