import io
import subprocess
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from compass_ray.clustering import Clusters, fit_kmeans, kmeans
from compass_ray.clustering.kmeans import pick_backend
from compass_ray.errors import UserError

# tests/models has those of torch, which takes seconds to load.
BACKENDS = [name for name, runs in kmeans._RUNS_HERE.items() if name != "torch" and runs()]
every_backend = pytest.mark.parametrize("backend", BACKENDS)


def blobs(k=8, rows=800, seed=0):
    """Rows around k far points of a plane's grid: (X, blob of each row)."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(rows) % k)
    centres = rng.permutation(np.array([(x, y) for x in range(4) for y in range(4)]))[:k] * 10.0
    return (centres[labels] + rng.normal(size=(rows, 2))).astype(np.float32), labels


@every_backend
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_every_backend_finds_well_separated_blobs(backend, dtype):
    X, truth = blobs()
    clusters = fit_kmeans(X.astype(dtype), 8, backend=backend)
    labels, distance = clusters.assign(X)
    assert clusters.backend == backend
    assert clusters.centroids.shape == (8, 2)
    assert clusters.centroids.dtype == distance.dtype == np.float32
    assert labels.dtype == np.int32
    assert adjusted_rand_score(truth, labels) == 1
    means = np.array([X[labels == c].mean(axis=0) for c in range(8)])
    np.testing.assert_allclose(clusters.centroids, means, atol=0.01)


def test_all_backends_agree_on_rows_without_structure():
    X = np.random.default_rng(1).normal(size=(500, 6)).astype(np.float32)
    fits = [fit_kmeans(X, 7, backend=backend, seed=3) for backend in BACKENDS]
    for other in fits[1:]:
        assert other.inertia == pytest.approx(fits[0].inertia, rel=1e-3)
        assert adjusted_rand_score(other.assign(X)[0], fits[0].assign(X)[0]) > 0.9


@every_backend
def test_every_backend_repeats_with_its_seed(backend):
    X = np.random.default_rng(2).normal(size=(400, 5)).astype(np.float32)
    first, again = (fit_kmeans(X, 9, backend=backend, seed=5) for _ in range(2))
    np.testing.assert_allclose(first.centroids, again.centroids, atol=1e-6)
    other = fit_kmeans(X, 9, backend=backend, seed=6)
    assert not np.allclose(first.centroids, other.centroids)


@every_backend
def test_every_backend_uses_all_rows_and_leaves_the_input_alone(backend, monkeypatch):
    monkeypatch.setattr(kmeans, "SAMPLE_PER_CLUSTER", 4)
    X = np.random.default_rng(3).normal(size=(3000, 2)).astype(np.float32)
    before = X.copy()
    clusters = fit_kmeans(X, 1, backend=backend)
    np.testing.assert_array_equal(X, before)
    np.testing.assert_allclose(clusters.centroids[0], X.mean(axis=0), atol=1e-5)
    assert clusters.inertia == pytest.approx(((X - X.mean(axis=0)) ** 2).sum(), rel=1e-5)


@every_backend
@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_every_backend_gives_exactly_k_finite_centroids_of_repeated_rows(backend):
    X = np.repeat(np.eye(3, dtype=np.float32), 5, axis=0)
    clusters = fit_kmeans(X, 6, backend=backend)
    assert clusters.centroids.shape == (6, 3)
    assert np.isfinite(clusters.centroids).all()
    assert clusters.inertia == pytest.approx(0, abs=1e-6)


@every_backend
def test_every_backend_can_give_each_row_its_own_cluster(backend):
    X = np.random.default_rng(4).normal(size=(20, 3)).astype(np.float32)
    clusters = fit_kmeans(X, 20, backend=backend)
    assert sorted(clusters.assign(X)[0]) == list(range(20))
    assert clusters.inertia == pytest.approx(0, abs=1e-6)


@every_backend
def test_no_cluster_stays_empty(backend):
    rng = np.random.default_rng(5)
    # Many copies of few rows beside a thin cloud: a start that repeats itself is likely.
    X = np.r_[np.repeat(rng.normal(size=(3, 4)), 200, axis=0), rng.normal(size=(60, 4)) * 20]
    labels, _ = fit_kmeans(X, 40, backend=backend).assign(X)
    assert len(np.unique(labels)) == 40


def test_centroids_a_backend_left_empty_are_moved_to_far_rows(monkeypatch):
    far = np.full((40, 2), 1e6, dtype=np.float32)
    monkeypatch.setitem(kmeans._FITTERS, "sklearn", lambda X, start, seed: (far + start * 0, None))
    X = np.random.default_rng(6).normal(size=(300, 2)).astype(np.float32)
    labels, _ = fit_kmeans(X, 40, backend="sklearn").assign(X)
    assert len(np.unique(labels)) == 40


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_centroids_that_are_not_finite_never_leave(monkeypatch, broken):
    monkeypatch.setitem(kmeans._FITTERS, "sklearn", lambda X, start, seed: (start + broken, 0.0))
    with pytest.raises(RuntimeError, match="sklearn did not give 2 finite centroids"):
        fit_kmeans(np.eye(4), 2, backend="sklearn")


def test_assignment_is_the_nearest_centroid_and_its_euclidean_distance_in_any_block(monkeypatch):
    rng = np.random.default_rng(7)
    centroids = rng.normal(size=(11, 5)).astype(np.float32)
    X = rng.normal(size=(103, 5)).astype(np.float16)
    exact = np.linalg.norm(X[:, None].astype(float) - centroids, axis=2)
    for block in (1 << 22, 50):
        monkeypatch.setattr(kmeans, "BLOCK", block)
        labels, distance = Clusters(centroids, 0.0, "sklearn").assign(X)
        np.testing.assert_array_equal(labels, exact.argmin(axis=1))
        np.testing.assert_allclose(distance, exact.min(axis=1), rtol=1e-5)


def test_assignment_keeps_its_precision_far_from_the_origin():
    grid = np.arange(10, dtype=np.float32)[:, None] + np.float32(10_000)
    clusters = Clusters(grid, 0.0, "sklearn")
    labels, distance = clusters.assign(grid + np.float32(0.125))
    assert labels.tolist() == list(range(10))
    np.testing.assert_allclose(distance, 0.125)


def test_assigning_no_rows_gives_no_labels():
    labels, distance = Clusters(np.eye(3, dtype=np.float32), 0.0, "faiss").assign(np.empty((0, 3)))
    assert labels.shape == distance.shape == (0,)


def test_assignment_refuses_another_width_and_rows_that_are_not_finite():
    clusters = Clusters(np.eye(3, dtype=np.float32), 0.0, "faiss")
    with pytest.raises(ValueError, match="2 dimensions, but the centroids have 3"):
        clusters.assign(np.ones((4, 2)))
    with pytest.raises(UserError, match=r"vector 1 \(from 0\) is not finite"):
        clusters.assign(np.array([[0, 0, 0], [0, np.nan, 0]]))


def test_clusters_survive_a_round_trip_bit_by_bit(tmp_path):
    clusters = replace(fit_kmeans(blobs()[0], 8), cutoff=0.75)
    clusters.save(tmp_path / "clusters.npz")
    buffer = io.BytesIO()
    clusters.save(buffer)
    for file in (tmp_path / "clusters.npz", io.BytesIO(buffer.getvalue())):
        loaded = Clusters.load(file)
        assert loaded.centroids.tobytes() == clusters.centroids.tobytes()
        assert (loaded.inertia, loaded.backend) == (clusters.inertia, clusters.backend)
        assert loaded.cutoff == 0.75


def test_clusters_of_an_earlier_version_load_and_know_no_novel_rows(tmp_path):
    path = tmp_path / "clusters.npz"
    np.savez(path, centroids=np.eye(2, dtype=np.float32), inertia=1.0, backend="faiss")
    assert Clusters.load(path).cutoff == np.inf


@pytest.mark.parametrize(
    ("k", "message"),
    [
        (500, "clustering.k: 500 clusters asked of 120 rows; choose k of at most 120"),
        (0, "clustering.k: 0 clusters asked of 120 rows; choose k of at least 1"),
    ],
)
def test_a_k_that_does_not_fit_the_rows_is_refused_in_one_line(k, message):
    with pytest.raises(UserError) as error:
        fit_kmeans(np.ones((120, 2)), k)
    assert str(error.value) == message


def test_rows_that_are_not_finite_are_refused_by_number():
    X = np.ones((50, 2))
    X[17, 1] = np.inf
    with pytest.raises(UserError, match=r"vector 17 \(from 0\) is not finite"):
        fit_kmeans(X, 3)


@pytest.mark.parametrize("X", [np.ones(5), np.ones((5, 2), dtype=int), [["a"]]])
def test_what_are_no_vectors_is_refused(X):
    with pytest.raises(ValueError, match="floating point vectors"):
        fit_kmeans(X, 1)


@pytest.mark.parametrize(
    ("runs", "gpu", "picked"),
    [
        ({"cuml": True, "faiss": True}, True, "cuml"),
        ({"cuml": False, "faiss": True}, True, "torch"),
        ({"cuml": False, "faiss": True}, False, "faiss"),
        ({"cuml": False, "faiss": False}, False, "sklearn"),
    ],
)
def test_auto_picks_the_fastest_backend_that_runs_here(monkeypatch, runs, gpu, picked):
    for name, answer in runs.items():
        monkeypatch.setitem(kmeans._RUNS_HERE, name, lambda answer=answer: answer)
    monkeypatch.setattr(kmeans, "_has_gpu", lambda: gpu)
    assert pick_backend("auto") == picked


def test_a_backend_that_is_unknown_or_missing_is_refused_with_a_choice(monkeypatch):
    monkeypatch.setitem(kmeans._RUNS_HERE, "faiss", lambda: False)
    with pytest.raises(
        UserError, match="'spark' is unknown; choose auto, cuml, torch, faiss, sklearn"
    ):
        pick_backend("spark")
    with pytest.raises(UserError, match=r"faiss cannot run here \(it needs .*\); choose auto"):
        fit_kmeans(np.ones((4, 2)), 2, backend="faiss")


@pytest.mark.parametrize(("devices", "runs"), [(2, True), (0, False), (None, False)])
def test_cuml_runs_only_where_it_is_installed_and_a_gpu_is_there(monkeypatch, devices, runs):
    def count():
        if devices is None:
            raise RuntimeError("no driver")
        return devices

    cupy = ModuleType("cupy")
    cupy.cuda = SimpleNamespace(runtime=SimpleNamespace(getDeviceCount=count))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(kmeans, "find_spec", lambda name: object())
    assert kmeans._cuml_runs() is runs
    monkeypatch.setattr(kmeans, "find_spec", lambda name: None)
    assert kmeans._cuml_runs() is False


@pytest.fixture
def cuml(monkeypatch):
    """The interface of cuML's k-means, worked by scikit-learn's; what was done with it, in order.

    What it cannot show: that cuML takes these arguments, and what they do on a GPU.
    """
    done = []

    class FakeKMeans:
        def __init__(
            self,
            *,
            n_clusters,
            init,
            n_init,
            max_iter,
            random_state,
            max_samples_per_batch,
            output_type,
        ):
            assert init.shape == (n_clusters, 2)
            assert (n_init, random_state, output_type) == (1, 4, "numpy")
            self.model = KMeans(n_clusters, init=init, n_init=1, max_iter=max_iter)
            self.batch = max_samples_per_batch

        def fit(self, X):
            done.append(("fit", self.batch))
            return self.model.fit(X)

    rmm, package, cluster = ModuleType("rmm"), ModuleType("cuml"), ModuleType("cuml.cluster")
    rmm.reinitialize = lambda **options: done.append(("pool", options))
    cluster.KMeans = FakeKMeans
    for module in (rmm, package, cluster):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(kmeans._RUNS_HERE, "cuml", lambda: True)
    monkeypatch.setattr(kmeans, "SAMPLE_PER_CLUSTER", 10**6)  # all rows: one fit each
    kmeans.pool_gpu_memory.cache_clear()
    yield done
    kmeans.pool_gpu_memory.cache_clear()


def test_cuml_is_called_with_the_shared_start_and_asked_for_numpy(cuml):
    X, truth = blobs()
    clusters = fit_kmeans(X, 8, seed=4)
    assert clusters.backend == "cuml"
    assert adjusted_rand_score(truth, clusters.assign(X)[0]) == 1


def test_cuml_gets_a_pool_of_memory_once_a_process_before_its_first_fit(cuml):
    for _ in range(2):
        fit_kmeans(blobs()[0], 8, seed=4)
    assert [name for name, _ in cuml] == ["pool", "fit", "fit"]
    assert cuml[0] == ("pool", {"pool_allocator": True})


def test_cuml_fits_without_a_pool_where_there_is_none(cuml, monkeypatch):
    monkeypatch.setitem(sys.modules, "rmm", None)
    assert fit_kmeans(blobs()[0], 8, seed=4).backend == "cuml"
    assert [name for name, _ in cuml] == ["fit"]


def test_cuml_holds_as_many_distances_for_many_clusters_as_for_few(cuml, monkeypatch):
    monkeypatch.setattr(kmeans, "CUML_DISTANCES", 1000)
    monkeypatch.setattr(kmeans, "CUML_MOST_ROWS", 300)
    for k in (2, 8):
        fit_kmeans(blobs()[0], k, seed=4)
    assert [batch for name, batch in cuml if name == "fit"] == [300, 125]


def test_importing_clustering_loads_no_heavy_library():
    code = (
        "import sys, compass_ray.clustering, compass_ray.embedding.space\n"
        "print(sorted({'torch', 'ray', 'faiss', 'sklearn', 'cuml'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr
