"""K-means over more rows than one process holds: shards on actors, sums travel, rows do not.

Each actor keeps its shard on its device. An actor that is lost, or whose node is, starts again
elsewhere, loads its shard and repeats its part of the iteration; the result is the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from compass_ray.clustering.kmeans import ITERATIONS, Clusters
from compass_ray.clustering.lloyd import Sums, add_parts, iterate, part_sums
from compass_ray.progress import Progress

log = logging.getLogger(__name__)

BACKEND = "sharded"


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a shard, [N, D] of any floating point type, and the weight of each (None: 1)."""

    vectors_ND: NDArray[np.floating[Any]]
    weights_N: NDArray[np.float32] | None = None


def fit_sharded(
    shards: Sequence[Callable[[], Rows]],
    start_KD: NDArray[np.float32],
    *,
    iterations: int = ITERATIONS,
    cpus: float = 1,
    gpus: float = 0,
) -> Clusters:
    """Lloyd's k-means from given centroids over the rows of all shards.

    Args:
        shards: functions that load a shard's rows, one an actor; called again in an actor that
            replaces a lost one.
        start_KD: centroids to start from.
        iterations: most iterations; fewer when the inertia hardly falls any more.
        cpus: CPUs an actor reserves.
        gpus: GPUs an actor reserves; its shard lies on the GPU if it has one.

    Raises:
        UserError: a row is not finite.
    """
    shape = ray.remote(_Shard).options(
        num_cpus=cpus, num_gpus=gpus, max_restarts=-1, max_task_retries=-1
    )
    actors = [shape.remote(load, cpus, gpus > 0) for load in shards]
    try:
        return _iterate(actors, np.ascontiguousarray(start_KD, dtype=np.float32), iterations)
    finally:
        for actor in actors:
            ray.kill(actor)


class _Shard:
    def __init__(self, load: Callable[[], Rows], cpus: float, on_gpu: bool) -> None:
        import torch

        torch.set_num_threads(max(1, int(cpus)))
        device = "cuda" if on_gpu else "cpu"
        rows = load()
        self._rows_ND = torch.from_numpy(rows.vectors_ND).to(device)
        weights = rows.weights_N
        self._weights_N = None if weights is None else torch.from_numpy(weights).to(device)

    def step(self, centroids_KD: NDArray[np.float32]) -> Sums:
        return part_sums(self._rows_ND, self._weights_N, centroids_KD)


def _iterate(actors: list[Any], start_KD: NDArray[np.float32], iterations: int) -> Clusters:
    progress = Progress("cluster", iterations, "iterations")

    def step(centroids_KD: NDArray[np.float32]) -> Sums:
        shared = ray.put(centroids_KD)
        return add_parts(ray.get([actor.step.remote(shared) for actor in actors]))

    def tell(number: int, inertia: float) -> None:
        progress.at(number, f"inertia {inertia:.6g}")

    centroids_KD, sums = iterate(step, start_KD, iterations, tell)
    return Clusters(centroids_KD, sums.inertia, BACKEND)
