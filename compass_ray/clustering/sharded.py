"""K-means over more rows than one process holds: shards on actors, sums travel, rows do not.

Each actor keeps its shards on its device. An actor that is lost, or whose node is, starts again
elsewhere, loads its shards and repeats its part of the iteration; the result is the same.

An actor cannot answer before it has a place, and whoever holds some places while waiting for others
may wait for ever. So those that have one by a certain time share the shards among them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from numpy.typing import NDArray

from compass_ray.clustering.kmeans import ITERATIONS, Clusters
from compass_ray.clustering.lloyd import Sums, add_parts, iterate, part_sums
from compass_ray.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

BACKEND = "sharded"
PATIENCE_S = 10.0
"""How long no further actor gets a place before those that have one begin."""
RESTARTS = 3


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a shard, [N, D] of any floating point type, and the weight of each (None: 1)."""

    vectors_ND: NDArray[np.floating[Any]]
    weights_N: NDArray[np.float32] | None = None


Loads = Sequence[Callable[[], Rows]]


def fit_sharded(
    shards: Loads,
    start_KD: NDArray[np.float32],
    *,
    iterations: int = ITERATIONS,
    cpus: float = 1,
    gpus: float = 0,
) -> Clusters:
    """Lloyd's k-means from given centroids over the rows of all shards.

    Args:
        shards: functions that load a shard's rows, one an actor where there are places for so
            many; called again in an actor that replaces a lost one.
        start_KD: centroids to start from.
        iterations: most iterations; fewer when the inertia hardly falls any more.
        cpus: CPUs an actor reserves.
        gpus: GPUs an actor reserves; its shards lie on the GPU if it has one.

    Raises:
        UserError: a row is not finite.
        RuntimeError: an actor was lost again and again.
    """
    shape = ray.remote(_Holder).options(
        num_cpus=cpus, num_gpus=gpus, max_restarts=RESTARTS, max_task_retries=RESTARTS
    )
    actors = [shape.remote(cpus, gpus > 0) for _ in shards]
    try:
        placed = _placed(actors, f"{cpus:g} CPU and {gpus:g} GPU")
        start_KD = np.ascontiguousarray(start_KD, dtype=np.float32)
        return _iterate(placed, shards, start_KD, iterations)
    except ray.exceptions.RayActorError as error:
        raise RuntimeError(
            f"cluster: k-means over all rows lost an actor {RESTARTS + 1} times; most often its "
            "node has too little memory for its shard"
        ) from error
    finally:
        for actor in actors:
            ray.kill(actor)


class _Holder:
    def __init__(self, cpus: float, on_gpu: bool) -> None:
        self._threads = max(1, int(cpus))
        self._device = "cuda" if on_gpu else "cpu"
        self._shards: list[tuple[Tensor, Tensor | None]] | None = None

    def here(self) -> None:
        """Answers as soon as the actor has a place; nothing is loaded yet."""

    def step(self, loads: Loads, centroids_KD: NDArray[np.float32]) -> list[Sums]:
        if self._shards is None:
            self._shards = [self._on_device(load()) for load in loads]
        return [part_sums(rows, weights, centroids_KD) for rows, weights in self._shards]

    def _on_device(self, rows: Rows) -> tuple[Tensor, Tensor | None]:
        import torch

        torch.set_num_threads(self._threads)
        weights = rows.weights_N
        return (
            torch.from_numpy(rows.vectors_ND).to(self._device),
            None if weights is None else torch.from_numpy(weights).to(self._device),
        )


def _placed(actors: Sequence[Any], place: str) -> list[Any]:
    """The actors that have a place, at least one; the others are ended."""
    waiting = {actor.here.remote(): actor for actor in actors}
    ready, _ = ray.wait(list(waiting), timeout=PATIENCE_S)
    if not ready:
        log.info("cluster: waiting for %s to be free", place)
        ready, _ = ray.wait(list(waiting))
    placed: list[Any] = []
    while ready:
        placed += [waiting.pop(answer) for answer in ready]
        ready = ray.wait(list(waiting), timeout=PATIENCE_S)[0] if waiting else []
    for actor in waiting.values():
        ray.kill(actor)
    if waiting:
        log.info("cluster: places for %d of %d shards, which share them", len(placed), len(actors))
    return placed


def _iterate(
    actors: Sequence[Any], loads: Loads, start_KD: NDArray[np.float32], iterations: int
) -> Clusters:
    progress = Progress("cluster", iterations, "iterations")
    count = len(actors)
    shares = [ray.put(loads[number::count]) for number in range(count)]

    def step(centroids_KD: NDArray[np.float32]) -> Sums:
        shared = ray.put(centroids_KD)
        sums = [a.step.remote(share, shared) for a, share in zip(actors, shares, strict=True)]
        found: list[list[Sums]] = ray.get(sums)
        # In the order of the shards, since a floating-point sum depends on its order.
        return add_parts([found[n % count][n // count] for n in range(len(loads))])

    def tell(number: int, inertia: float) -> None:
        progress.at(number, f"inertia {inertia:.6g}")

    centroids_KD, sums = iterate(step, start_KD, iterations, tell)
    return Clusters(centroids_KD, sums.inertia, BACKEND)
