from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest
from sklearn.cluster import HDBSCAN
from sklearn.metrics import adjusted_rand_score

from compass_ray.clustering import choice, kmeans
from compass_ray.clustering.choice import fit_clusters
from compass_ray.clustering.hdbscan import fit_hdbscan
from compass_ray.clustering.kmeans import pick_backend
from compass_ray.clustering.layout import layout
from compass_ray.clustering.validity import NOISE
from compass_ray.config import Clustering
from compass_ray.errors import UserError

TRUE_K = 12


def blobs(noise: int = 0, rows: int = 720) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(TRUE_K, 16))
    labels = np.arange(rows) % TRUE_K
    X = centres[labels] + 0.05 * rng.normal(size=(rows, 16))
    X[:noise] = 4 * rng.normal(size=(noise, 16))
    return X.astype(np.float32), labels


@pytest.fixture
def cuml(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interface of cuML's HDBSCAN, worked by scikit-learn's."""

    class FakeHDBSCAN:
        def __init__(
            self,
            *,
            min_cluster_size: int,
            min_samples: int,
            cluster_selection_method: str,
            output_type: str,
        ) -> None:
            assert output_type == "numpy"
            self.model = HDBSCAN(
                min_cluster_size=min_cluster_size,
                min_samples=min_samples,
                cluster_selection_method=cluster_selection_method,
                copy=True,
            )

        def fit(self, X: np.ndarray) -> HDBSCAN:
            return self.model.fit(X)

    package, cluster = ModuleType("cuml"), ModuleType("cuml.cluster")
    cluster.HDBSCAN = FakeHDBSCAN
    monkeypatch.setitem(sys.modules, "cuml", package)
    monkeypatch.setitem(sys.modules, "cuml.cluster", cluster)
    monkeypatch.setitem(kmeans._RUNS_HERE, "cuml", lambda: True)


@pytest.mark.parametrize("backend", ["sklearn", "cuml"])
def test_hdbscan_keeps_the_contract_of_kmeans(backend: str, cuml: None) -> None:
    X, truth = blobs(noise=30)
    settings = Clustering(method="hdbscan", k=TRUE_K, backend=backend)
    chosen = fit_clusters(X, settings, seed=0)
    labels, distance = chosen.clusters.assign(X)
    assert chosen.clusters.backend == backend
    assert chosen.clusters.centroids.shape == (TRUE_K, 16)
    assert np.isfinite(chosen.clusters.centroids).all()
    # Noise counts, and goes to the nearest cluster like every other row.
    assert chosen.noise == pytest.approx(30, abs=5)
    assert set(labels) == set(range(TRUE_K))
    assert np.isfinite(distance).all()
    assert adjusted_rand_score(truth[30:], labels[30:]) == 1


def test_labels_of_the_fit_are_clusters_or_noise() -> None:
    X, _ = blobs(noise=30)
    dense = fit_hdbscan(X, 20, "sklearn")
    assert set(dense.labels_N) == {NOISE, *range(TRUE_K)}
    assert dense.noise == (dense.labels_N == NOISE).sum()
    inside = dense.labels_N != NOISE
    distance = X[inside] - dense.clusters.centroids[dense.labels_N[inside]]
    assert dense.clusters.inertia == pytest.approx((distance**2).sum(), rel=1e-4)


@pytest.mark.parametrize("method", ["kmeans", "hdbscan"])
@pytest.mark.parametrize("k", [[4, TRUE_K, 30], {"from": 4, "to": 40}])
def test_the_true_number_of_clusters_is_found(method: str, k: object) -> None:
    X, truth = blobs()
    chosen = fit_clusters(X, Clustering(method=method, k=k, backend="sklearn"), seed=0)
    assert adjusted_rand_score(truth, chosen.clusters.assign(X)[0]) > 0.9
    assert chosen.measure == ("silhouette" if method == "kmeans" else "dbcv")
    ks = [point.k for point in chosen.curve]
    assert ks == sorted(ks)
    assert len(ks) > 1
    assert len(chosen.clusters.centroids) in ks


def test_a_fixed_k_has_no_curve_and_a_choice_ends_on_all_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    X, _ = blobs()
    assert fit_clusters(X, Clustering(k=5), seed=0).curve == ()
    monkeypatch.setattr(choice, "FITTED_ROWS", 200)
    monkeypatch.setattr(choice, "SILHOUETTE_ROWS", 100)
    chosen = fit_clusters(X, Clustering(k=[4, TRUE_K, 300], backend="sklearn"), seed=0)
    assert [point.k for point in chosen.curve] == [4, TRUE_K]
    assert chosen.rows == len(X)
    assert len(chosen.clusters.centroids) == TRUE_K


def test_hdbscan_on_a_cpu_looks_at_a_bounded_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "MAX_ROWS_ON_CPU", 240)
    X, truth = blobs()
    chosen = fit_clusters(X, Clustering(method="hdbscan", k=TRUE_K), seed=0)
    assert chosen.rows == 240
    assert adjusted_rand_score(truth, chosen.clusters.assign(X)[0]) == 1


def test_rows_without_density_are_the_users_error() -> None:
    X = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    with pytest.raises(UserError, match="hdbscan calls all 8 rows noise"):
        fit_clusters(X, Clustering(method="hdbscan", k=2, backend="sklearn"), seed=0)


def test_too_few_rows_for_hdbscan_are_the_users_error() -> None:
    settings = Clustering(method="hdbscan", k=2, backend="sklearn")
    with pytest.raises(UserError, match="hdbscan needs 5 rows to fit on, and there are 4"):
        fit_clusters(np.eye(4, dtype=np.float32), settings, seed=0)


def test_auto_takes_a_backend_that_has_hdbscan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(kmeans._RUNS_HERE, "faiss", lambda: True)
    monkeypatch.setitem(kmeans._RUNS_HERE, "cuml", lambda: False)
    assert pick_backend("auto", "hdbscan") == "sklearn"


def test_the_layout_puts_neighbours_near_each_other() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.eye(4, 16), 6, axis=0) + 0.01 * rng.normal(size=(24, 16))
    places = layout(groups.astype(np.float32), seed=0)
    assert places.shape == (24, 2)
    assert np.isfinite(places).all()
    distance = np.linalg.norm(places[:, None] - places, axis=2) + np.diag(np.full(24, np.inf))
    assert (distance.argmin(axis=1) // 6 == np.arange(24) // 6).all()
    assert layout(groups[:2].astype(np.float32), seed=0).shape == (2, 2)
