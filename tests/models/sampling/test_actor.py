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
    items = ()
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


class Usage:
    """A clustering of one part of usage, whose prompts have weights."""

    def __init__(self, weights: list[float]) -> None:
        rows = {"id": ["a", "b", "c", "d"], "language": ["de", "de", "sw", "de"]}
        table = pa.table({**rows, "weight": weights})
        self.artifact = SimpleNamespace(storage=SimpleNamespace(read_table=lambda *_: table))
        part = SimpleNamespace(role="usage", languages={"de": 3, "sw": 1}, path="usage.parquet")
        vectors = np.eye(4, 3, dtype=np.float16)
        self.parts = [SimpleNamespace(part=part, read_vectors=lambda: vectors)]

    def read_assignment(self, number: int) -> pa.Table:
        return pa.table({"cluster": pa.array([0, 0, 1, 2], pa.int32())})


@pytest.mark.parametrize("scale", [0.01, 1.0, 1000.0])
def test_the_target_does_not_depend_on_the_unit_of_the_weights_of_usage(scale: float) -> None:
    sampler = GapSampler.__new__(GapSampler)
    sampler._space, sampler._centroids = RawSpace(), np.eye(3, dtype=np.float32)
    sampler._clustered = Usage([scale, 2 * scale, 9 * scale, scale])
    target = sampler._load_target("de")
    assert target.usage_K == pytest.approx([2.25, 0, 0.75])
    assert target.prototypes_KD[0] == pytest.approx(np.array([1, 2, 0]) / 5**0.5, abs=1e-3)
    sampler._clustered = Usage([scale] * 4)
    assert sampler._load_target("de").usage_K.tolist() == [2, 0, 1]
    assert not sampler._load_target("fr").usage_K.any()


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
