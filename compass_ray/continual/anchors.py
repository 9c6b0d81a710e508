"""Anchors: the few rows of an adapter's history that stand for all of it. Pure.

They are replayed during an update, and the Fisher information is taken over them. Shapes: N rows
that an adapter was trained on, K clusters.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from compass_ray.sampling.allocation import fill_gaps
from compass_ray.sampling.distribution import smooth


def choose_anchors(
    clusters_N: NDArray[np.int32], scores_N: ArrayLike, usage_K: ArrayLike, fraction: float
) -> NDArray[np.int64]:
    """Rows to keep: allotted to clusters as usage is, nearest to its prototypes first.

    Args:
        clusters_N: cluster of each row.
        scores_N: cosine of each row to the usage prototype of its cluster.
        usage_K: usage prompts, or their weights, in each cluster; not all 0.
        fraction: share of the rows to keep, in (0, 1]; at least one row is kept.

    Returns:
        Indices of the rows, ascending; none if there are no rows.
    """
    if not len(clusters_N):
        return np.empty(0, np.int64)
    usage = np.asarray(usage_K, dtype=np.float64)
    available_K = np.bincount(clusters_N, minlength=len(usage))
    count = max(1, round(fraction * len(clusters_N)))
    wanted_K = fill_gaps(smooth(usage, 0), np.zeros(len(usage), np.int64), available_K, count)
    # Nearest first within a cluster; a row without a score comes last.
    scores = np.nan_to_num(np.asarray(scores_N, dtype=np.float64), nan=-2.0)
    order = np.lexsort((np.arange(len(scores)), -scores, clusters_N))
    starts_K = np.concatenate([[0], np.cumsum(available_K)[:-1]])
    rank_N = np.arange(len(order)) - starts_K[clusters_N[order]]
    return np.sort(order[rank_N < wanted_K[clusters_N[order]]])
