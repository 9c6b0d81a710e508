"""Selection for 20 target languages from one pool: seconds, memory, and DSIR on the same rows.

``python benchmarks/sampling.py`` prints a table and writes ``benchmarks/results/sampling.json``.
Vectors are synthetic (a mixture of 100 topics, 384 dimensions); prompts are six words drawn from
a vocabulary of the row's topic.
"""

from __future__ import annotations

import argparse
import os

# Products of a few hundred rows: BLAS threads would spend the time waiting for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import resource
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from record import record

from compass_ray.config import Sampling
from compass_ray.sampling.baselines import HashedNgrams, dsir_log_weights, dsir_rows
from compass_ray.sampling.pool import Pool, Target
from compass_ray.sampling.strategies import select

K, DIMENSION, TARGETS, BUDGET, USAGE = 100, 384, 20, 2_000, 285
CHUNK = 50_000


def make_pool(rows: int, rng: np.random.Generator) -> Pool:
    centroids = rng.normal(size=(K, DIMENSION)).astype(np.float32)
    centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    clusters = rng.integers(K, size=rows).astype(np.int32)
    vectors = np.empty((rows, DIMENSION), np.float16)
    for start in range(0, rows, CHUNK):
        topic = centroids[clusters[start : start + CHUNK]]
        noisy = topic + rng.normal(scale=0.05, size=topic.shape).astype(np.float32)
        vectors[start : start + CHUNK] = noisy / np.linalg.norm(noisy, axis=1, keepdims=True)
    return Pool(
        vectors_ND=vectors,
        clusters_N=clusters,
        languages_N=rng.integers(TARGETS, size=rows).astype(np.int16),
        languages=tuple(f"l{number:02d}" for number in range(TARGETS)),
        centroids_KD=centroids,
    )


def make_targets(pool: Pool, rng: np.random.Generator) -> list[Target]:
    return [
        Target(
            language=language,
            usage_K=rng.multinomial(USAGE, rng.dirichlet(np.full(K, 0.3))).astype(np.float64),
            own_K=rng.multinomial(1_000, rng.dirichlet(np.full(K, 0.3))),
            prototypes_KD=pool.centroids_KD,
        )
        for language in pool.languages
    ]


def make_prompts(clusters: np.ndarray, rng: np.random.Generator) -> list[str]:
    words = rng.integers(300, size=(len(clusters), 6))
    return [" ".join(f"t{c}w{w}" for w in row) for c, row in zip(clusters, words, strict=True)]


def dsir_seconds(pool: Pool, targets: list[Target], rng: np.random.Generator) -> float:
    """DSIR for every target on the pool's prompts; making the prompts is not counted."""
    ngrams, spent = HashedNgrams(), 0.0
    usage = [
        make_prompts(rng.choice(K, USAGE, p=t.usage_K / t.usage_K.sum()), rng) for t in targets
    ]
    started = time.perf_counter()
    bags = [ngrams.bag(prompts) for prompts in usage]
    spent += time.perf_counter() - started
    raw = np.zeros(ngrams.buckets, np.int64)
    parts = []
    for start in range(0, len(pool.clusters_N), CHUNK):
        prompts = make_prompts(pool.clusters_N[start : start + CHUNK], rng)
        started = time.perf_counter()
        parts.append(ngrams.counts(prompts))
        raw += np.asarray(parts[-1].sum(axis=0)).ravel()
        spent += time.perf_counter() - started
    started = time.perf_counter()
    for target, bag in zip(targets, bags, strict=True):
        weights = np.concatenate([dsir_log_weights(part, bag, raw) for part in parts])
        candidates = pool.others(target.language)
        dsir_rows(weights[candidates], candidates, BUDGET, rng)
    return spent + time.perf_counter() - started


def measure(rows: int) -> dict[str, float]:
    rng = np.random.default_rng(0)
    pool = make_pool(rows, rng)
    targets = make_targets(pool, rng)

    def picked(target: Target) -> int:
        return len(select(pool, target, Sampling(budget=BUDGET), 0).rows_B)

    started = time.perf_counter()
    assert sum(map(picked, targets)) == TARGETS * BUDGET
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    with ThreadPoolExecutor(2) as two:  # as the sampler answers callers
        started = time.perf_counter()
        list(two.map(picked, targets))
        by_two = time.perf_counter() - started
    dsir = dsir_seconds(pool, targets, rng)
    return {
        "rows": rows,
        "compass_s": seconds,
        "two_at_once": by_two / seconds,
        "dsir_s": dsir,
        "ratio": dsir / seconds,
        "gb": peak,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 300_000, 1_000_000])
    sizes = parser.parse_args().rows
    results = []
    print(
        f"{'rows':>10} {'compass s':>10} {'two at once':>12} {'dsir s':>8} {'dsir/compass':>13} "
        f"{'peak GB':>8}"
    )
    for rows in sizes:
        found = measure(rows)
        results.append(found)
        print(
            f"{rows:>10,} {found['compass_s']:>10.2f} {found['two_at_once']:>12.2f} "
            f"{found['dsir_s']:>8.2f} "
            f"{found['ratio']:>13.2f} {found['gb']:>8.2f}",
            flush=True,
        )
    record("sampling", {"results": results})


if __name__ == "__main__":
    main()
