"""A node leaves while others hold every place that is left: nobody waits for ever."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import torch
from ray import cloudpickle
from ray.util.state import list_actors

from compass_ray.artifacts import Storage
from compass_ray.claims import claim
from compass_ray.clustering import lloyd, sharded
from compass_ray.clustering.kmeans import ITERATIONS
from compass_ray.clustering.lloyd import Sums, iterate, next_centroids, part_sums
from compass_ray.clustering.sharded import Rows, fit_sharded
from compass_ray.evaluation.stage import _Passes

pytestmark = pytest.mark.ray
# Nodes that were started before this test do not find its module.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

CLAIMS = 4


@pytest.fixture
def doomed(cluster: Any) -> Iterator[Any]:
    """A node of one slot beside the head's two, in a cluster that this process has joined."""
    node = cluster.add_node(num_cpus=1, resources={"doomed": 1})
    cluster.wait_for_nodes()
    ray.init(cluster.address, log_to_driver=False)
    yield node
    ray.shutdown()


class Scorer:
    """Comes to no end on one node, and elsewhere has scored once a pass is under way there."""

    def here(self) -> None: ...

    def score(self, job: Any) -> Any:
        if ray.get_runtime_context().get_node_id() == job.doomed:
            job.reached.touch()
            time.sleep(3600)
        while not job.reached.exists():
            time.sleep(0.05)
        return SimpleNamespace(summary={"accuracy": 1.0})


def hold(storage: Storage, left: int) -> list[str]:
    """Take so many claims; the nodes on which there are any."""
    if left:
        with claim(storage, "stage", f"key-{left}"):
            return hold(storage, left - 1)
    held = [("class_name", "=", "_Claim"), ("state", "=", "ALIVE")]
    address = ray.get_runtime_context().gcs_address
    while len(found := list_actors(address, filters=held)) < CLAIMS:
        time.sleep(0.1)
    return [actor.node_id for actor in found]


def test_claims_and_passes_over_items_outlive_no_node(
    cluster: Any, doomed: Any, tmp_path: Path
) -> None:
    """A claim is where its holder is; a pass that is lost finds a place when others are done."""
    there = ray.remote(hold).options(num_cpus=0, resources={"doomed": 1})
    nodes = ray.get(there.remote(Storage.open(str(tmp_path)), CLAIMS), timeout=120)
    assert set(nodes) == {doomed.node_id}

    reached = tmp_path / "reached"
    jobs: Any = [
        SimpleNamespace(name=str(n), fingerprint=str(n), doomed=doomed.node_id, reached=reached)
        for n in range(5)
    ]
    passes = _Passes(ray.remote(num_cpus=1)(Scorer).remote, jobs)
    with ThreadPoolExecutor() as threads:
        # One more than there are places.
        running = threads.submit(passes.run, 4)
        while len(passes.done) < len(jobs) - 1:
            assert not running.done()
            time.sleep(0.05)
        cluster.remove_node(doomed, allow_graceful=False)
        running.result(timeout=120)
    assert passes.causes == {}
    assert passes.done.keys() == {job.fingerprint for job in jobs}


def load(rows_ND: np.ndarray) -> Rows:
    return Rows(rows_ND)


def test_shards_of_a_lost_node_pass_to_the_actors_that_are_left(
    cluster: Any, doomed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.random.default_rng(0).normal(size=(600, 8)).astype(np.float32)
    start = rows[:20]
    expected, _ = iterate(partial(part_sums, torch.from_numpy(rows), None), start, ITERATIONS)
    passes: list[float] = []
    said: list[str] = []

    def losing(sums: Sums, centroids: np.ndarray) -> np.ndarray:
        passes.append(sums.inertia)
        if len(passes) == 2:
            cluster.remove_node(doomed, allow_graceful=False)
            monkeypatch.setattr(sharded, "PATIENCE_S", 1.0)
        return next_centroids(sums, centroids)

    monkeypatch.setattr(lloyd, "next_centroids", losing)
    monkeypatch.setattr(sharded.log, "info", lambda text, *told: said.append(text % told))
    found = fit_sharded([partial(load, part) for part in np.array_split(rows, 3)], start)
    assert "cluster: 1 shards pass to actors that still have a place" in said
    assert found.centroids == pytest.approx(expected, abs=1e-4)
