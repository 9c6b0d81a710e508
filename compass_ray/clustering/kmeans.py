"""K-means behind one contract, whichever library does the iterations.

All backends start from the same k-means++ centroids of a sample, run at most the same number of
Lloyd iterations over it and then over all rows, and are measured by the same assignment; so they
differ by rounding, speed, and how little a last iteration may gain.
Heavy libraries are imported when they are used. Knows nothing of languages or of how K is chosen.

Shapes: N rows, S rows of a sample, D dimensions, K clusters.
"""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from typing import IO, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from compass_ray.clustering.lloyd import TOLERANCE
from compass_ray.errors import UserError

FloatMatrix = NDArray[np.float32]
# Centroids, and their inertia; None where the backend tells none, or left a cluster empty.
Fit = tuple[FloatMatrix, float | None]
PathOrFile = str | os.PathLike[str] | IO[bytes]

ITERATIONS = 25
# Backends that use a GPU where there is one.
ON_GPU = ("cuml", "torch")
# Rows a cluster of the sample that is fitted first: starting all rows from its result saves most
# of the passes over them.
SAMPLE_PER_CLUSTER = 96
# Numbers in one block of the assignment: 2 MB of float32, which a core's cache holds.
BLOCK = 1 << 19
# Distances cuML holds at once, rows × K: 256 MB of float32. Its own default, the most rows here,
# does not look at K.
CUML_DISTANCES = 1 << 26
CUML_MOST_ROWS = 1 << 15


@dataclass(frozen=True, eq=False)
class Clusters:
    """Fitted clusters.

    Attributes:
        centroids: finite float32 [K, D].
        inertia: sum of squared Euclidean distances of the fitted rows to their centroids.
        backend: library that fitted them.
        cutoff: distance beyond which a row is novel (``novelty``); infinite where none was set.
    """

    centroids: FloatMatrix
    inertia: float
    backend: str
    cutoff: float = math.inf

    def assign(self, X: ArrayLike) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Nearest centroid of each row of ``X`` [N, D], in blocks of bounded memory.

        Returns:
            Cluster of each row, int32 [N], and its Euclidean distance (not squared) to that
            centroid, float32 [N].

        Raises:
            UserError: a row is not finite.
            ValueError: ``X`` does not have the centroids' number of dimensions.
        """
        X_ND = _matrix(X)
        if X_ND.shape[1] != self.centroids.shape[1]:
            raise ValueError(
                f"X: {X_ND.shape[1]} dimensions, but the centroids have {self.centroids.shape[1]}"
            )
        labels_N = np.empty(len(X_ND), dtype=np.int32)
        distance_N = np.empty(len(X_ND), dtype=np.float32)
        # Distances do not change when everything moves; near the origin they lose fewer digits.
        origin_D = self.centroids.mean(axis=0)
        centroids_KD = self.centroids - origin_D
        half_square_K = np.einsum("kd,kd->k", centroids_KD, centroids_KD) / 2
        for rows in _blocks(len(X_ND), max(self.centroids.shape)):
            block_BD = np.subtract(X_ND[rows], origin_D, dtype=np.float32)
            labels_N[rows] = np.argmin(half_square_K - block_BD @ centroids_KD.T, axis=1)
            # From the difference itself: |x|² - 2xc + |c|² would cancel for close rows.
            block_BD -= centroids_KD[labels_N[rows]]
            distance_N[rows] = np.sqrt(np.einsum("bd,bd->b", block_BD, block_BD))
        _refuse_non_finite(distance_N)
        return labels_N, distance_N

    def save(self, path: PathOrFile) -> None:
        """Write to a path, or an open binary file, in npz format without pickle."""
        arrays: dict[str, Any] = {
            "centroids": self.centroids,
            "inertia": self.inertia,
            "backend": self.backend,
            "cutoff": self.cutoff,
        }
        if isinstance(path, str | os.PathLike):
            with open(path, "wb") as file:  # savez would add .npz to a bare path
                np.savez(file, **arrays)
        else:
            np.savez(path, **arrays)

    @classmethod
    def load(cls, path: PathOrFile) -> Clusters:
        """Read what ``save`` wrote, bit by bit."""
        with np.load(path, allow_pickle=False) as stored:
            inertia, backend = float(stored["inertia"]), str(stored["backend"])
            # Runs of earlier versions have none.
            cutoff = float(stored["cutoff"]) if "cutoff" in stored else math.inf
            return cls(stored["centroids"], inertia, backend, cutoff)


def fit_kmeans(X: ArrayLike, k: int, backend: str = "auto", seed: int = 0) -> Clusters:
    """Cluster the rows of ``X`` [N, D] into exactly ``k`` clusters by Lloyd's k-means.

    No cluster stays empty while there are ``k`` distinct rows; with fewer, the centroids left
    over repeat others.

    Args:
        X: finite floating point vectors, [N, D]; worked on in float32.
        k: number of clusters, 1 to N.
        backend: ``sklearn``, ``faiss``, ``torch``, ``cuml`` or ``auto`` (see ``pick_backend``).
        seed: of the start; equal seeds give equal clusters on one backend and machine, on a GPU
            up to rounding.

    Raises:
        UserError: ``k`` does not fit the rows, a row is not finite, or the backend is unknown or
            missing.
        ValueError: ``X`` is no [N, D] of floating point numbers.
    """
    X_ND = _matrix(X)
    if not 1 <= k <= len(X_ND):
        raise UserError(
            f"clustering.k: {k} clusters asked of {len(X_ND)} rows; "
            + (f"choose k of at most {len(X_ND)}" if k > len(X_ND) else "choose k of at least 1")
        )
    backend = pick_backend(backend)
    X_ND = np.ascontiguousarray(X_ND, dtype=np.float32)
    _refuse_non_finite(X_ND)
    fit = _FITTERS[backend]
    sample = SAMPLE_PER_CLUSTER * k
    if sample < len(X_ND):
        chosen = np.random.default_rng(seed).choice(len(X_ND), sample, replace=False)
        sample_SD = X_ND[np.sort(chosen)]
        start_KD, _ = fit(sample_SD, _plusplus(sample_SD, k, backend, seed), seed)
    else:
        start_KD = _plusplus(X_ND, k, backend, seed)
    centroids_KD, inertia = fit(X_ND, start_KD, seed)
    if centroids_KD.shape != (k, X_ND.shape[1]) or not np.isfinite(centroids_KD).all():
        raise RuntimeError(f"{backend} did not give {k} finite centroids")
    if inertia is not None:
        return Clusters(centroids_KD, inertia, backend)
    return _without_empty(X_ND, centroids_KD, backend)


def pick_backend(name: str = "auto", method: str = "kmeans") -> str:
    """The backend a name stands for.

    ``auto`` is, where there is a GPU, cuml if it is installed, else torch; and without a GPU faiss
    if it is installed, else sklearn. torch and faiss are for kmeans only.

    Raises:
        UserError: the name is unknown, or that backend cannot run here.
    """
    if name == "auto":
        if method == "kmeans" and not _RUNS_HERE["cuml"]() and _has_gpu():
            return "torch"
        automatic = ("cuml", "faiss", "sklearn") if method == "kmeans" else ("cuml", "sklearn")
        return next(backend for backend in automatic if _RUNS_HERE[backend]())
    if name not in _RUNS_HERE:
        raise UserError(
            f"clustering.backend: {name!r} is unknown; choose auto, {', '.join(_RUNS_HERE)}"
        )
    if not _RUNS_HERE[name]():
        raise UserError(f"clustering.backend: {name} cannot run here ({_NEEDS[name]}); choose auto")
    return name


def _cuml_runs() -> bool:
    if find_spec("cuml") is None:
        return False
    try:
        import cupy

        return bool(cupy.cuda.runtime.getDeviceCount() > 0)
    except Exception:  # without a driver, cupy raises its own errors or fails to import
        return False


def _has_gpu() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:  # no driver: torch, which takes seconds to load, has nothing to look for
        return False
    import torch

    return torch.cuda.is_available()


_RUNS_HERE: dict[str, Callable[[], bool]] = {
    "cuml": _cuml_runs,
    "torch": lambda: find_spec("torch") is not None,
    "faiss": lambda: find_spec("faiss") is not None,
    "sklearn": lambda: find_spec("sklearn") is not None,
}
_NEEDS = {
    "cuml": "it needs the package cuml-cu13 and a GPU",
    "torch": "it needs the package torch",
    "faiss": "it needs the package faiss-cpu or faiss-gpu",
    "sklearn": "it needs the package scikit-learn",
}


def _plusplus(X_ND: FloatMatrix, k: int, backend: str, seed: int) -> FloatMatrix:
    """Greedy k-means++ (Arthur and Vassilvitskii, 2007): ``k`` of the rows."""
    if backend in ON_GPU and _has_gpu():
        import torch

        from compass_ray.clustering import seeding

        start_KD: FloatMatrix = (
            seeding.kmeans_plusplus(torch.from_numpy(X_ND).cuda(), k, seed).cpu().numpy()
        )
        return start_KD
    from sklearn.cluster import kmeans_plusplus

    # The same rows are chosen in float32, by distances that scikit-learn then takes in small blocks
    # of float64: nine times the work.
    centroids_KD, _ = kmeans_plusplus(X_ND.astype(np.float64), k, random_state=seed)
    return np.ascontiguousarray(centroids_KD, dtype=np.float32)


def _fit_sklearn(X_ND: FloatMatrix, start_KD: FloatMatrix, seed: int) -> Fit:
    from sklearn.cluster import KMeans

    model = KMeans(
        len(start_KD), init=start_KD, n_init=1, max_iter=ITERATIONS, tol=0.0, random_state=seed
    )
    return np.asarray(model.fit(X_ND).cluster_centers_, dtype=np.float32), None


def _fit_faiss(X_ND: FloatMatrix, start_KD: FloatMatrix, seed: int) -> Fit:
    import faiss

    model = faiss.Kmeans(
        X_ND.shape[1],
        len(start_KD),
        niter=ITERATIONS,
        seed=seed,
        gpu=True,  # where faiss-gpu finds one
        # faiss would look at 256 rows a cluster, and warn below 39.
        max_points_per_centroid=len(X_ND),
        min_points_per_centroid=1,
    )
    # Older builds, those for GPUs among them, have no such setting.
    if hasattr(model.cp, "early_stop_threshold"):
        model.cp.early_stop_threshold = TOLERANCE
    model.train(X_ND, init_centroids=start_KD)
    return np.array(model.centroids, dtype=np.float32), None


@cache
def pool_gpu_memory() -> None:
    """Let cuML take GPU memory from RMM's pool, from its first fit in this process on.

    Allocations outside of a pool make the device wait. The pool begins with half of the memory that
    is free and grows.
    """
    try:
        import rmm
    except ImportError:
        return
    rmm.reinitialize(pool_allocator=True)


def _fit_cuml(X_ND: FloatMatrix, start_KD: FloatMatrix, seed: int) -> Fit:
    from cuml.cluster import KMeans

    pool_gpu_memory()
    model = KMeans(
        n_clusters=len(start_KD),
        init=start_KD,
        n_init=1,
        max_iter=ITERATIONS,
        random_state=seed,
        max_samples_per_batch=min(CUML_MOST_ROWS, max(1, CUML_DISTANCES // len(start_KD))),
        output_type="numpy",
    )
    return np.asarray(model.fit(X_ND).cluster_centers_, dtype=np.float32), None


def _fit_torch(X_ND: FloatMatrix, start_KD: FloatMatrix, seed: int) -> Fit:
    import torch

    from compass_ray.clustering.lloyd import iterate, part_sums

    rows_ND = torch.from_numpy(X_ND).to("cuda" if _has_gpu() else "cpu")
    centroids_KD, sums = iterate(partial(part_sums, rows_ND, None), start_KD, ITERATIONS)
    return centroids_KD, sums.inertia if sums.weights_K.all() else None


_FITTERS: dict[str, Callable[[FloatMatrix, FloatMatrix, int], Fit]] = {
    "cuml": _fit_cuml,
    "torch": _fit_torch,
    "faiss": _fit_faiss,
    "sklearn": _fit_sklearn,
}


def _without_empty(X_ND: FloatMatrix, centroids_KD: FloatMatrix, backend: str) -> Clusters:
    """Move centroids that own no row onto the rows farthest from their own, and measure.

    Each round puts at least one more centroid on a row of its own, so K rounds are enough.
    """
    centroids_KD = centroids_KD.copy()
    clusters = Clusters(centroids_KD, 0.0, backend)
    for _ in range(len(centroids_KD)):
        labels_N, distance_N = clusters.assign(X_ND)
        empty = np.flatnonzero(np.bincount(labels_N, minlength=len(centroids_KD)) == 0)
        farthest = np.argsort(-distance_N, kind="stable")[: len(empty)]
        farthest = farthest[distance_N[farthest] > 0]
        if not len(farthest):
            break
        centroids_KD[empty[: len(farthest)]] = X_ND[farthest]
    else:
        _, distance_N = clusters.assign(X_ND)
    inertia = float(np.square(distance_N, dtype=np.float64).sum())
    return Clusters(centroids_KD, inertia, backend)


def _matrix(X: ArrayLike) -> NDArray[np.floating[Any]]:
    X_ND = np.asarray(X)
    if X_ND.ndim != 2 or not np.issubdtype(X_ND.dtype, np.floating):
        raise ValueError(
            f"X: floating point vectors [N, D] are needed, not {X_ND.dtype} {X_ND.shape}"
        )
    return X_ND


def _refuse_non_finite(rows: NDArray[np.float32]) -> None:
    """Raise for the first row of ``rows``, [N] or [N, D], that is not finite."""
    for block in _blocks(len(rows), max(rows[:1].size, 1)):
        finite = np.isfinite(rows[block]).reshape(len(rows[block]), -1).all(axis=1)
        if not finite.all():
            row = block.start + int(np.argmin(finite))
            raise UserError(f"clustering: vector {row} (from 0) is not finite; embed it again")


def _blocks(rows: int, width: int) -> Iterator[slice]:
    """Slices of ``range(rows)`` of at most BLOCK numbers each, when a row has ``width``."""
    height = max(1, BLOCK // width)
    return (slice(start, min(start + height, rows)) for start in range(0, rows, height))
