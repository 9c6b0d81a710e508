"""How many clusters: fixed, or the best of several by the clustering's own measure.

K-means is told how many clusters to make and is judged by silhouette. HDBSCAN is told how small
a cluster may be; it is fitted at a ladder of sizes, and those that made a wanted number of
clusters are judged by DBCV. Both measures look at a bounded sample. Pure.

Shapes: N rows of the fit, D dimensions.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from compass_ray.clustering.hdbscan import MAX_ROWS_ON_CPU, Dense, fit_hdbscan
from compass_ray.clustering.kmeans import Clusters, FloatMatrix, fit_kmeans, pick_backend
from compass_ray.clustering.validity import dbcv, silhouette
from compass_ray.config import Clustering
from compass_ray.errors import UserError

log = logging.getLogger(__name__)

# Fitting a candidate takes more rows than judging it, which is quadratic.
FITTED_ROWS = 20_000
SILHOUETTE_ROWS = 5_000
DBCV_ROWS = 3_000
LADDER = 10

Measure = Literal["silhouette", "dbcv"]


@dataclass(frozen=True)
class Point:
    """One clustering that was tried; size and noise are HDBSCAN's alone."""

    k: int
    score: float
    min_cluster_size: int | None = None
    noise: int | None = None


@dataclass(frozen=True, eq=False)
class Choice:
    """The clustering that was chosen.

    Attributes:
        clusters: fitted on all rows given (HDBSCAN on a CPU: on ``MAX_ROWS_ON_CPU`` of them).
        rows: how many it was fitted on.
        noise: how many of those HDBSCAN called noise; None for k-means.
        measure: what ``curve`` is in.
        curve: what was tried, by rising k; empty where there was nothing to choose.
    """

    clusters: Clusters
    rows: int
    noise: int | None
    measure: Measure
    curve: tuple[Point, ...]


def fit_clusters(vectors_ND: FloatMatrix, settings: Clustering, seed: int) -> Choice:
    """Fit with the method, backend and number of clusters of the settings.

    Raises:
        UserError: there are fewer rows than clusters, HDBSCAN finds none, or the backend is not
            there.
    """
    backend = pick_backend(settings.backend, settings.method)
    if settings.method == "kmeans":
        return _kmeans(vectors_ND, settings, backend, seed)
    return _hdbscan(vectors_ND, settings, backend, seed)


def _kmeans(vectors_ND: FloatMatrix, settings: Clustering, backend: str, seed: int) -> Choice:
    curve: tuple[Point, ...] = ()
    k, *others = settings.candidates()
    if others:
        fitted_ND = vectors_ND[_some(len(vectors_ND), FITTED_ROWS, seed)]
        judged_ND = fitted_ND[:SILHOUETTE_ROWS]
        tried = [candidate for candidate in (k, *others) if candidate <= len(fitted_ND)]
        if not tried:
            raise UserError(f"clustering.k: {k} clusters and more asked of {len(fitted_ND)} rows")
        for k in tried:
            labels, _ = fit_kmeans(fitted_ND, k, backend, seed).assign(judged_ND)
            curve += (Point(k, silhouette(judged_ND, labels)),)
        k = max(curve, key=lambda point: point.score).k
        log.info("cluster: k = %d of %s by silhouette", k, ", ".join(map(str, tried)))
    clusters = fit_kmeans(vectors_ND, k, backend, seed)
    return Choice(clusters, len(vectors_ND), None, "silhouette", curve)


def _hdbscan(vectors_ND: FloatMatrix, settings: Clustering, backend: str, seed: int) -> Choice:
    if backend == "sklearn" and len(vectors_ND) > MAX_ROWS_ON_CPU:
        log.info("cluster: hdbscan fits %d of %d rows on a CPU", MAX_ROWS_ON_CPU, len(vectors_ND))
        vectors_ND = vectors_ND[_some(len(vectors_ND), MAX_ROWS_ON_CPU, seed)]
    judged = _some(len(vectors_ND), DBCV_ROWS, seed)
    fits: dict[Point, Dense] = {}
    for size in _sizes(len(vectors_ND), min(settings.candidates())):
        try:
            dense = fit_hdbscan(vectors_ND, size, backend)
        except UserError:
            if not fits:
                raise
            break  # larger clusters would find nothing either
        score = dbcv(vectors_ND[judged], dense.labels_N[judged])
        fits[Point(len(dense.clusters.centroids), score, size, dense.noise)] = dense
    best = max(_wanted(list(fits), settings), key=lambda point: point.score)
    log.info(
        "cluster: hdbscan made %d clusters of at least %d rows, %d of %d rows are noise",
        best.k,
        best.min_cluster_size,
        best.noise,
        len(vectors_ND),
    )
    curve = tuple(sorted(fits, key=lambda point: point.k))
    return Choice(fits[best].clusters, len(vectors_ND), best.noise, "dbcv", curve)


def _wanted(points: list[Point], settings: Clustering) -> list[Point]:
    """Those within the range asked for; else, and for fixed numbers, those nearest to them."""
    candidates = settings.candidates()
    if isinstance(settings.k, dict):
        inside = [p for p in points if candidates[0] <= p.k <= candidates[-1]]
        if inside:
            return inside
        log.warning(
            "cluster: hdbscan made no number of clusters between %(from)d and %(to)d", settings.k
        )
    return [min(points, key=lambda point: abs(point.k - k)) for k in candidates]


def _sizes(rows: int, fewest: int) -> list[int]:
    """Smallest clusters to try: from 3 rows to where fewer than ``fewest`` would come of it."""
    largest = max(4, rows // (2 * fewest))
    return sorted({round(float(size)) for size in np.geomspace(3, largest, LADDER)})


def _some(rows: int, most: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).permutation(rows)[:most]
