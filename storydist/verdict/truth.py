"""What a batch really holds, and what a predictor says of it.

`Truth` is computed once per batch and shared by the model and all floors: all are judged on the same windows.
Dimensions: M valid windows, K input frames, B valid stories, T target wordpieces, P characters, E embedding width,
C H W image.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from storydist.data.batch import Batch
from storydist.verdict.metrics import NEAR_COPY_L1, input_error

TextTarget = Callable[[Tensor], Tensor]  # wordpieces_NL -> frozen embeddings [N, E]


@dataclass
class Truth:
    """The valid windows and stories of one batch. Pictures float32 in [0, 1]; keys name equal contents."""

    story_M: np.ndarray  # int64, story number in the index
    position_M: np.ndarray  # int64, place of the target in its story
    inputs_MKCHW: Tensor
    target_MCHW: Tensor
    input_error_MK: Tensor  # float64
    near_M: Tensor  # bool: some input is a near copy of the target
    frame_key_M: np.ndarray  # int64
    text_key_M: np.ndarray  # int64
    input_texts_MK: list[list[np.ndarray]]  # wordpieces, special ones included
    target_texts_M: list[np.ndarray]
    wordpieces_T: Tensor  # of all targets, [CLS] left out, window after window: what a text decoder is scored on
    target_embedding_ME: Tensor
    last_embedding_ME: Tensor  # of the last input's description
    characters_MKP: Tensor  # bool, in each input
    target_characters_MP: Tensor
    character_mask_MP: Tensor
    story_B: np.ndarray  # int64
    score_B: np.ndarray  # float64, the score's unit, NaN unknown


@dataclass
class Guess:
    """What a predictor (the model or a floor) says of a `Truth`; None where it says nothing. Rows as in Truth."""

    frame_MCHW: Tensor | None = None
    embedding_ME: Tensor | None = None
    wordpiece_losses_T: Tensor | None = None  # nats, float64
    shuffle_losses_T: Tensor | None = None  # what each wordpiece's loss gains when windows exchange their conditions
    characters_MP: Tensor | None = None  # bool
    score_B: np.ndarray | None = None
    texts: dict[int, str] | None = None  # by row of M; only some windows get a text


def valid_windows(batch: Batch) -> Batch:
    """The batch with its valid windows only, stories and frames untouched: every field whose rows are M is cut."""
    return select_windows(batch, torch.nonzero(batch.valid_M > 0).flatten())


def select_windows(batch: Batch, rows: Tensor) -> Batch:
    """The batch with only these windows (int64 rows of M), stories and frames untouched."""
    named = [f.name for f in fields(batch) if f.name.rpartition("_")[2].startswith("M")]
    return replace(batch, **{name: getattr(batch, name)[rows.to(getattr(batch, name).device)] for name in named})


def truth_of(batch: Batch, text_target: TextTarget) -> Truth:
    """The Truth of a batch on any device. Frames and stories that are padding appear nowhere in it."""
    cut = valid_windows(batch)
    target, windows = cut.target_M, cut.windows_MK
    # NHWC bytes -> NCHW in [0, 1]
    frames_NCHW = batch.frames_NHWC.permute(0, 3, 1, 2).float() / 255
    inputs, targets = frames_NCHW[windows], frames_NCHW[target]
    errors = input_error(inputs, targets)
    embedding_NE = text_target(batch.wordpieces_NL).float()
    texts = texts_of(batch)
    rows, stories = target.tolist(), torch.nonzero(batch.valid_B > 0).flatten()
    characters = batch.characters_NP.bool()
    scores = torch.where(batch.score_known_B, batch.score_B.double(), torch.nan)
    return Truth(
        story_M=batch.story_B[cut.window_story_M].cpu().numpy(),
        position_M=batch.position_N[target].cpu().numpy(),
        inputs_MKCHW=inputs,
        target_MCHW=targets,
        input_error_MK=errors,
        near_M=(errors <= NEAR_COPY_L1).any(1),
        frame_key_M=_keys([frame.tobytes() for frame in batch.frames_NHWC[target].cpu().numpy()]),
        text_key_M=_keys([texts[row].tobytes() for row in rows]),
        input_texts_MK=[[texts[row] for row in window] for window in windows.tolist()],
        target_texts_M=[texts[row] for row in rows],
        wordpieces_T=torch.cat(
            [batch.wordpieces_NL[row, 1 : len(texts[row])] for row in rows] or [batch.wordpieces_NL[:0, 0]]
        ),
        target_embedding_ME=embedding_NE[target],
        last_embedding_ME=embedding_NE[windows[:, -1]],
        characters_MKP=characters[windows],
        target_characters_MP=characters[target],
        character_mask_MP=batch.character_mask_BP[cut.window_story_M],
        story_B=batch.story_B[stories].cpu().numpy(),
        score_B=scores[stories].cpu().numpy(),
    )


def texts_of(batch: Batch) -> list[np.ndarray]:
    """Wordpieces of every frame without padding, int64, [CLS] first."""
    wordpieces, lengths = batch.wordpieces_NL.cpu().numpy(), batch.lengths_N.tolist()
    return [row[:length] for row, length in zip(wordpieces, lengths, strict=True)]


def _keys(contents: list[bytes]) -> np.ndarray:
    """int64, equal for equal bytes (64 bits of BLAKE2b)."""
    digests = [hashlib.blake2b(content, digest_size=8).digest() for content in contents]
    return np.array([int.from_bytes(digest, "little", signed=True) for digest in digests], dtype=np.int64)
