from __future__ import annotations

import numpy as np
import pytest
import torch

from compass_ray.clustering.lloyd import add_parts, next_centroids, part_sums
from compass_ray.errors import UserError


def data(rows: int = 900, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(rows, 8)).astype(np.float32) + 3
    return vectors, vectors[rng.choice(rows, 5, replace=False)]


def by_hand(rows: np.ndarray, weights: np.ndarray, centroids: np.ndarray) -> tuple:
    squared = ((rows[:, None].astype(np.float64) - centroids[None]) ** 2).sum(axis=2)
    labels = squared.argmin(axis=1)
    sums = np.stack([(rows * weights[:, None])[labels == c].sum(axis=0) for c in range(5)])
    counts = np.bincount(labels, weights, minlength=5)
    return sums, counts, float((squared.min(axis=1) * weights).sum())


@pytest.mark.parametrize("weighted", [False, True])
def test_parts_add_up_to_the_whole(weighted: bool) -> None:
    rows, centroids = data()
    weights = np.random.default_rng(1).random(900).astype(np.float32) if weighted else np.ones(900)
    given = torch.from_numpy(weights) if weighted else None
    cuts = [slice(0, 100), slice(100, 101), slice(101, 900)]
    parts = [
        part_sums(torch.from_numpy(rows[cut]), None if given is None else given[cut], centroids)
        for cut in cuts
    ]
    added = add_parts(parts)
    sums, counts, inertia = by_hand(rows, weights, centroids)
    assert added.sums_KD == pytest.approx(sums, rel=1e-5)
    assert added.weights_K == pytest.approx(counts, rel=1e-6)
    assert added.inertia == pytest.approx(inertia, rel=1e-5)
    moved = next_centroids(added, centroids)
    assert moved == pytest.approx(sums / counts[:, None], rel=1e-5)


def test_no_step_raises_the_inertia() -> None:
    rows, centroids = data(seed=3)
    seen = []
    for _ in range(8):
        sums = part_sums(torch.from_numpy(rows), None, centroids)
        seen.append(sums.inertia)
        centroids = next_centroids(sums, centroids)
    assert seen == sorted(seen, reverse=True) and seen[-1] < seen[0]


def test_a_cluster_without_rows_moves_to_the_farthest_row() -> None:
    rows, centroids = data()
    rows[17] = 40
    centroids[2] = -1000
    sums = part_sums(torch.from_numpy(rows), None, centroids)
    moved = next_centroids(sums, centroids)
    assert moved[2] == pytest.approx(rows[17])


def test_half_precision_rows_are_summed_in_single_precision() -> None:
    rows, centroids = data()
    half = torch.from_numpy(rows).half()
    exact = part_sums(half.float(), None, centroids)
    assert part_sums(half, None, centroids).sums_KD == pytest.approx(exact.sums_KD, rel=1e-6)


def test_a_row_that_is_not_finite_is_named() -> None:
    rows, centroids = data()
    rows[41, 3] = np.nan
    with pytest.raises(UserError, match="vector 41"):
        part_sums(torch.from_numpy(rows), None, centroids)
