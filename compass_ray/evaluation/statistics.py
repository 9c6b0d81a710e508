"""Is a difference real? Intervals, tests and effect sizes for paired scores.

Everything is on plain arrays of N scores (or N paired differences) and seeded. Scores of test
items take few distinct values (0 and 1, say), which both resampling methods use: how often each
value is drawn is then multinomial or binomial, and the cost no longer grows with N.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]

# Random numbers held at once, 32 MB of float64.
BLOCK = 1 << 22
# Up to here a multinomial draw of the values' counts is faster than N draws of rows.
FEW_VALUES = 32


def bootstrap_ci(
    values: ArrayLike, confidence: float = 0.95, n_resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron, 1979).

    For the interval of a paired difference pass the differences ``a - b``.

    Args:
        values: finite scores [N], N ≥ 1; the interval keeps their unit.
        confidence: share of resampled means inside, between 0 and 1.
        n_resamples: resamples of N values with replacement.
        seed: of the random numbers.

    Returns:
        ``(low, high)``.

    Raises:
        ValueError: no values, a non-finite one, or an option out of range.
    """
    values_N = _scores(values, "values")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: a number between 0 and 1 is needed, not {confidence}")
    if n_resamples < 1:
        raise ValueError(f"n_resamples: at least 1 is needed, not {n_resamples}")
    rng = np.random.default_rng(seed)
    distinct, counts = np.unique(values_N, return_counts=True)
    means_R = np.empty(n_resamples)
    if len(distinct) <= FEW_VALUES:
        drawn = rng.multinomial(len(values_N), counts / len(values_N), size=n_resamples)
        means_R[:] = drawn @ distinct / len(values_N)
    else:
        for rows in _blocks(n_resamples, len(values_N)):
            drawn = rng.integers(len(values_N), size=(rows.stop - rows.start, len(values_N)))
            means_R[rows] = values_N[drawn].mean(axis=1)
    low, high = np.quantile(means_R, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def paired_permutation_test(
    a: ArrayLike, b: ArrayLike, n_permutations: int = 10_000, seed: int = 0
) -> float:
    """Two-sided p value of the mean paired difference, by flipping the signs of differences.

    Equal pairs have no sign to flip, so only the D unequal ones matter. When their ``2^D`` flips
    are at most ``n_permutations``, all are enumerated and the p value is exact: the share with a
    mean at least as far from 0 as the observed one. Otherwise ``n_permutations`` random flips give
    ``(count + 1) / (n_permutations + 1)``, which is never 0 (Phipson and Smyth, 2010).

    Args:
        a: finite scores [N], N ≥ 1.
        b: finite scores [N] of the same items in the same order.
        n_permutations: most sign flips to try.
        seed: of the random numbers.

    Raises:
        ValueError: shapes differ, no pairs, a non-finite score, or ``n_permutations`` below 1.
    """
    if n_permutations < 1:
        raise ValueError(f"n_permutations: at least 1 is needed, not {n_permutations}")
    differences_N = _differences(a, b)
    sizes_D = np.abs(differences_N[differences_N != 0])
    # Flips that tie with the observed one must count in spite of rounding.
    observed = abs(differences_N.sum()) - 1e-12 * sizes_D.sum()
    if len(sizes_D) < 63 and 2 ** len(sizes_D) <= n_permutations:
        return float(np.mean(np.abs(_all_flipped_sums(sizes_D)) >= observed))
    # Of c differences of one size, a fair coin flips a binomial number.
    distinct_U, counts_U = np.unique(sizes_D, return_counts=True)
    rng = np.random.default_rng(seed)
    extreme = 0
    for rows in _blocks(n_permutations, len(distinct_U)):
        size = (rows.stop - rows.start, len(distinct_U))
        signs = 2 * rng.binomial(counts_U, 0.5, size=size) - counts_U
        extreme += int(np.count_nonzero(np.abs(signs @ distinct_U) >= observed))
    return (extreme + 1) / (n_permutations + 1)


def cohens_d(a: ArrayLike, b: ArrayLike) -> float:
    """Effect size of paired samples: mean of ``a - b`` over their standard deviation (ddof = 1).

    This is d_z of Cohen (1988), not the d of two independent groups. Without spread it is 0.0
    for no difference and ±inf for a constant one; spread that is only rounding counts as none.

    Args:
        a: finite scores [N], N ≥ 2.
        b: finite scores [N] of the same items in the same order.

    Raises:
        ValueError: shapes differ, fewer than two pairs, or a non-finite score.
    """
    differences_N = _differences(a, b)
    if len(differences_N) < 2:
        raise ValueError("a, b: a standard deviation needs at least two pairs, not one")
    rounding = 8 * np.finfo(np.float64).eps * max(np.abs(a).max(), np.abs(b).max())
    mean, deviation = float(differences_N.mean()), float(differences_N.std(ddof=1))
    if deviation > rounding:
        return mean / deviation
    return 0.0 if abs(mean) <= rounding else float(np.copysign(np.inf, mean))


def holm(p_values: ArrayLike) -> FloatArray:
    """Adjust p values for many tests at once by Holm's step-down method (Holm, 1979).

    The i-th smallest of M (from 0) is multiplied by ``M - i``, raised to the largest before it,
    and cut at 1.

    Args:
        p_values: numbers in [0, 1], [M]; M may be 0.

    Returns:
        Adjusted p values [M] in the order given.

    Raises:
        ValueError: a value outside [0, 1].
    """
    p_M = np.asarray(p_values, dtype=np.float64)
    if p_M.ndim != 1:
        raise ValueError(f"p_values: one dimension is needed, not shape {p_M.shape}")
    if not ((p_M >= 0) & (p_M <= 1)).all():
        raise ValueError("p_values: numbers from 0 to 1 are needed")
    order = np.argsort(p_M, kind="stable")
    steps = p_M[order] * np.arange(len(p_M), 0, -1)
    adjusted_M = np.empty_like(p_M)
    adjusted_M[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted_M


def _all_flipped_sums(sizes_D: FloatArray) -> FloatArray:
    """The 2^D values of ``Σ ±size``."""
    sums = np.zeros(1)
    for size in sizes_D:
        sums = np.concatenate([sums - size, sums + size])
    return sums


def _blocks(rows: int, width: int) -> Iterator[slice]:
    """Slices of ``range(rows)`` of at most BLOCK numbers each, when a row has ``width``."""
    height = max(1, BLOCK // width)
    return (slice(start, min(start + height, rows)) for start in range(0, rows, height))


def _differences(a: ArrayLike, b: ArrayLike) -> FloatArray:
    a_N, b_N = _scores(a, "a"), _scores(b, "b")
    if a_N.shape != b_N.shape:
        raise ValueError(f"a and b: {len(a_N)} and {len(b_N)} scores are no pairs")
    return a_N - b_N


def _scores(values: ArrayLike, name: str) -> FloatArray:
    values_N = np.asarray(values, dtype=np.float64)
    if values_N.ndim != 1 or len(values_N) == 0:
        raise ValueError(f"{name}: one or more scores in one dimension are needed")
    if not np.isfinite(values_N).all():
        raise ValueError(f"{name}: finite scores are needed")
    return values_N
