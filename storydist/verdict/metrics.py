"""Sums, counts and rows of every picture metric: added per batch, merged across ranks, divided once.

All sums are float64. Adding the same windows in any batches, on any ranks, gives the same figures up to rounding.
Dimensions: M windows, K input frames, P characters, U distinct targets, E embedding width, C H W image.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

NEAR_COPY_L1 = 0.06  # some input frame at most this far from the target: the shot continues
DESCRIPTOR_SIZE = (6, 12)  # rows, columns of the area-averaged picture by which frames are retrieved
RETRIEVAL_CHUNK = 1024  # queries compared at once; bounds the memory, not the result


@dataclass
class Mean:
    """A sum and its count; `value` divides once. Also serves ratios of sums (F1, sharpness)."""

    total: float = 0.0
    count: float = 0.0

    def add(self, total: float | Tensor, count: float | Tensor) -> None:
        """Adds a sum over `count` things."""
        self.total += float(total)
        self.count += float(count)

    def merge(self, other: "Mean") -> None:
        """Adds what another rank has summed."""
        self.add(other.total, other.count)

    @property
    def value(self) -> float | None:
        """total / count; None while nothing was counted."""
        return self.total / self.count if self.count else None


@dataclass
class Moments:
    """Per-element mean and sum of squared deviations of equally shaped arrays, float64.

    Merged by Chan, Golub & LeVeque (1979), eq. 2.1: large sums of squares are never subtracted from each other.
    """

    count: int = 0
    mean: np.ndarray | None = None
    squares: np.ndarray | None = None

    def add(self, values: Tensor) -> None:
        """Adds `values` [M, ...], M of any size."""
        if len(values):
            values = values.double()
            mean = values.mean(0)
            self._combine(len(values), mean.cpu().numpy(), ((values - mean) ** 2).sum(0).cpu().numpy())

    def merge(self, other: "Moments") -> None:
        """Adds what another rank has seen."""
        if other.mean is not None and other.squares is not None:
            self._combine(other.count, other.mean, other.squares)

    def _combine(self, count: int, mean: np.ndarray, squares: np.ndarray) -> None:
        if self.mean is None or self.squares is None:
            self.count, self.mean, self.squares = count, mean.copy(), squares.copy()
            return
        total = self.count + count
        delta = mean - self.mean
        self.mean = self.mean + delta * (count / total)
        self.squares = self.squares + squares + delta**2 * (self.count * count / total)
        self.count = total

    @property
    def spread(self) -> float | None:
        """Population standard deviation of each element over all M, averaged over the elements; None: nothing seen."""
        return None if self.squares is None else float(np.sqrt(self.squares / self.count).mean())


@dataclass
class Rows:
    """Columns of equal length, collected in pieces. Columns `story` and `position` (int64) give their final order."""

    pieces: list[dict[str, np.ndarray]] = field(default_factory=list)

    def add(self, columns: Mapping[str, np.ndarray]) -> None:
        """Adds M rows; every call must bring the same columns."""
        assert len({len(column) for column in columns.values()}) == 1, {n: len(c) for n, c in columns.items()}
        self.pieces.append(dict(columns))

    def merge(self, other: "Rows") -> None:
        """Adds another rank's rows."""
        self.pieces.extend(other.pieces)

    def columns(self) -> dict[str, np.ndarray]:
        """All rows ordered by story, then position, whatever order they came in; {} if there are none."""
        if not self.pieces:
            return {}
        joined = {name: np.concatenate([piece[name] for piece in self.pieces]) for name in self.pieces[0]}
        order = np.lexsort((joined["position"], joined["story"]))
        return {name: column[order] for name, column in joined.items()}


def absolute_error(predicted_MCHW: Tensor, target_MCHW: Tensor) -> Tensor:
    """Mean absolute pixel error of each window, float64 [M], in [0, 1] for pictures in [0, 1]."""
    _require_same_shape(predicted_MCHW, target_MCHW)
    return (predicted_MCHW.float() - target_MCHW.float()).abs().mean((1, 2, 3), dtype=torch.float64)


def input_error(inputs_MKCHW: Tensor, target_MCHW: Tensor) -> Tensor:
    """`absolute_error` of each of the K inputs as a prediction of the target, float64 [M, K]."""
    return (inputs_MKCHW.float() - target_MCHW.float()[:, None]).abs().mean((2, 3, 4), dtype=torch.float64)


def laplacian_variance(frames_MCHW: Tensor) -> Tensor:
    """Variance of the Laplacian (4-neighbour, interior pixels) of the channel mean, float64 [M]; large: sharp.

    Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", 2000.
    """
    grey = frames_MCHW.double().mean(1)
    centre = grey[:, 1:-1, 1:-1]
    around = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    laplacian = (around - 4 * centre).flatten(1)
    return ((laplacian - laplacian.mean(1, keepdim=True)) ** 2).mean(1)


def frame_descriptor(frames_MCHW: Tensor) -> Tensor:
    """Pictures averaged by area to 6 x 12 cells x C colours, float32 [M, 72 C]: what is where, without detail."""
    return functional.adaptive_avg_pool2d(frames_MCHW.float(), DESCRIPTOR_SIZE).flatten(1)


def retrieval_ranks(predicted_ME: np.ndarray, target_ME: np.ndarray, key_M: np.ndarray) -> tuple[np.ndarray, int]:
    """Rank of each true target among the U distinct targets, int64 [M] from 1, and U.

    Targets with equal `key_M` have the same content: they stand in the gallery once, so that no target is marked wrong
    for naming its own twin. Cosine after subtracting the gallery's mean from both sides. Ties count against the
    prediction: one that says nothing (all cosines equal) ranks last.
    """
    _, first, twin_M = np.unique(key_M, return_index=True, return_inverse=True)
    gallery_UE = target_ME[first].astype(np.float64)
    mean_E = gallery_UE.mean(0)
    gallery_UE = _unit_length(gallery_UE - mean_E)
    ranks = np.empty(len(key_M), dtype=np.int64)
    for start in range(0, len(key_M), RETRIEVAL_CHUNK):
        chunk = slice(start, start + RETRIEVAL_CHUNK)
        cosine = _unit_length(predicted_ME[chunk].astype(np.float64) - mean_E) @ gallery_UE.T
        true = np.take_along_axis(cosine, twin_M[chunk, None], axis=1)
        # A tie is a tie in spite of rounding in the last bits.
        ranks[chunk] = (cosine >= true - 1e-12).sum(1)
    return ranks, len(first)


def _unit_length(rows: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, norm, out=np.zeros_like(rows), where=norm > 1e-12)


def recall_at(ranks: np.ndarray, k: int) -> float:
    """Share of ranks that are at most k."""
    return float((ranks <= k).mean())


def f1_counts(predicted_MP: Tensor, present_MP: Tensor, mask_MP: Tensor) -> tuple[float, float]:
    """Micro F1 as (sum, count) = (2 TP, 2 TP + FP + FN) over the positions where `mask_MP`; all three bool."""
    predicted, present = predicted_MP & mask_MP, present_MP & mask_MP
    return 2.0 * float((predicted & present).sum()), float(predicted.sum() + present.sum())


def _require_same_shape(predicted: Tensor, target: Tensor) -> None:
    if predicted.shape != target.shape:
        raise ValueError(
            f"predictions have shape {tuple(predicted.shape)}, targets {tuple(target.shape)}; they must be equal"
        )
