"""A bounded sample of rows, balanced over languages, that any shard can draw by itself.

Pure: counts and ids go in, a choice comes out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray


def balanced_shares(counts: Mapping[str, int], rows: int) -> dict[str, float]:
    """Share of each language's rows to draw so that about ``rows`` come together.

    Every language gives the same number of rows; one that has fewer gives all of them and leaves
    the rest of its turn to the others. Without this the largest language would own the clusters.
    """
    shares: dict[str, float] = {}
    left = rows
    by_size = sorted(counts.items(), key=lambda entry: (entry[1], entry[0]))
    for position, (language, count) in enumerate(by_size):
        quota = min(float(count), left / (len(by_size) - position))
        shares[language] = quota / count if count else 0.0
        left -= round(quota)
    return shares


def draw(
    ids: Sequence[str], languages: Sequence[str], shares: Mapping[str, float]
) -> NDArray[np.int64]:
    """Indices of the rows drawn: those whose id, read as a number in [0, 1), is below the share.

    An id is a hash of the row, so the draw is uniform, and the same however rows are sharded.
    """
    uniform = np.array([int(row_id[:12], 16) for row_id in ids], dtype=np.float64) / 16**12
    share = np.array([shares[language] for language in languages], dtype=np.float64)
    return np.flatnonzero(uniform < share)
