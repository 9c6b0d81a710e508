"""K-means over more rows than one process holds: shards on actors, sums travel, rows do not.

Each actor keeps its shards on its device. An actor that is lost, or whose node is, starts again
elsewhere, loads its shards and repeats its part of the iteration; the result is the same.

An actor cannot answer before it has a place, and whoever holds some places while waiting for others
may wait for ever. So those that have one by a certain time share the shards among them, at the
start as well as when one is lost and there is no other place for it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
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
"""How long an actor may be without a place before those that have one go on without it."""
RESTARTS = 3
# Calls of this group are answered while a step is under way.
_BESIDE = "beside"


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a shard, [N, D] of any floating point type, and the weight of each (None: 1)."""

    vectors_ND: NDArray[np.floating[Any]]
    weights_N: NDArray[np.float32] | None = None


Load = Callable[[], Rows]
Loads = Sequence[Load]


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
    shape = ray.remote(
        num_cpus=cpus,
        num_gpus=gpus,
        max_restarts=RESTARTS,
        max_task_retries=RESTARTS,
        concurrency_groups={_BESIDE: 1},
    )(_Holder)
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
        self._shards: dict[int, tuple[Tensor, Tensor | None]] = {}

    @ray.method(concurrency_group=_BESIDE)
    def here(self) -> None:
        """Answers as soon as the actor has a place, whatever else it is doing."""

    def step(
        self, loads: Mapping[int, ray.ObjectRef[Load]], centroids_KD: NDArray[np.float32]
    ) -> list[Sums]:
        """The sums of each of these shards, which are loaded where they are not held yet."""
        for number, load in loads.items():
            if number not in self._shards:
                self._shards[number] = self._on_device(ray.get(load)())
        return [part_sums(*self._shards[number], centroids_KD) for number in loads]

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
    shards = _Shards(actors, loads)

    def tell(number: int, inertia: float) -> None:
        progress.at(number, f"inertia {inertia:.6g}")

    centroids_KD, sums = iterate(shards.sums, start_KD, iterations, tell)
    return Clusters(centroids_KD, sums.inertia, BACKEND)


class _Shards:
    """Which actor has which shards; those of an actor that has lost its place pass to others."""

    def __init__(self, actors: Sequence[Any], loads: Loads) -> None:
        self._loads = [ray.put(load) for load in loads]
        self._held: dict[Any, list[int]] = {actor: [] for actor in actors}
        self._give(range(len(loads)))

    def sums(self, centroids_KD: NDArray[np.float32]) -> Sums:
        """The sums of all rows for given centroids."""
        shared = ray.put(centroids_KD)
        found: dict[int, Sums] = {}
        asked: dict[ray.ObjectRef[list[Sums]], tuple[Any, list[int]]] = {}
        while len(found) < len(self._loads):
            under_way = {number for _, numbers in asked.values() for number in numbers}
            for actor, held in self._held.items():
                numbers = [n for n in held if n not in found and n not in under_way]
                if numbers:
                    loads = {number: self._loads[number] for number in numbers}
                    asked[actor.step.remote(loads, shared)] = (actor, numbers)
            ready, _ = ray.wait(list(asked), timeout=PATIENCE_S)
            for answer in ready:
                _, numbers = asked.pop(answer)
                # Until Ray knows that a node is gone, its retries are over in no time.
                with suppress(ray.exceptions.ActorUnavailableError):
                    found |= zip(numbers, ray.get(answer), strict=True)
            if not ready:
                self._pass_on()
                asked = {ref: each for ref, each in asked.items() if each[0] in self._held}
        # In the order of the shards, since a floating-point sum depends on its order.
        return add_parts([found[number] for number in range(len(self._loads))])

    def _pass_on(self) -> None:
        """End actors that have no place, and give what they had to those that have one, if any."""
        actors = {actor.here.remote(): actor for actor in self._held}
        placed, unplaced = ray.wait(list(actors), num_returns=len(actors), timeout=PATIENCE_S)
        if not placed or not unplaced:
            return
        numbers: list[int] = []
        for answer in unplaced:
            actor = actors[answer]
            numbers += self._held.pop(actor)
            ray.kill(actor)
        log.info("cluster: %d shards pass to actors that still have a place", len(numbers))
        self._give(numbers)

    def _give(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            min(self._held.values(), key=len).append(number)
