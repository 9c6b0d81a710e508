from __future__ import annotations

from typing import Any

import pytest

from compass_ray.config import Config
from compass_ray.loading import build_config
from compass_ray.planning.queueing import plan_queue, start_times
from compass_ray.resources import Cluster, Node, WorkerShape

GPU = WorkerShape(1, 1)


def config(**resources: Any) -> Config:
    return build_config({"languages": ["de"], "resources": resources})


def test_jobs_start_when_a_place_is_free_longest_first() -> None:
    assert start_times([1, 2, 2, 3], 2) == [0, 0, 2, 3]
    assert start_times([5.0], 3) == [0]


def test_what_waits_waits_for_what_there_is_too_little_of() -> None:
    on = Cluster((Node(16, 2),))
    queue = plan_queue(config(), on, GPU, [60.0] * 5, 2, 60.0)
    assert (queue.waiting, queue.first_wait, queue.longest_wait) == (3, 60, 120)
    assert queue.limit == "GPUs"
    assert queue.with_double == 120
    assert (queue.bottleneck, queue.bottleneck_share) == ("train", pytest.approx(0.75))


@pytest.mark.parametrize(
    ("node", "shape", "parallel", "limit"),
    [
        (Node(2, 8), GPU, 2, "CPUs"),
        (Node(2, 0), WorkerShape(1, 0), 2, "CPUs"),
        (Node(16, 8), GPU, 8, "GPUs"),
        (Node(16, 8), GPU, 3, "resources.max_parallel_languages"),
    ],
)
def test_the_limit_is_named(node: Node, shape: WorkerShape, parallel: int, limit: str) -> None:
    assert plan_queue(config(), Cluster((node,)), shape, [1.0] * 20, parallel, 0).limit == limit


def test_nothing_waits_and_nothing_is_said_of_what_is_not_known() -> None:
    on = Cluster((Node(16, 8),))
    queue = plan_queue(config(), on, GPU, [60.0] * 4, 8, None)
    assert (queue.waiting, queue.limit, queue.with_double, queue.bottleneck) == (
        0,
        None,
        None,
        None,
    )
    unknown = plan_queue(config(), on, GPU, [60.0, None] * 8, 8, 5.0)
    assert (unknown.waiting, unknown.first_wait, unknown.bottleneck) == (8, None, None)
    done = plan_queue(config(), on, GPU, [], 8, 0)
    assert (done.waiting, done.bottleneck) == (0, None)
