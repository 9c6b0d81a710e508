"""HDBSCAN (Campello et al., 2013) behind the contract of ``kmeans``: centroids to be near to.

A cluster is stood for by the mean of its rows. So rows the fit never saw, and rows it called
noise, go to the nearest cluster by the same rule as after k-means, on any number of machines.
The two libraries differ in speed only. Knows nothing of languages or of how many clusters are
wanted.

Shapes: N rows, D dimensions, K clusters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compass_ray.clustering.kmeans import Clusters, FloatMatrix, pool_gpu_memory
from compass_ray.clustering.validity import NOISE
from compass_ray.errors import UserError

# Leaves of the tree: many clusters of one thing each. The library's default, excess of mass,
# found 2 on 3,000 rows of the built-in corpus, whatever the smallest cluster.
SELECTION = "leaf"
# Neighbours that make a place dense. More would call more rows noise.
MIN_SAMPLES = 5
# All pairwise distances of so many rows are 0.8 GB; a GPU does without them.
MAX_ROWS_ON_CPU = 10_000


@dataclass(frozen=True, eq=False)
class Dense:
    """Clusters found by density, and which row of the fit belongs to which.

    Attributes:
        clusters: means of the clusters' rows.
        labels_N: int32 in [0, K), or ``NOISE``.
    """

    clusters: Clusters
    labels_N: NDArray[np.int32]

    @property
    def noise(self) -> int:
        return int((self.labels_N == NOISE).sum())


def fit_hdbscan(vectors_ND: FloatMatrix, min_cluster_size: int, backend: str) -> Dense:
    """Find the clusters of at least ``min_cluster_size`` rows.

    Args:
        vectors_ND: finite vectors, at most ``MAX_ROWS_ON_CPU`` of them for sklearn.
        min_cluster_size: at least 2.
        backend: ``sklearn`` or ``cuml``.

    Raises:
        UserError: there are fewer than ``MIN_SAMPLES`` rows, or every row is noise.
    """
    if len(vectors_ND) < MIN_SAMPLES:
        raise UserError(
            f"clustering.method: hdbscan needs {MIN_SAMPLES} rows to fit on, and there are "
            f"{len(vectors_ND)}; choose kmeans"
        )
    vectors_ND = np.ascontiguousarray(vectors_ND, dtype=np.float32)
    labels_N = _FITTERS[backend](vectors_ND, min_cluster_size).astype(np.int32)
    found = np.flatnonzero(np.bincount(labels_N[labels_N != NOISE]))
    if not len(found):
        raise UserError(
            f"clustering.method: hdbscan calls all {len(labels_N)} rows noise at clusters of at "
            f"least {min_cluster_size} rows; choose a larger k, or kmeans"
        )
    centroids_KD = np.array([vectors_ND[labels_N == name].mean(axis=0) for name in found])
    inside = labels_N != NOISE
    distance = np.linalg.norm(vectors_ND[inside] - centroids_KD[labels_N[inside]], axis=1)
    inertia = float(np.square(distance, dtype=np.float64).sum())
    return Dense(Clusters(centroids_KD, inertia, backend), labels_N)


def _fit_sklearn(vectors_ND: FloatMatrix, min_cluster_size: int) -> NDArray[np.int64]:
    from sklearn.cluster import HDBSCAN

    model = HDBSCAN(
        min_cluster_size=min_cluster_size,
        min_samples=MIN_SAMPLES,
        cluster_selection_method=SELECTION,
        # Trees of neighbours do not help at hundreds of dimensions.
        algorithm="brute",
        copy=True,
    )
    labels: NDArray[np.int64] = model.fit(vectors_ND.astype(np.float64)).labels_
    return labels


def _fit_cuml(vectors_ND: FloatMatrix, min_cluster_size: int) -> NDArray[np.int64]:
    from cuml.cluster import HDBSCAN

    pool_gpu_memory()
    model = HDBSCAN(
        min_cluster_size=min_cluster_size,
        min_samples=MIN_SAMPLES,
        cluster_selection_method=SELECTION,
        output_type="numpy",
    )
    return np.asarray(model.fit(vectors_ND).labels_, dtype=np.int64)


_FITTERS: dict[str, Callable[[FloatMatrix, int], NDArray[np.int64]]] = {
    "cuml": _fit_cuml,
    "sklearn": _fit_sklearn,
}
