"""Has usage moved? Calibrated tests of a window of prompts against the reference. Pure.

* *Histogram*: Jensen-Shannon divergence of the shares of clusters; sees many small moves.
* *One cluster*: the largest standardised change of a single share. In the divergence the noise of
  all other clusters drowns a move to one: a tenth of the usage was found in 84 to 92 of 100
  windows by the divergence and in 91 to 100 by this (window 500, reference 1,000).
* *Novelty*: how many prompts are farther from every centroid than the reference's were. Prompts of
  a new kind fall into the clusters there are and may leave their shares as they were.

Thresholds hold at any size of window and reference. A reference of R prompts is itself a sample;
a threshold that takes it for the truth alarms far too often once windows are as large as it. So
the null hypothesis is that window and reference are draws of one usage. Two thirds of alpha are for
the first two tests, whose joint rate is calibrated, and a third for the last, so that a stable
stream alarms at a rate of at most alpha.

Shapes: N prompts of the window, R of the reference, K clusters, M resamples, G groups of prompts
that are alike. Divergences are in bits. Knows nothing of texts, encoders or files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import rel_entr

from compass_ray.clustering.novelty import is_novel, known_beyond, novelty_cutoff
from compass_ray.sampling.distribution import histogram

FloatArray = NDArray[np.float64]
Threshold = float | Literal["calibrated"]

RESAMPLES = 2999
"""M; two thirds of the usual alphas times M + 1 are whole, so the test has exactly that size."""

NOVELTY_PART = 1 / 3
"""Part of alpha that the novelty test spends."""

# Numbers in one block of splits, 32 MB.
_BLOCK = 1 << 22


@dataclass(frozen=True, eq=False)
class Located:
    """Prompts in a run's clusters, row for row.

    Attributes:
        clusters_N: nearest centroid, integers in [0, K).
        distances_N: Euclidean distance to it.
        weights_N: how much each prompt counts, above 0.
    """

    clusters_N: NDArray[np.int32]
    distances_N: NDArray[np.float32]
    weights_N: FloatArray

    def __len__(self) -> int:
        return len(self.clusters_N)

    def shares(self, k: int) -> FloatArray:
        counts_K = histogram(self.clusters_N, k, self.weights_N)
        return np.asarray(counts_K / counts_K.sum())


@dataclass(frozen=True)
class Move:
    """How one cluster's share of usage changed; ``bits`` is its part of the divergence."""

    cluster: int
    before: float
    after: float
    bits: float


@dataclass(frozen=True)
class DriftReport:
    """One window against the reference.

    Attributes:
        rows: prompts in the window.
        divergence: Jensen-Shannon divergence of the two histograms, bits.
        threshold: what the divergence must exceed to be drift.
        novel_share: share of prompts farther from every centroid than ``cutoff``.
        novel_threshold: what that share must exceed to be drift.
        cutoff: Euclidean distance beyond which a prompt is novel.
        largest_move: largest change of one cluster's share, in standard deviations.
        largest_threshold: what it must exceed to be drift; infinite beside a fixed threshold.
        moved: whether the histogram drifted, as a whole or in one cluster.
        novel: whether the share of novel prompts did.
        moves: the clusters that make up most of the divergence, largest part first.
    """

    rows: int
    divergence: float
    threshold: float
    novel_share: float
    novel_threshold: float
    cutoff: float
    largest_move: float
    largest_threshold: float
    moved: bool
    novel: bool
    moves: tuple[Move, ...]

    @property
    def drifted(self) -> bool:
        return self.moved or self.novel


def detect(
    reference: Located,
    window: Located,
    k: int,
    *,
    alpha: float = 0.01,
    threshold: Threshold = "calibrated",
    seed: int = 0,
    moves: int = 5,
) -> DriftReport:
    """Test a window against the reference.

    Args:
        reference: usage that the adapter was built for, at least one prompt.
        window: new usage, at least one prompt.
        k: number of clusters.
        alpha: rate at which windows of the very same usage alarm, over all tests.
        threshold: a fixed divergence, in bits, instead of the calibrated thresholds of histogram
            and single cluster.
        seed: of the resampling; equal input, equal answer.
        moves: how many clusters to tell of.

    Raises:
        ValueError: there are no prompts on one side.
    """
    if not len(reference) or not len(window):
        raise ValueError("drift: both the reference and the window need prompts")
    before_K, after_K = reference.shares(k), window.shares(k)
    pooled = Pooled.of(reference, window)
    if threshold == "calibrated":
        limits = calibrated_limits(pooled, alpha * (1 - NOVELTY_PART), seed)
    else:
        limits = Limits(threshold, math.inf)
    divergence, largest = (
        float(found_M[0]) for found_M in pooled.statistics(pooled.window_G[None])
    )
    cutoff, most = novelty_limit(reference.distances_N, len(window), alpha * NOVELTY_PART)
    novel = int(is_novel(window.distances_N, cutoff).sum())
    return DriftReport(
        rows=len(window),
        divergence=divergence,
        threshold=limits.divergence,
        novel_share=novel / len(window),
        novel_threshold=most / len(window),
        cutoff=cutoff,
        largest_move=largest,
        largest_threshold=limits.largest_move,
        moved=divergence > limits.divergence or largest > limits.largest_move,
        novel=novel > most,
        moves=_moves(before_K, after_K, moves),
    )


@dataclass(frozen=True)
class Limits:
    """What two draws of one usage exceed, the one or the other, at the rate asked for."""

    divergence: float
    largest_move: float


@dataclass(frozen=True, eq=False)
class Pooled:
    """Reference and window put together; prompts of one cluster and weight are alike, and counted.

    Attributes:
        clusters_G: cluster of each group, ascending.
        weights_G: weight of each of its prompts; the largest is 1.
        reference_G: prompts of the reference.
        window_G: prompts of the window.
    """

    clusters_G: NDArray[np.int64]
    weights_G: FloatArray
    reference_G: NDArray[np.int64]
    window_G: NDArray[np.int64]

    @classmethod
    def of(cls, reference: Located, window: Located) -> Pooled:
        weights = np.concatenate([reference.weights_N, window.weights_N])
        clusters = np.concatenate([reference.clusters_N, window.clusters_N])
        prompts = np.column_stack([clusters, weights / weights.max()])
        groups_G2, group_N = np.unique(prompts, axis=0, return_inverse=True)
        size = len(groups_G2)
        return cls(
            groups_G2[:, 0].astype(np.int64),
            groups_G2[:, 1],
            np.bincount(group_N[: len(reference)], minlength=size),
            np.bincount(group_N[len(reference) :], minlength=size),
        )

    def statistics(self, windows_MG: NDArray[np.int64]) -> tuple[FloatArray, FloatArray]:
        """Divergence [M] and largest standardised change of one cluster's share [M] of splits.

        The change is what a cluster's weight in the window exceeds its share of the pool by, in
        standard deviations of drawing the window's prompts from the pool without replacement.

        Args:
            windows_MG: for each split, how many prompts of each group fell into the window.
        """
        pooled_G = self.reference_G + self.window_G
        rows, size = int(pooled_G.sum()), int(self.window_G.sum())
        # G may be as many as there are prompts; only clusters that have any matter.
        starts = np.flatnonzero(np.diff(self.clusters_G, prepend=-1))

        def by_cluster(groups: FloatArray) -> FloatArray:
            return np.asarray(np.add.reduceat(groups, starts, axis=-1))

        pool_K = by_cluster(pooled_G * self.weights_G)
        share_K = pool_K / pool_K.sum()
        window_MK = by_cluster(windows_MG * self.weights_G)
        rest_MK = pool_K - window_MK
        total_M1 = window_MK.sum(axis=1, keepdims=True)
        divergences_M = _divergences(
            rest_MK / rest_MK.sum(axis=1, keepdims=True), window_MK / total_M1
        )
        square_K = by_cluster(pooled_G * self.weights_G**2)
        spread_K = square_K * (1 - 2 * share_K) + share_K**2 * square_K.sum()
        variance_K = spread_K * size * (rows - size) / (rows * max(rows - 1, 1))
        # A cluster of a prompt or two would otherwise have the largest deviation of nearly any
        # split.
        least_K = np.maximum.reduceat(self.weights_G, starts) ** 2 / 4
        deviation_MK = np.abs(window_MK - share_K * total_M1)
        return divergences_M, np.asarray(
            (deviation_MK / np.sqrt(np.maximum(variance_K, least_K))).max(axis=1)
        )


def calibrated_limits(pooled: Pooled, alpha: float, seed: int = 0) -> Limits:
    """What the two statistics of two draws of one usage exceed, one or the other, at ``alpha``.

    Reference and window are put together and split again at random M times, each prompt with its
    weight: if they come from one usage, the split they came in is one of those (a permutation
    test, exact at any size and with any weights). Both limits are exceeded equally often, and by
    at most ``alpha (M + 1) - 1`` splits together; infinite where that is less than none.

    Args:
        pooled: reference and window.
        alpha: in (0, 1).
    """
    rng = np.random.default_rng(seed)
    pooled_G, size = pooled.reference_G + pooled.window_G, int(pooled.window_G.sum())
    height = max(1, _BLOCK // len(pooled_G))
    found = []
    for start in range(0, RESAMPLES, height):
        count = min(height, RESAMPLES - start)
        splits_MG = rng.multivariate_hypergeometric(pooled_G, size, count, method="marginals")
        found.append(pooled.statistics(splits_MG))
    divergences_M, largest_M = (np.concatenate(parts) for parts in zip(*found, strict=True))
    sorted_divergences, sorted_largest = np.sort(divergences_M), np.sort(largest_M)
    # The window is one of M + 1 equally likely splits and may be among those that exceed, too.
    most = math.floor(alpha * (RESAMPLES + 1) + 1e-9) - 1
    for rank in range(most + 1, 0, -1):
        limits = Limits(float(sorted_divergences[-rank]), float(sorted_largest[-rank]))
        exceeding = (divergences_M > limits.divergence) | (largest_M > limits.largest_move)
        if exceeding.sum() <= most:
            return limits
    return Limits(math.inf, math.inf)


def novelty_limit(reference_R: ArrayLike, size: int, alpha: float) -> tuple[float, int]:
    """Distance beyond which a prompt is novel, and the most novel prompts of a stable window.

    The cutoff is the reference's j-th largest distance, with j a hundredth of it. The share of
    all usage beyond it is then Beta(j, R + 1 - j), whatever the distribution of distances, and the
    novel prompts in a window beta-binomial.

    Args:
        reference_R: distances of the reference's prompts to their centroids, [R].
        size: prompts in the window.
        alpha: rate at which a stable window has more novel prompts than the limit.
    """
    from scipy.stats import betabinom  # slow to import, and every worker loads this module

    rows = len(np.asarray(reference_R))
    beyond = known_beyond(rows)
    limit = betabinom.isf(alpha, size, beyond, rows + 1 - beyond)
    return novelty_cutoff(reference_R), int(limit)


def _divergences(p_MK: FloatArray, q_MK: FloatArray) -> FloatArray:
    mean_MK = (p_MK + q_MK) / 2
    nats_M = (rel_entr(p_MK, mean_MK) + rel_entr(q_MK, mean_MK)).sum(axis=1) / 2
    return np.asarray(nats_M / np.log(2))


def _moves(before_K: FloatArray, after_K: FloatArray, count: int) -> tuple[Move, ...]:
    mean_K = (before_K + after_K) / 2
    bits_K = (rel_entr(before_K, mean_K) + rel_entr(after_K, mean_K)) / (2 * np.log(2))
    largest = np.argsort(-bits_K, kind="stable")[:count]
    return tuple(
        Move(int(c), float(before_K[c]), float(after_K[c]), float(bits_K[c]))
        for c in largest
        if bits_K[c] > 0
    )
