"""Near duplicates: rows that all but repeat an earlier row of their group. Pure.

Time grows with the square of the rows of a group, memory does not: never more than a block of
cosines is held, of blocks of rows. Knows nothing of clusters, languages or files.

Shapes: N rows, D dimensions, G rows of a group, B rows of a block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compass_ray.embedding.space import unit

BLOCK_ROWS = 1024


def near_duplicates(
    vectors_ND: NDArray[np.floating[Any]], groups_N: NDArray[np.int64], cosine: float
) -> NDArray[np.bool_]:
    """Rows whose cosine to an earlier row of their group that stays is over ``cosine``.

    A row that is near only to rows that go stays, so a chain of rows, each near to the next, does
    not go as a whole.

    Args:
        vectors_ND: vectors, finite, of any length.
        groups_N: group of each row.
        cosine: in (0, 1).
    """
    near_N = np.zeros(len(groups_N), bool)
    for rows_G in _groups(groups_N):
        kept_G, kept = np.empty_like(rows_G), 0
        for rows_B in _blocks(rows_G):
            block_BD = _directions(vectors_ND[rows_B])
            near_B = np.zeros(len(rows_B), bool)
            for earlier_B in _blocks(kept_G[:kept]):
                near_B |= (block_BD @ _directions(vectors_ND[earlier_B]).T > cosine).any(axis=1)
            near_BB = np.tril(block_BD @ block_BD.T > cosine, -1)
            for row in np.flatnonzero(near_BB.any(axis=1)):
                near_B[row] |= bool((near_BB[row] & ~near_B).any())
            fresh_B = rows_B[~near_B]
            kept_G[kept : kept + len(fresh_B)] = fresh_B
            kept += len(fresh_B)
            near_N[rows_B] = near_B
    return near_N


def buckets(rows_K: Sequence[int] | NDArray[np.int64], most: int) -> list[range]:
    """Clusters in runs of at most ``most`` rows together; a larger one is a run of its own.

    Args:
        rows_K: rows of each cluster.
        most: rows that are held at once.
    """
    found: list[range] = []
    first, held = 0, 0
    for cluster, rows in enumerate(rows_K):
        if held and held + rows > most:
            found.append(range(first, cluster))
            first, held = cluster, 0
        held += int(rows)
    return [*found, range(first, len(rows_K))]


def _directions(vectors_BD: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    # Half precision leaves stored unit vectors a little off unit length.
    return unit(vectors_BD.astype(np.float64), 0.0).astype(np.float32)


def _groups(groups_N: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Rows of each group that has several, in their order."""
    order_N = np.argsort(groups_N, kind="stable")
    bounds = np.flatnonzero(np.diff(groups_N[order_N])) + 1
    return (rows_G for rows_G in np.split(order_N, bounds) if len(rows_G) > 1)


def _blocks(rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    return (rows[start : start + BLOCK_ROWS] for start in range(0, len(rows), BLOCK_ROWS))
