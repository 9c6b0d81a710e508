"""How far from its centroid a row is novel: farther than all but a hundredth of known rows. Pure.

One definition for two comparisons: rows of every corpus with those that the clusters were fitted
on, and new usage with the usage an adapter was built for (``continual.drift``).

Shapes: N rows, R known rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

NOVEL_SHARE = 0.01
"""Share of the known rows themselves that count as far from every centroid."""


def known_beyond(rows: int) -> int:
    """j: so many of ``rows`` known rows lie at the cutoff or beyond it."""
    return max(1, round(NOVEL_SHARE * rows))


def novelty_cutoff(distances_R: ArrayLike) -> float:
    """Distance beyond which a row is novel: the j-th largest of the known rows' distances.

    Args:
        distances_R: Euclidean distance of each known row to its centroid, at least one.
    """
    known_R = np.asarray(distances_R, dtype=np.float64)
    place = len(known_R) - known_beyond(len(known_R))
    return float(np.partition(known_R, place)[place])


def is_novel(distances_N: NDArray[np.floating[Any]], cutoff: float) -> NDArray[np.bool_]:
    """Which rows are farther than ``cutoff`` from their centroids."""
    # The very row that set the cutoff must not exceed it by rounding.
    return np.asarray(distances_N > cutoff * (1 + 1e-4))
