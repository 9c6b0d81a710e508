"""Distributions over clusters: counting, smoothing, and how far apart two of them are.

Shapes: N rows, K clusters, D dimensions. Divergences are in bits (base 2). Knows nothing of
languages, texts or where the labels come from.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import rel_entr

from compass_ray.embedding.space import unit

FloatArray = NDArray[np.float64]


def histogram(labels: ArrayLike, k: int, weights: ArrayLike | None = None) -> FloatArray:
    """Count the rows, or add up their weights, in each of ``k`` clusters.

    Args:
        labels: integers [N] in ``[0, k)``.
        k: number of clusters, at least 1.
        weights: one finite weight ≥ 0 a row, [N]; without it every row counts 1.

    Returns:
        float64 [K].

    Raises:
        ValueError: a label is no integer or out of range, or the weights do not fit the labels.
    """
    if k < 1:
        raise ValueError(f"k: at least one cluster is needed, not {k}")
    labels_N = np.asarray(labels)
    if labels_N.ndim != 1:
        raise ValueError(f"labels: one dimension is needed, not shape {labels_N.shape}")
    if labels_N.size and not np.issubdtype(labels_N.dtype, np.integer):
        raise ValueError(f"labels: integers are needed, not {labels_N.dtype}")
    outside = (labels_N < 0) | (labels_N >= k)
    if outside.any():
        raise ValueError(f"labels: {labels_N[outside][0]} is outside 0 to {k - 1}")
    labels_N = labels_N.astype(np.int64)
    if weights is None:
        return np.bincount(labels_N, minlength=k).astype(np.float64)
    weights_N = _nonnegative(weights, "weights")
    if weights_N.shape != labels_N.shape:
        raise ValueError(f"weights: {len(weights_N)} given for {len(labels_N)} labels")
    return np.bincount(labels_N, weights=weights_N, minlength=k).astype(np.float64)


def counted(labels: ArrayLike, k: int, weights: ArrayLike) -> FloatArray:
    """A weighted ``histogram`` that sums to the number of rows, whatever unit the weights are in.

    So a pseudo-count of smoothing is worth as much of a row. Weights that are all equal count
    every row 1; where all are 0 nothing is counted. Takes and raises what ``histogram`` does.

    Returns:
        float64 [K].
    """
    counts_K = histogram(labels, k, weights)
    total = counts_K.sum()
    return counts_K * (np.size(labels) / total) if total > 0 else counts_K


def prototypes(
    vectors_ND: NDArray[np.floating[Any]],
    labels_N: NDArray[np.integer[Any]],
    weights_N: NDArray[np.floating[Any]],
    k: int,
) -> NDArray[np.float32]:
    """Mean vector of each cluster at length 1; zeros where there are no rows.

    Args:
        vectors_ND: unit vectors.
        labels_N: cluster of each, integers in ``[0, k)``.
        weights_N: how much each counts, ≥ 0.
        k: number of clusters.

    Returns:
        float32 [K, D].

    Raises:
        ValueError: a vector is not finite.
    """
    sums_KD = np.zeros((k, vectors_ND.shape[1]))
    np.add.at(sums_KD, labels_N, vectors_ND * weights_N[:, None])
    return unit(sums_KD, 0.0).astype(np.float32)


def smooth(counts: ArrayLike, alpha: float) -> FloatArray:
    """Additive smoothing, ``p(c) = (e(c) + α) / (Σe + αK)``.

    Args:
        counts: finite counts ≥ 0, [K].
        alpha: pseudo-count ≥ 0 of every cluster; 0 leaves the plain shares.

    Returns:
        float64 [K], summing to 1; uniform where nothing was counted.

    Raises:
        ValueError: negative or non-finite input, or neither a count nor a pseudo-count.
    """
    if not (np.isfinite(alpha) and alpha >= 0):
        raise ValueError(f"alpha: a finite number of at least 0 is needed, not {alpha}")
    return _normalised(_nonnegative(counts, "counts") + alpha, "counts")


def js_divergence(p: ArrayLike, q: ArrayLike) -> float:
    """Jensen-Shannon divergence in bits: 0 for equal shapes, 1 for disjoint ones.

    It is the divergence, not its square root (the "distance" of some libraries):
    ``JS = KL(p ‖ m)/2 + KL(q ‖ m)/2`` with ``m = (p + q)/2`` (Lin, 1991).

    Args:
        p: finite weights ≥ 0, [K]; normalised here.
        q: finite weights ≥ 0, [K]; normalised here.

    Raises:
        ValueError: the shapes differ, a weight is negative or non-finite, or all of one are 0.
    """
    p_K, q_K = _pair(p, q)
    sum_K = p_K + q_K
    # Doubling p instead of halving the sum: the half of the smallest float would be 0.
    nats = (rel_entr(2 * p_K, sum_K).sum() + rel_entr(2 * q_K, sum_K).sum()) / 4
    return float(np.clip(nats / np.log(2), 0.0, 1.0))


def kl_divergence(p: ArrayLike, q: ArrayLike) -> float:
    """Kullback-Leibler divergence ``KL(p ‖ q) = Σ p log₂(p/q)`` in bits.

    Infinite where ``q`` is 0 and ``p`` is not.

    Args:
        p: finite weights ≥ 0, [K]; normalised here.
        q: finite weights ≥ 0, [K]; normalised here.

    Raises:
        ValueError: the shapes differ, a weight is negative or non-finite, or all of one are 0.
    """
    p_K, q_K = _pair(p, q)
    return float(max(rel_entr(p_K, q_K).sum() / np.log(2), 0.0))


def _pair(p: ArrayLike, q: ArrayLike) -> tuple[FloatArray, FloatArray]:
    p_K, q_K = _nonnegative(p, "p"), _nonnegative(q, "q")
    if p_K.shape != q_K.shape:
        raise ValueError(f"p and q: shapes {p_K.shape} and {q_K.shape} differ")
    return _normalised(p_K, "p"), _normalised(q_K, "q")


def _nonnegative(values: ArrayLike, name: str) -> FloatArray:
    values_K = np.asarray(values, dtype=np.float64)
    if values_K.ndim != 1:
        raise ValueError(f"{name}: one dimension is needed, not shape {values_K.shape}")
    if not (np.isfinite(values_K).all() and (values_K >= 0).all()):
        raise ValueError(f"{name}: finite numbers of at least 0 are needed")
    return values_K


def _normalised(weights_K: FloatArray, name: str) -> FloatArray:
    largest = weights_K.max(initial=0.0)
    if largest == 0:
        raise ValueError(f"{name}: all {len(weights_K)} entries are 0, so there is no distribution")
    scaled_K = weights_K / largest  # so that the sum cannot overflow
    return np.asarray(scaled_K / scaled_K.sum(), dtype=np.float64)
