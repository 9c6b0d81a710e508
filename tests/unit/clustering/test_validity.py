from __future__ import annotations

import numpy as np
import pytest

from compass_ray.clustering.validity import NOISE, dbcv, silhouette


def blobs(dimension: int, spread: float, rows: int = 300) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    centres = 3 * rng.normal(size=(5, dimension))
    labels = rng.integers(5, size=rows).astype(np.int32)
    return centres[labels] + spread * rng.normal(size=(rows, dimension)), labels


# What the authors' definition gives, by the package hdbscan 0.8.44 (validity_index).
@pytest.mark.parametrize(
    ("dimension", "expected"),
    [(2, -0.332477254755), (3, -0.004798539869), (5, 0.330069800723), (20, 0.577594531368)],
)
def test_dbcv_equals_the_reference_implementation(dimension: int, expected: float) -> None:
    rows, labels = blobs(dimension, 1.0)
    labels[:20] = NOISE
    assert dbcv(rows, labels) == pytest.approx(expected, abs=1e-9)


def test_dbcv_stays_finite_at_hundreds_of_dimensions_and_with_repeated_rows() -> None:
    rows, labels = blobs(384, 0.01)
    rows[:40] = rows[0]
    labels[:40] = labels[0]
    assert 0.5 < dbcv(rows / np.linalg.norm(rows, axis=1, keepdims=True), labels) < 1


def test_dbcv_of_a_cluster_of_one_repeated_row() -> None:
    rows, labels = blobs(384, 0.01)
    rows[labels == 2] = rows[labels == 2][0]
    assert 0.5 < dbcv(rows / np.linalg.norm(rows, axis=1, keepdims=True), labels) < 1


def test_dbcv_likes_rings_that_silhouette_does_not() -> None:
    angle = np.random.default_rng(1).uniform(0, 2 * np.pi, 600)
    labels = (np.arange(600) % 2).astype(np.int32)
    radius = np.where(labels, 10.0, 1.0)
    rings = np.column_stack([radius * np.cos(angle), radius * np.sin(angle)])
    assert dbcv(rings, labels) > 0.5 > silhouette(rings.astype(np.float32), labels)


def test_what_is_no_clustering_scores_nothing() -> None:
    rows, _ = blobs(3, 1.0, rows=30)
    assert dbcv(rows, np.zeros(30, np.int32)) == 0
    assert dbcv(rows, np.full(30, NOISE, np.int32)) == 0
    assert dbcv(rows, np.arange(30, dtype=np.int32)) == 0
    assert silhouette(rows.astype(np.float32), np.zeros(30, np.int32)) == 0
