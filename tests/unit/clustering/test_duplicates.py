from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from compass_ray.clustering import duplicates
from compass_ray.clustering.duplicates import buckets, near_duplicates


def by_hand(vectors: np.ndarray, groups: np.ndarray, cosine: float) -> list[bool]:
    """One row after the other against all rows that stayed, in double precision."""
    kept: list[int] = []
    near = []
    unit = vectors.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    for row in range(len(vectors)):
        mine = [other for other in kept if groups[other] == groups[row]]
        near.append(any(unit[row] @ unit[other] > cosine for other in mine))
        if not near[-1]:
            kept.append(row)
    return near


@pytest.mark.parametrize("block", [3, 16, 1024])
@pytest.mark.parametrize("seed", range(4))
def test_the_rows_found_are_those_of_a_search_one_by_one(
    monkeypatch: pytest.MonkeyPatch, block: int, seed: int
) -> None:
    monkeypatch.setattr(duplicates, "BLOCK_ROWS", block)
    rng = np.random.default_rng(seed)
    # Few directions with little noise: many rows are near to some, and chains are common.
    vectors = rng.normal(size=(12, 6))[rng.integers(0, 12, 200)] + rng.normal(0, 0.15, (200, 6))
    groups = rng.integers(0, 5, 200)
    found = near_duplicates(vectors.astype(np.float32), groups, 0.97)
    assert found.tolist() == by_hand(vectors.astype(np.float32), groups, 0.97)
    assert 20 < found.sum() < 180


def test_of_a_chain_every_second_row_stays() -> None:
    angles = np.arange(7) * np.arccos(0.99)
    chain = np.column_stack([np.cos(angles), np.sin(angles)])
    found = near_duplicates(chain, np.zeros(7, np.int64), 0.98)
    assert found.tolist() == [False, True, False, True, False, True, False]


def test_rows_of_different_groups_are_never_compared() -> None:
    same = np.ones((3, 4), np.float16)
    assert near_duplicates(same, np.array([0, 1, 2]), 0.5).tolist() == [False, False, False]
    assert near_duplicates(same, np.array([1, 0, 1]), 0.5).tolist() == [False, False, True]


def test_half_precision_and_length_do_not_hide_a_copy() -> None:
    vector = np.random.default_rng(0).normal(size=384)
    copies = np.stack([vector / np.linalg.norm(vector), vector * 3]).astype(np.float16)
    assert near_duplicates(copies, np.zeros(2, np.int64), 0.9999).tolist() == [False, True]


def test_no_rows_have_no_duplicates() -> None:
    assert near_duplicates(np.empty((0, 3), np.float16), np.empty(0, np.int64), 0.9).size == 0


def test_memory_is_that_of_blocks_and_not_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "BLOCK_ROWS", 64)
    rows = 4000
    vectors = np.random.default_rng(0).normal(size=(rows, 8)).astype(np.float16)
    tracemalloc.start()
    near_duplicates(vectors, np.zeros(rows, np.int64), 0.999)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < rows * rows / 20, "a matrix of all pairs would take a byte each"


def test_buckets_hold_every_cluster_once_and_few_rows() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        rows = rng.integers(0, 40, rng.integers(1, 30))
        found = buckets(rows, 50)
        assert [cluster for bucket in found for cluster in bucket] == list(range(len(rows)))
        assert all(rows[list(bucket)].sum() <= 50 for bucket in found)
    assert buckets([90, 10, 10, 90], 50) == [range(1), range(1, 3), range(3, 4)]
