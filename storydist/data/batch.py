"""Batch: the stories of one micro-batch as tensors, laid end to end without padding frames.

Dimensions: B stories, N frames (of all stories), K context frames, M windows, L wordpieces, G tags, H W C image, P
characters.
A window is K consecutive frames and the frame after them; every position of every story is one (stride 1).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

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


class FrameRun(NamedTuple):
    """Consecutive frames of one story: what one sample brings to a batch. S frames.

    frames uint8 [S, H, W, 3]; wordpieces int32 [T], all descriptions end to end (no special pieces); lengths int32 [S]
    of each; tags int32 [G, 3] rows (frame within the run or -1, tag, kind); characters uint8 [S, P]; times_s float32
    [S], NaN unknown; first_position: place of the first frame in its story; score NaN unknown; valid 0.0 marks padding,
    which no sum counts.
    """

    story: int
    story_id: str
    frames: np.ndarray
    wordpieces: np.ndarray
    lengths: np.ndarray
    tags: np.ndarray
    characters: np.ndarray
    times_s: np.ndarray
    first_position: int
    score: float
    valid: float = 1.0


def padding_run(size: tuple[int, int]) -> FrameRun:
    """A run that stands where a rank has no sample: one black frame, no text, and no sum counts it."""
    return FrameRun(
        story=0,
        story_id="",
        frames=np.zeros((1, *size, 3), dtype=np.uint8),
        wordpieces=np.zeros(0, dtype=np.int32),
        lengths=np.zeros(1, dtype=np.int32),
        tags=np.zeros((0, 3), dtype=np.int32),
        characters=np.zeros((1, 0), dtype=np.uint8),
        times_s=np.full(1, np.nan, dtype=np.float32),
        first_position=0,
        score=np.nan,
        valid=0.0,
    )


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
    bad: list[Any] = field(default_factory=list)  # (span, BadSample) of what was to be in it and could not be used

    def to(self, device: torch.device) -> "Batch":
        """The same batch on `device`, lengths excepted."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory, so that `to` does not block."""
        return self._each(lambda tensor: tensor.pin_memory())

    def story(self, row: int) -> "Batch":
        """The story in row `row` of B alone, frames and windows counted from its own first frame."""
        frames = (self.frame_story_N == row).nonzero()[:, 0]
        windows = (self.window_story_M == row).nonzero()[:, 0]
        rows = {"B": torch.tensor([row]), "N": frames, "M": windows if len(windows) else torch.tensor([0])}
        # A tensor's name ends with its dimensions; the first says what its rows are.
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        values: dict[str, Any] = {name: value[rows[name.rsplit("_", 1)[1][0]]] for name, value in tensors.items()}
        values["frame_story_N"] = torch.zeros_like(values["frame_story_N"])
        values["window_story_M"] = torch.zeros_like(values["window_story_M"])
        values["windows_MK"] = values["windows_MK"] - frames[0]
        values["target_M"] = values["target_M"] - frames[0]
        if not len(windows):  # as `collate` has it
            values |= {name: torch.zeros_like(values[name]) for name in ("windows_MK", "target_M", "valid_M")}
            values["target_lengths_M"] = values["lengths_N"][:1]
        return Batch(ids=[self.ids[row]], **values)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in values.items():
            if isinstance(value, Tensor) and name not in ON_CPU:
                values[name] = change(value)
        return Batch(**values)


def collate(
    runs: Sequence[FrameRun],
    *,
    context: int,
    special: SpecialPieces,
    max_wordpieces: int,
    max_tags: int,
    frames_NHWC: Tensor | None = None,
) -> Batch:
    """One batch from `runs`, at least one. A text keeps its first max_wordpieces - 2 pieces, a frame or story its first
    max_tags tags. `frames_NHWC`: memory in which the runs' frames lie end to end already.
    """
    counts = np.array([len(run.lengths) for run in runs])
    first_row = np.cumsum(counts) - counts
    story_N = np.repeat(np.arange(len(runs)), counts)
    scores = np.array([run.score for run in runs], dtype=np.float32)
    seconds = np.concatenate([run.times_s for run in runs])
    score_known, seconds_known = ~np.isnan(scores), ~np.isnan(seconds)
    wordpieces, lengths = _pad_texts(
        np.concatenate([run.wordpieces for run in runs]),
        np.concatenate([run.lengths for run in runs]).astype(np.int64),
        special,
        max_wordpieces,
    )
    characters, character_mask = _pad_characters(runs)
    first_positions = np.array([run.first_position for run in runs])
    run_valid = np.array([run.valid for run in runs], dtype=np.float32)
    tensor = torch.from_numpy
    return Batch(
        ids=[run.story_id for run in runs],
        story_B=tensor(np.array([run.story for run in runs])),
        valid_B=tensor(run_valid),
        score_B=tensor(np.where(score_known, scores, np.float32(0))),
        score_known_B=tensor(score_known),
        character_mask_BP=tensor(character_mask),
        frames_NHWC=tensor(np.concatenate([run.frames for run in runs])) if frames_NHWC is None else frames_NHWC,
        frame_story_N=tensor(story_N),
        position_N=tensor(np.arange(len(story_N)) + (first_positions - first_row)[story_N]),
        seconds_N=tensor(np.where(seconds_known, seconds, np.float32(0))),
        seconds_known_N=tensor(seconds_known),
        wordpieces_NL=tensor(wordpieces),
        lengths_N=tensor(lengths),
        **_tags(runs, first_row, len(story_N), max_tags),
        characters_NP=tensor(characters),
        **_windows(counts, first_row, run_valid, lengths, context),
    )


def _pad_texts(
    flat_T: np.ndarray, lengths_N: np.ndarray, special: SpecialPieces, max_wordpieces: int
) -> tuple[np.ndarray, np.ndarray]:
    """int64 [N, L] and [N] from all texts end to end and the length of each."""
    flat_T, kept_N = _cut(flat_T, lengths_N, max_wordpieces - 2)
    whole_N = kept_N == lengths_N
    ends_N = kept_N + 1 + whole_N
    width = int(kept_N.max())
    padded_NL = np.zeros((len(lengths_N), int(ends_N.max())), dtype=np.int64)  # PAD
    padded_NL[:, 0] = special.cls
    # Row by row, as the texts lie in flat_T.
    padded_NL[:, 1 : 1 + width][np.arange(width) < kept_N[:, None]] = flat_T
    rows = np.flatnonzero(whole_N)
    padded_NL[rows, 1 + kept_N[rows]] = special.sep
    return padded_NL, ends_N


def _cut(flat: np.ndarray, lengths: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `most` rows of each of the pieces that lie end to end in `flat`, and their new lengths."""
    if not len(flat) or lengths.max() <= most:
        return flat, lengths
    place = np.arange(len(flat)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return flat[place < most], np.minimum(lengths, most)


def _tags(runs: Sequence[FrameRun], first_row: np.ndarray, num_frames: int, max_tags: int) -> dict[str, Any]:
    """The batch's fields for tags of frames and of stories."""
    tags_G3 = np.concatenate([run.tags for run in runs])
    story_G = np.repeat(np.arange(len(runs)), [len(run.tags) for run in runs])
    assert not len(tags_G3) or tags_G3[:, 2].max() < len(TAG_KINDS), tags_G3[:, 2].max()
    own_G = tags_G3[:, 0] < 0
    of_story, of_frame = np.flatnonzero(own_G), np.flatnonzero(~own_G)
    row_G = (first_row.take(story_G) + tags_G3[:, 0]).take(of_frame)
    tags_NG, kinds_NG, mask_NG = _pad_tags(row_G, tags_G3.take(of_frame, axis=0), num_frames, max_tags)
    tags_BG, _, mask_BG = _pad_tags(story_G.take(of_story), tags_G3.take(of_story, axis=0), len(runs), max_tags)
    return {
        "tags_NG": tags_NG,
        "tag_kinds_NG": kinds_NG,
        "tag_mask_NG": mask_NG,
        "story_tags_BG": tags_BG,
        "story_tag_mask_BG": mask_BG,
    }


def _pad_tags(row_G: np.ndarray, tags_G3: np.ndarray, num_rows: int, max_tags: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tag and kind, int64 [R, G], and which are there; from (_, tag, kind) in order of mention and the row of each."""
    if (row_G[1:] < row_G[:-1]).any():
        order = np.argsort(row_G, kind="stable")
        row_G, tags_G3 = row_G[order], tags_G3.take(order, axis=0)
    tags_G3, counts_R = _cut(tags_G3, np.bincount(row_G, minlength=num_rows), max_tags)
    present_RG = np.arange(max(1, int(counts_R.max()))) < counts_R[:, None]
    tags_RG, kinds_RG = np.zeros((2, *present_RG.shape), dtype=np.int64)
    # Row by row, as the tags lie in tags_G3.
    tags_RG[present_RG], kinds_RG[present_RG] = tags_G3[:, 1], tags_G3[:, 2]
    return torch.from_numpy(tags_RG), torch.from_numpy(kinds_RG), torch.from_numpy(present_RG)


def _pad_characters(runs: Sequence[FrameRun]) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [N, P] and bool [B, P]: presence, and which columns are characters of the story."""
    width = max(1, *(run.characters.shape[1] for run in runs))
    present = np.zeros((sum(len(run.lengths) for run in runs), width), dtype=np.uint8)
    mask = np.zeros((len(runs), width), dtype=bool)
    row = 0
    for story, run in enumerate(runs):
        num_frames, num_characters = run.characters.shape
        present[row : row + num_frames, :num_characters] = run.characters
        mask[story, :num_characters] = True
        row += num_frames
    return present, mask


def _windows(
    counts_B: np.ndarray, first_row_B: np.ndarray, valid_B: np.ndarray, lengths_N: np.ndarray, context: int
) -> dict[str, Any]:
    """The batch's fields for windows: every K + 1 rows of N in a row that belong to one story."""
    per_story_B = np.maximum(counts_B - context, 0)
    story_M = np.repeat(np.arange(len(counts_B)), per_story_B)
    start_M = np.arange(len(story_M)) + (first_row_B - np.cumsum(per_story_B) + per_story_B)[story_M]
    windows_MK, valid_M = start_M[:, None] + np.arange(context + 1), valid_B[story_M]
    if not len(story_M):  # every parameter takes part in every backward, if only by a window that counts nothing
        windows_MK = np.zeros((1, context + 1), dtype=np.int64)
        story_M, valid_M = np.zeros(1, dtype=np.int64), np.zeros(1, np.float32)
    tensor = torch.from_numpy
    return {
        "windows_MK": tensor(windows_MK[:, :context]),
        "target_M": tensor(windows_MK[:, context]),
        "window_story_M": tensor(story_M),
        "target_lengths_M": tensor(lengths_N[windows_MK[:, context]]),
        "valid_M": tensor(valid_M),
    }
