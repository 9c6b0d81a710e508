"""What would wait on this cluster, for how long, and what it waits for. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from compass_ray.config import Config
from compass_ray.costs import side_by_side
from compass_ray.resources import Cluster, WorkerShape

Limit = Literal["GPUs", "CPUs", "resources.max_parallel_languages"]


@dataclass(frozen=True)
class Queue:
    """Languages that do not start at once; times in seconds, None where they are not known.

    Attributes:
        waiting: languages still to train that find no place at first.
        first_wait: until the first of them starts.
        longest_wait: until the last of them starts.
        limit: what there is too little of; None if nothing waits.
        with_double: training time of all with twice as many places.
        bottleneck: stage that takes most of the time that is known.
        bottleneck_share: of the time of embedding and training.
    """

    waiting: int
    first_wait: float | None
    longest_wait: float | None
    limit: Limit | None
    with_double: float | None
    bottleneck: Literal["embed", "train"] | None
    bottleneck_share: float | None


def start_times(seconds: Iterable[float], places: int) -> list[float]:
    """When each job starts on so many places, the longest first, as the launcher does."""
    free = [0.0] * places
    starts = []
    for duration in sorted(seconds, reverse=True):
        start = heapq.heappop(free)
        starts.append(start)
        heapq.heappush(free, start + duration)
    return starts


def plan_queue(
    config: Config,
    on: Cluster,
    shape: WorkerShape,
    seconds: Sequence[float | None],
    parallel: int,
    embedding: float | None,
) -> Queue:
    """The queue of languages that take so many seconds each, ``parallel`` at once.

    Args:
        config: Of the run.
        on: The nodes there are.
        shape: Of a training worker.
        seconds: Of the languages still to train; None where one is not known.
        parallel: Languages side by side.
        embedding: Seconds of embedding; None where they are not known.
    """
    known = [second for second in seconds if second is not None]
    whole = len(known) == len(seconds)
    waiting = max(0, len(seconds) - parallel)
    starts = start_times(known, parallel)[parallel:] if whole and waiting else []
    training = side_by_side(known, parallel) if whole and known else None
    stage, share = _bottleneck(embedding, training)
    return Queue(
        waiting=waiting,
        first_wait=starts[0] if starts else None,
        longest_wait=starts[-1] if starts else None,
        limit=_limit(config, on, shape, parallel) if waiting else None,
        with_double=side_by_side(known, 2 * parallel) if whole and waiting else None,
        bottleneck=stage,
        bottleneck_share=share,
    )


def _limit(config: Config, on: Cluster, shape: WorkerShape, parallel: int) -> Limit:
    fitting = on.slots(shape.cpus, shape.gpus) // config.training.workers_per_language
    if parallel < fitting:
        return "resources.max_parallel_languages"
    # With all the CPUs one could wish for, would more fit?
    more_cpus = on.slots(0, shape.gpus) if shape.gpus else fitting
    return "CPUs" if not shape.gpus or more_cpus > on.slots(shape.cpus, shape.gpus) else "GPUs"


def _bottleneck(
    embedding: float | None, training: float | None
) -> tuple[Literal["embed", "train"] | None, float | None]:
    if embedding is None or training is None or embedding + training == 0:
        return None, None
    if training >= embedding:
        return "train", training / (embedding + training)
    return "embed", embedding / (embedding + training)
