"""How good a clustering is, judged by the clustering alone. Pure; quadratic, so give it a sample.

``silhouette`` suits round clusters, ``dbcv`` those of any shape that are dense inside and have
thin space between them. Shapes: N rows, D dimensions, C rows of one cluster.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial.distance import cdist
from scipy.special import logsumexp

FloatArray = NDArray[np.float64]

NOISE = -1
# Rows nearer than this count as equal: scipy's spanning tree takes distances up to 1e-8 for
# missing edges.
_SAME = 1e-7


def silhouette(vectors_ND: NDArray[np.float32], labels_N: NDArray[np.int32]) -> float:
    """Mean silhouette (Rousseeuw, 1987), -1 to 1; 0 where it is not defined."""
    from sklearn.metrics import silhouette_score

    kinds = len(np.unique(labels_N))
    if not 1 < kinds < len(labels_N):
        return 0.0
    return float(silhouette_score(vectors_ND, labels_N))


def dbcv(vectors_ND: NDArray[np.float32], labels_N: NDArray[np.int32]) -> float:
    """Density-based clustering validity (Moulavi et al., SDM 2014), -1 to 1.

    Each cluster compares the sparsest place inside it with the densest place between it and the
    next, and counts by its share of all rows; rows labelled ``NOISE`` and clusters of one row
    add 0. Densities are worked out as logarithms: at a few hundred dimensions the powers of the
    definition leave the range of float64.

    Returns:
        The index; 0 where there are fewer than two clusters of two rows.
    """
    names, counts = np.unique(labels_N[labels_N != NOISE], return_counts=True)
    members = [np.flatnonzero(labels_N == name) for name in names[counts > 1]]
    if len(members) < 2:
        return 0.0
    vectors = [vectors_ND[rows_C].astype(np.float64) for rows_C in members]
    trees = [_DensityTree.of(vectors_CD) for vectors_CD in vectors]
    inner = [
        (vectors_CD[tree.inner_C], tree.core_C[tree.inner_C])
        for vectors_CD, tree in zip(vectors, trees, strict=True)
    ]
    apart = np.full(len(members), np.inf)
    for (a, (rows_a, core_a)), (b, (rows_b, core_b)) in combinations(enumerate(inner), 2):
        reach = np.maximum(cdist(rows_a, rows_b), np.maximum(core_a[:, None], core_b))
        apart[[a, b]] = np.minimum(apart[[a, b]], reach.min())
    sparse = np.array([tree.sparsest for tree in trees])
    shares = np.array([len(rows_C) for rows_C in members]) / len(labels_N)
    return float(shares @ ((apart - sparse) / np.maximum(apart, sparse)))


@dataclass(frozen=True, eq=False)
class _DensityTree:
    """The minimum spanning tree of one cluster over mutual reachability distances.

    Attributes:
        core_C: the distance around each row that stands for its density.
        inner_C: rows with more than one edge (all, where the tree has no such row).
        sparsest: the longest edge between inner rows.
    """

    core_C: FloatArray
    inner_C: NDArray[np.bool_]
    sparsest: float

    @classmethod
    def of(cls, vectors_CD: FloatArray) -> _DensityTree:
        rows, dimension = vectors_CD.shape
        distance_CC = np.maximum(cdist(vectors_CD, vectors_CD), _SAME)
        log_CC = -dimension * np.log(distance_CC)
        np.fill_diagonal(log_CC, -np.inf)
        core_C = np.exp(-(logsumexp(log_CC, axis=1) - np.log(rows - 1)) / dimension)
        reach_CC = np.maximum(distance_CC, np.maximum(core_C[:, None], core_C))
        np.fill_diagonal(reach_CC, 0)
        tree = minimum_spanning_tree(reach_CC).tocoo()
        degree_C = np.bincount(np.concatenate([tree.row, tree.col]), minlength=rows)
        inner_C = degree_C > 1 if (degree_C > 1).any() else np.ones(rows, bool)
        inside = inner_C[tree.row] & inner_C[tree.col]
        return cls(core_C, inner_C, float(tree.data[inside if inside.any() else slice(None)].max()))
