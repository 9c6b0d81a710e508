"""What a gap sampler takes of a node's memory, without the actor and without Ray."""

from __future__ import annotations

import tracemalloc
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from compass_ray.embedding.space import RawSpace
from compass_ray.errors import UserError
from compass_ray.resources import Cluster, Node
from compass_ray.sampling.actor import GapSampler, sampler_bytes, sampler_places
from compass_ray.search import trial

PARTS, ROWS, DIMENSION = 60, 200, 512


class Part:
    part = SimpleNamespace(role="auxiliary", rows=ROWS, path="rows.parquet")
    vectors = SimpleNamespace(summary={"dimension": DIMENSION})

    def read_vectors(self) -> np.ndarray:
        return np.ones((ROWS, DIMENSION), np.float16)


class Pool:
    """A clustering of ``PARTS`` parts that are made when they are read."""

    parts = [Part()] * PARTS
    artifact: Any = SimpleNamespace(
        storage=SimpleNamespace(
            read_table=lambda path, columns: pa.table({"language": ["de", "sw"] * (ROWS // 2)})
        )
    )

    def read_left_out(self) -> dict[int, list[int]]:
        return {3: [0], 4: list(range(ROWS))}

    def read_assignment(self, number: int) -> pa.Table:
        return pa.table({"cluster": np.full(ROWS, number, np.int32)})


def test_the_pool_is_held_once_while_it_is_loaded() -> None:
    sampler = GapSampler.__new__(GapSampler)
    sampler._clustered, sampler._space = Pool(), RawSpace()
    sampler._centroids = np.ones((PARTS, DIMENSION), np.float32)
    sampler._load_pool()  # what it imports is not its own
    tracemalloc.start()
    pool, parts, offsets = sampler._load_pool()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    rows = PARTS * ROWS - ROWS - 1
    assert len(pool.vectors_ND) == len(offsets) == rows
    assert np.array_equal(parts, pool.clusters_N)
    assert [pool.languages[code] for code in pool.languages_N[:2]] == ["de", "sw"]
    assert offsets[3 * ROWS] == 1 and pool.languages[pool.languages_N[3 * ROWS]] == "sw"
    assert rows * DIMENSION * 2 < peak < 1.3 * sampler_bytes(Pool())


def test_a_sampler_needs_a_node_with_its_memory() -> None:
    nodes = Cluster((Node(2, 0, 10e9), Node(8, 0, 100e9)))
    assert sampler_places(int(40e9), nodes) == 2
    assert sampler_places(int(5e9), nodes) == 19
    with pytest.raises(UserError, match=r"sampling: .* needs 95\.0 GB .* largest has 90\.0 GB"):
        sampler_places(int(95e9), nodes)


def test_a_search_leaves_a_place_to_samplers_it_does_not_hold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nodes = Cluster((Node(2, 0, 2.5 * sampler_bytes(Pool())),))
    monkeypatch.setattr(trial, "cluster", lambda: nodes)
    started: list[str] = []
    monkeypatch.setattr(trial, "gap_sampler", lambda of: started.append(of.artifact.fingerprint))
    samplers = trial.Samplers()
    for fingerprint in ("f00", "f01", "f00"):
        pool = Pool()
        pool.artifact = SimpleNamespace(fingerprint=fingerprint)
        samplers.hold(pool)
    assert started == ["f00"]
