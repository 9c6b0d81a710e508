import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from compass_ray.clustering import fit_kmeans


def test_torch_finds_the_clusters_that_sklearn_finds():
    X = np.random.default_rng(1).normal(size=(500, 6)).astype(np.float32)
    ours, other = (fit_kmeans(X, 7, backend=backend, seed=3) for backend in ("torch", "sklearn"))
    assert ours.backend == "torch"
    labels, distance = ours.assign(X)
    assert ours.inertia == pytest.approx(np.square(distance, dtype=np.float64).sum(), rel=1e-5)
    assert ours.inertia == pytest.approx(other.inertia, rel=1e-3)
    assert adjusted_rand_score(labels, other.assign(X)[0]) > 0.9


def test_torch_uses_all_rows_and_leaves_the_input_alone():
    X = np.random.default_rng(3).normal(size=(3000, 2)).astype(np.float32)
    before = X.copy()
    clusters = fit_kmeans(X, 1, backend="torch")
    np.testing.assert_array_equal(X, before)
    np.testing.assert_allclose(clusters.centroids[0], X.mean(axis=0), atol=1e-5)


def test_with_torch_no_cluster_stays_empty():
    rng = np.random.default_rng(5)
    X = np.r_[np.repeat(rng.normal(size=(3, 4)), 200, axis=0), rng.normal(size=(60, 4)) * 20]
    labels, _ = fit_kmeans(X, 40, backend="torch").assign(X)
    assert len(np.unique(labels)) == 40


def test_torch_gives_exactly_k_centroids_of_repeated_rows():
    X = np.repeat(np.eye(3, dtype=np.float32), 5, axis=0)
    clusters = fit_kmeans(X, 6, backend="torch")
    assert clusters.centroids.shape == (6, 3)
    assert clusters.inertia == pytest.approx(0, abs=1e-6)
