"""Which rows of a cluster: Gumbel-top-k on similarity, near duplicates refused. Pure.

Shapes: N rows, M of them in an order, D dimensions. All vectors have length 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_LARGEST_BLOCK = 256


def gumbel_order(
    scores_N: NDArray[np.float32], temperature: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Rows in the order of a draw without replacement, ``P(next) ∝ exp(score / temperature)``.

    Adding Gumbel noise and sorting is that draw (Kool et al., 2019). The first n of the order are
    a sample of n, so asking for more rows only ever adds rows.
    """
    keys_N = scores_N.astype(np.float64) / temperature + rng.gumbel(size=len(scores_N))
    return np.argsort(-keys_N, kind="stable")


def first_distinct(
    vectors_ND: NDArray[np.float16],
    order_M: NDArray[np.int64],
    count: int,
    max_similarity: float,
    groups_M: NDArray[np.integer[Any]] | None = None,
    room_G: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.int64], int]:
    """The first ``count`` rows of an order of which no two are nearer than ``max_similarity``.

    A row is refused when its cosine to one accepted before it is higher. Rows of a group, such as
    a language, that has no more room are passed over. Vectors are read only as far down the order
    as it takes.

    Args:
        vectors_ND: unit vectors.
        order_M: rows, best first.
        count: how many to accept.
        max_similarity: cosine; 1 refuses nothing.
        groups_M: group of each row of the order.
        room_G: rows to accept of each group; without it every group has room.

    Returns:
        The accepted rows in order (fewer than ``count`` when rows run out) and how many were
        refused.
    """
    if room_G is None or groups_M is None:
        if max_similarity >= 1:
            return order_M[:count], 0
        groups_M, room_G = np.zeros(len(order_M), np.int64), np.array([len(order_M)])
    inside = room_G[groups_M] > 0
    order_M, groups_M, room_G = order_M[inside], groups_M[inside], room_G.copy()
    highest = max_similarity if max_similarity < 1 else np.inf
    accepted: list[int] = []
    kept_CD = np.empty((min(count, len(order_M)), vectors_ND.shape[1]), dtype=np.float32)
    refused = 0
    block = int(np.clip(count, 16, _LARGEST_BLOCK))
    for start in range(0, len(order_M), block):
        if len(accepted) == count:
            break
        rows_B = order_M[start : start + block]
        block_BD = vectors_ND[rows_B].astype(np.float32)
        kept = len(accepted)
        nearest_B: NDArray[np.float32] = np.max(block_BD @ kept_CD[:kept].T, axis=1, initial=-1.0)
        cosines_BB: NDArray[np.float32] = block_BD @ block_BD.T
        fresh: list[int] = []
        for row in range(len(rows_B)):
            if len(accepted) == count:
                break
            if not room_G[groups_M[start + row]]:
                continue
            if nearest_B[row] > highest or (cosines_BB[row, fresh] > highest).any():
                refused += 1
                continue
            room_G[groups_M[start + row]] -= 1
            kept_CD[len(accepted)] = block_BD[row]
            accepted.append(int(rows_B[row]))
            fresh.append(row)
    return np.array(accepted, dtype=np.int64), refused
