"""K-means: ours against faiss and scikit-learn, shards against one process, all rows or a sample.

``python benchmarks/kmeans.py`` prints three tables and writes ``benchmarks/results/kmeans.json``.
Rows are unit vectors around 300 topics, 384 dimensions; K = 100. Fits of one comparison take
turns, and the median of each counts.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from record import record
from turns import in_turn

from compass_ray.clustering.kmeans import Clusters, fit_kmeans

K, DIMENSION, TOPICS = 100, 384, 300
CHUNK = 50_000


def make_rows(start: int, stop: int, dtype: type = np.float32) -> np.ndarray:
    """Rows ``start`` to ``stop`` of one endless sequence, whatever pieces it is asked for in."""
    topics = np.random.default_rng(0).normal(size=(TOPICS, DIMENSION)).astype(np.float32)
    rows = np.empty((stop - start, DIMENSION), dtype)
    for first in range(start, stop, CHUNK):
        rng = np.random.default_rng((1, first))
        count = min(CHUNK, stop - first)
        chosen = topics[rng.integers(TOPICS, size=count)]
        made = chosen + rng.normal(scale=0.7, size=chosen.shape).astype(np.float32)
        made /= np.linalg.norm(made, axis=1, keepdims=True)
        rows[first - start : first - start + count] = made
    return rows


def inertia(rows: np.ndarray, centroids: np.ndarray) -> float:
    _, distance = Clusters(np.ascontiguousarray(centroids, np.float32), 0.0, "").assign(rows)
    return float(np.square(distance, dtype=np.float64).sum())


def faiss_kmeans(rows: np.ndarray, **options: int) -> np.ndarray:
    import faiss

    model = faiss.Kmeans(DIMENSION, K, seed=0, **options)
    model.train(rows)
    return model.centroids


def sklearn_default(rows: np.ndarray) -> np.ndarray:
    from sklearn.cluster import KMeans

    return KMeans(K, random_state=0).fit(rows).cluster_centers_


def against_libraries(count: int, turns: int) -> list[dict[str, Any]]:
    rows = make_rows(0, count)
    ways: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "compass_ray": lambda rows: fit_kmeans(rows, K).centroids,
        "faiss.Kmeans": faiss_kmeans,  # looks at 256 rows a cluster
        "faiss, all rows": partial(faiss_kmeans, max_points_per_centroid=count),
        "sklearn KMeans": sklearn_default,
    }
    for fit in ways.values():
        fit(rows[: 40 * K])  # libraries load when they are first used
    fits = {name: partial(fit, rows) for name, fit in ways.items()}
    spent, found = in_turn(fits, turns, warm_up=0)
    reached = {name: inertia(rows, centroids) for name, centroids in found.items()}
    best = min(reached.values())
    return [
        {
            "fit": name,
            "seconds": spent[name],
            "inertia": reached[name],
            "inertia_ratio": reached[name] / best,
        }
        for name in ways
    ]


def shards(count: int, actors: int, start: np.ndarray) -> Clusters:
    from compass_ray.clustering.sharded import fit_sharded

    size = -(-count // actors // CHUNK) * CHUNK
    loads = [
        partial(load_shard, first, min(first + size, count)) for first in range(0, count, size)
    ]
    return fit_sharded(loads, start, cpus=0.5)


def load_shard(start: int, stop: int):
    from compass_ray.clustering.sharded import Rows

    return Rows(make_rows(start, stop, np.float16))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--all-rows", type=int, default=2_000_000)
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    libraries = against_libraries(arguments.rows, arguments.turns)
    fastest = min(row["seconds"] for row in libraries if row["fit"] != "compass_ray")
    print(f"{'fit':<16} {'seconds':>8} {'to fastest':>11} {'inertia':>12} {'to best':>8}")
    for row in libraries:
        print(
            f"{row['fit']:<16} {row['seconds']:>8.2f} {row['seconds'] / fastest:>11.2f} "
            f"{row['inertia']:>12.1f} {row['inertia_ratio']:>8.4f}",
            flush=True,
        )

    from compass_ray.resources import connect

    connect()
    rows = make_rows(0, arguments.rows)
    single = fit_kmeans(rows, K)
    sharded = shards(arguments.rows, 4, fit_kmeans(rows[: arguments.rows // 8], K).centroids)
    ratio = inertia(rows, sharded.centroids) / single.inertia
    print(f"4 shards, inertia to that of one process: {ratio:.4f}", flush=True)

    total = arguments.all_rows
    every = shards(total, 4, single.centroids)
    on_sample = sum(
        inertia(make_rows(first, first + CHUNK), single.centroids)
        for first in range(0, total, CHUNK)
    )
    gap = on_sample / every.inertia
    print(f"fit on {arguments.rows:,} of {total:,} rows, inertia to a fit on all: {gap:.4f}")
    result = {
        "libraries": libraries,
        "sharded_inertia_ratio": ratio,
        "sample_inertia_ratio": gap,
    }
    record("kmeans", result)


if __name__ == "__main__":
    main()
