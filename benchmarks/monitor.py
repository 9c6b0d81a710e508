"""Drift monitors on the same windows: how often each alarms when nothing moved, and when it did.

``python benchmarks/monitor.py`` prints tables and writes ``benchmarks/results/monitor.json``.

Usage is drawn from a Zipf law over K clusters in random order, distances to the centroids from a
normal law. Every stable window has a reference of its own: one reference for all would measure
how lucky that one draw was, and the last table shows how much it can differ. Rules compared:

* ours: ``continual.drift.detect`` at alpha 1 %, over all of its tests.
* fixed: Jensen-Shannon divergence (bits) above 0.1.
* evidently: its test ``jensenshannon`` with its defaults, computed here as documented: the square
  root of the divergence in nats is at least 0.1. (The package would bring 30 others,
  a web server and telemetry among them; the rule is that of its version 0.7.23.)
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
from record import record
from scipy.spatial.distance import jensenshannon

from compass_ray.continual.drift import Located, detect
from compass_ray.sampling.distribution import js_divergence

ALPHA, REFERENCE = 0.01, 1000
WINDOWS, CLUSTERS = (50, 200, 1000), (20, 100)

Rule = Callable[[Located, Located, int, int], bool]


def ours(reference: Located, window: Located, k: int, seed: int) -> bool:
    return detect(reference, window, k, alpha=ALPHA, seed=seed).drifted


def fixed(reference: Located, window: Located, k: int, seed: int) -> bool:
    return js_divergence(reference.shares(k), window.shares(k)) > 0.1


def evidently(reference: Located, window: Located, k: int, seed: int) -> bool:
    return bool(jensenshannon(reference.shares(k), window.shares(k)) >= 0.1)


RULES: dict[str, Rule] = {"ours": ours, "fixed": fixed, "evidently": evidently}


def usage(rng: np.random.Generator, p: np.ndarray, size: int, novel: float = 0.0) -> Located:
    """Prompts of a stream; a share ``novel`` of them is far from the centroid it is nearest to."""
    distances = rng.normal(0.7, 0.1, size)
    distances[rng.random(size) < novel] += 0.5
    clusters = rng.choice(len(p), size, p=p).astype(np.int32)
    return Located(clusters, distances.astype(np.float32), np.ones(size))


def zipf(rng: np.random.Generator, k: int) -> np.ndarray:
    p = rng.permutation(1 / np.arange(1, k + 1))
    return p / p.sum()


def rates(
    trials: int, k: int, size: int, reference: int, shift: float = 0.0, novel: float = 0.0
) -> dict[str, float]:
    """Share of windows on which each rule alarms; ``shift`` of the mass goes to one cluster."""
    alarms = dict.fromkeys(RULES, 0)
    for trial in range(trials):
        rng = np.random.default_rng([trial, k, size, reference])
        p = zipf(rng, k)
        q = (1 - shift) * p
        q[rng.integers(k)] += shift
        before, after = usage(rng, p, reference), usage(rng, q, size, novel)
        for name, rule in RULES.items():
            alarms[name] += rule(before, after, k, trial)
    return {name: count / trials for name, count in alarms.items()}


def one_reference(trials: int, references: int, k: int, size: int, reference: int) -> list[float]:
    """Our rate of false alarms given each of several references, sorted."""
    found = []
    for number in range(references):
        rng = np.random.default_rng([number, k, size, reference, 1])
        p = zipf(rng, k)
        before = usage(rng, p, reference)
        found.append(np.mean([ours(before, usage(rng, p, size), k, t) for t in range(trials)]))
    return sorted(map(float, found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--windows", type=int, default=1000, help="Stable windows a row")
    parser.add_argument("--shifted", type=int, default=100, help="Moved windows a row")
    arguments = parser.parse_args()
    started = time.perf_counter()
    results: list[dict[str, object]] = []

    def show(what: str, trials: int, k: int, size: int, reference: int, **moved: float) -> None:
        found = rates(trials, k, size, reference, **moved)
        results.append(
            {"what": what, "windows": trials, "k": k, "size": size, "reference": reference} | found
        )
        cells = "  ".join(f"{found[name]:>9.1%}" for name in RULES)
        print(f"{what:<34} {reference:>9,} {k:>4} {size:>6}  {cells}", flush=True)

    rules = "  ".join(f"{name:>9}" for name in RULES)
    print(f"{'share of windows that alarm':<34} {'reference':>9} {'K':>4} {'window':>6}  {rules}")
    for reference in (REFERENCE, 300):
        for k in CLUSTERS:
            for size in WINDOWS:
                show("nothing moved", arguments.windows, k, size, reference)
    for reference in (5 * REFERENCE, REFERENCE, 300):
        for k in CLUSTERS:
            moved = "10 % of the mass to one cluster"
            show(moved, arguments.shifted, k, 500, reference, shift=0.1)
    for k in CLUSTERS:
        show("5 % far from every centroid", arguments.shifted, k, 500, REFERENCE, novel=0.05)

    print("\nfalse alarms of ours given one reference: least, median, most of 10 references")
    spread = []
    for reference in (300, 1000, 10_000):
        found = one_reference(arguments.windows // 10, 10, 20, 500, reference)
        spread.append({"reference": reference, "k": 20, "size": 500, "rates": found})
        print(f"{reference:>9,}  {found[0]:.1%}  {found[5]:.1%}  {found[-1]:.1%}", flush=True)

    written = {
        "seconds": time.perf_counter() - started,
        "alpha": ALPHA,
        "results": results,
        "one_reference": spread,
    }
    record("monitor", written)


if __name__ == "__main__":
    main()
