"""Errors of predicted story scores, in the score's unit, with bootstrap intervals over stories."""

import numpy as np

CONSTANT = 1e-12  # a standard deviation below this, relative to the largest value, is that of a constant


def score_errors(predicted_B: np.ndarray, true_B: np.ndarray) -> dict[str, float | None]:
    """MAE and RMSE (the score's unit), R2, Pearson and Spearman of B stories, float64.

    R2 = 1 - sum (true - predicted)^2 / sum (true - mean true)^2, with the mean of these very stories. None where
    undefined: a correlation with a constant, R2 of constant true scores, anything of fewer than two stories.
    """
    if predicted_B.shape != true_B.shape:
        raise ValueError(f"{predicted_B.shape} predicted scores for {true_B.shape} true ones; the shapes must be equal")
    predicted, true = predicted_B.astype(np.float64), true_B.astype(np.float64)
    if len(true) < 2:
        return dict.fromkeys(("score MAE", "score RMSE", "score R2", "score Pearson", "score Spearman"))
    error = predicted - true
    deviation = true - true.mean()
    from scipy.stats import rankdata  # takes a second, and no run starts or resumes with it

    return {
        "score MAE": float(np.abs(error).mean()),
        "score RMSE": float(np.sqrt((error**2).mean())),
        "score R2": None if _is_constant(true) else float(1 - (error**2).sum() / (deviation**2).sum()),
        "score Pearson": correlation(predicted, true),
        "score Spearman": correlation(rankdata(predicted), rankdata(true)),
    }


def correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Pearson's r of two equally long arrays; None if either is constant."""
    if _is_constant(a) or _is_constant(b):
        return None
    a, b = a - a.mean(), b - b.mean()
    return float((a @ b) / np.sqrt((a @ a) * (b @ b)))


def _is_constant(values: np.ndarray) -> bool:
    return bool(values.std() <= CONSTANT * max(1.0, float(np.abs(values).max())))


def bootstrap_intervals(
    predicted_B: np.ndarray, true_B: np.ndarray, *, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, tuple[float, float] | None]:
    """Percentile interval of each of `score_errors`, from stories drawn with replacement (Efron 1979).

    Resamples in which a metric is undefined are left out of its interval; None if all are, or below two stories.
    """
    generator = np.random.default_rng(seed)
    drawn: dict[str, list[float]] = {name: [] for name in score_errors(predicted_B, true_B)}
    for _ in range(resamples if len(true_B) > 1 else 0):
        rows = generator.integers(0, len(true_B), len(true_B))
        for name, value in score_errors(predicted_B[rows], true_B[rows]).items():
            if value is not None:
                drawn[name].append(value)
    tail = (1 - level) / 2
    return {n: tuple(float(q) for q in np.quantile(v, (tail, 1 - tail))) if v else None for n, v in drawn.items()}  # type: ignore[misc]
