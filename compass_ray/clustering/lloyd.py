"""One iteration of Lloyd's k-means on a part of the rows, and how parts come together.

The sums of all parts are the sums of all rows, so k-means over shards is exact: it takes the
steps that k-means over the whole would take. On tensors, CPU or GPU alike. Knows nothing of Ray;
drivers, which only add parts up, do not load torch.

Shapes: N rows, D dimensions, K clusters, F farthest rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from compass_ray.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

# Numbers in one block of distances, 64 MB of float32.
_BLOCK = 1 << 24
# Relative fall of the inertia below which another iteration is not worth its pass.
TOLERANCE = 1e-4
# Rows a part offers for clusters without any; more are empty only on degenerate data.
_FARTHEST = 16


@dataclass(frozen=True, eq=False)
class Sums:
    """What the rows of a part add up to, for given centroids.

    Attributes:
        sums_KD: weighted sum of each cluster's rows, float64.
        weights_K: weight of each cluster's rows, float64.
        inertia: weighted sum of squared distances to the nearest centroid.
        farthest_FD: the rows farthest from their centroids, farthest first.
        distances_F: their distances.
    """

    sums_KD: NDArray[np.float64]
    weights_K: NDArray[np.float64]
    inertia: float
    farthest_FD: NDArray[np.float32]
    distances_F: NDArray[np.float32]


def part_sums(rows_ND: Tensor, weights_N: Tensor | None, centroids_KD: NDArray[np.float32]) -> Sums:
    """Assign the rows of one part to their nearest centroids and add them up.

    Args:
        rows_ND: rows of the part, any floating point type, on any device.
        weights_N: weight of each row, float32 on the same device; None for 1.
        centroids_KD: the centroids of this iteration.

    Raises:
        UserError: a row is not finite.
    """
    import torch

    device = rows_ND.device
    k, dimension = centroids_KD.shape
    # Distances do not change when everything moves; near the origin they lose fewer digits.
    origin_D = torch.from_numpy(centroids_KD.mean(axis=0)).to(device)
    centroids = torch.from_numpy(centroids_KD).to(device) - origin_D
    half_square_K = centroids.square().sum(dim=1) / 2
    sums_KD = torch.zeros(k, dimension, dtype=torch.float64, device=device)
    weights_K = torch.zeros(k, dtype=torch.float64, device=device)
    distances_N = torch.empty(len(rows_ND), device=device)
    inertia = 0.0
    for block in _blocks(len(rows_ND), max(k, dimension)):
        rows_BD = rows_ND[block].float() - origin_D
        labels_B = torch.argmin(half_square_K - rows_BD @ centroids.T, dim=1)
        squared_B = (rows_BD - centroids[labels_B]).square().sum(dim=1)
        distances_N[block] = squared_B.sqrt()
        weights_B = torch.ones_like(squared_B) if weights_N is None else weights_N[block]
        inertia += float((squared_B * weights_B).double().sum())
        added_KD = torch.zeros(k, dimension, device=device)
        added_KD.index_add_(0, labels_B, rows_BD * weights_B[:, None])
        sums_KD += added_KD
        weights_K += torch.bincount(labels_B, weights_B.double(), minlength=k)
    if not np.isfinite(inertia):
        row = int((~torch.isfinite(distances_N)).nonzero()[0])
        raise UserError(f"clustering: vector {row} (from 0) is not finite; embed it again")
    distances_F, farthest_F = distances_N.topk(min(_FARTHEST, len(rows_ND)))
    sums_KD += weights_K[:, None] * origin_D
    return Sums(
        sums_KD.cpu().numpy(),
        weights_K.cpu().numpy(),
        inertia,
        rows_ND[farthest_F].float().cpu().numpy(),
        distances_F.cpu().numpy(),
    )


def add_parts(parts: Sequence[Sums]) -> Sums:
    """The sums of several parts as one, added in the order given."""
    distances = np.concatenate([part.distances_F for part in parts])
    farthest = np.argsort(-distances, kind="stable")[:_FARTHEST]
    return Sums(
        np.sum([part.sums_KD for part in parts], axis=0),
        np.sum([part.weights_K for part in parts], axis=0),
        sum(part.inertia for part in parts),
        np.concatenate([part.farthest_FD for part in parts])[farthest],
        distances[farthest],
    )


def next_centroids(sums: Sums, centroids_KD: NDArray[np.float32]) -> NDArray[np.float32]:
    """The means of the clusters; one without rows moves to the farthest row not yet taken."""
    weights_K1 = sums.weights_K[:, None]
    owned_K1 = weights_K1 > 0
    means_KD = np.divide(sums.sums_KD, weights_K1, out=np.zeros_like(sums.sums_KD), where=owned_K1)
    moved_KD = np.where(owned_K1, means_KD, centroids_KD).astype(np.float32)
    empty = np.flatnonzero(~owned_K1)
    free = np.flatnonzero(sums.distances_F > 0)[: len(empty)]
    moved_KD[empty[: len(free)]] = sums.farthest_FD[free]
    return moved_KD


def iterate(
    step: Callable[[NDArray[np.float32]], Sums],
    start_KD: NDArray[np.float32],
    iterations: int,
    on_iteration: Callable[[int, float], None] = lambda number, inertia: None,
) -> tuple[NDArray[np.float32], Sums]:
    """Lloyd's k-means from given centroids; returns the last centroids and their sums.

    Args:
        step: the sums of all rows for given centroids.
        start_KD: centroids to start from.
        iterations: most iterations; fewer when the inertia hardly falls any more.
        on_iteration: told the number of each iteration, from 1, and the inertia before it.
    """
    centroids_KD, before = start_KD, np.inf
    for number in range(iterations + 1):
        sums = step(centroids_KD)
        # The last pass only measures: an inertia is that of the centroids it is stored with.
        if number == iterations or sums.inertia > before * (1 - TOLERANCE):
            break
        before = sums.inertia
        centroids_KD = next_centroids(sums, centroids_KD)
        on_iteration(number + 1, sums.inertia)
    return centroids_KD, sums


def _blocks(rows: int, width: int) -> list[slice]:
    height = max(1, _BLOCK // width)
    return [slice(start, min(start + height, rows)) for start in range(0, rows, height)]
