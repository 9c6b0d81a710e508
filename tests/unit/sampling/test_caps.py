from __future__ import annotations

import itertools

import numpy as np
import pytest

from compass_ray.sampling.allocation import fill_gaps
from compass_ray.sampling.caps import fill_gaps_capped, split


def together(m: np.ndarray, most: np.ndarray) -> int:
    return int(np.minimum(m.sum(axis=0), most).sum())


def feasible(a: np.ndarray, m: np.ndarray, most: np.ndarray) -> bool:
    """Hall's condition: no set of clusters takes more than its languages give it."""
    sets = itertools.chain.from_iterable(
        itertools.combinations(range(len(a)), size) for size in range(1, len(a) + 1)
    )
    return all(a[list(some)].sum() <= together(m[list(some)], most) for some in sets)


def worth(p: np.ndarray, n: np.ndarray, a: np.ndarray) -> tuple[float, float]:
    """Larger is better: least weight left empty first, then expected log-count."""
    rows, wanted = n + a, p > 0
    empty = wanted & (rows == 0)
    filled = wanted & ~empty
    return -round(float(p[empty].sum()), 9), round(float(p[filled] @ np.log(rows[filled])), 9)


@pytest.mark.parametrize("seed", range(4))
def test_it_equals_brute_force_over_every_split_that_is_possible(seed: int) -> None:
    rng = np.random.default_rng(seed)
    bound = 0
    for _ in range(40):
        k, languages = int(rng.integers(2, 4)), int(rng.integers(1, 4))
        p, n = rng.dirichlet(np.ones(k)), rng.integers(0, 5, k).astype(float)
        m, most = rng.integers(0, 5, (k, languages)), rng.integers(0, 6, languages)
        budget = int(rng.integers(0, 12))
        total = min(budget, together(m, most))
        ranges = [range(cap + 1) for cap in np.minimum(m, most).sum(axis=1)]
        possible = [
            a
            for a in map(np.array, itertools.product(*ranges))
            if a.sum() == total and feasible(a, m, most)
        ]
        chosen = fill_gaps_capped(p, n, m, most, budget)
        assert any((chosen == a).all() for a in possible)
        assert worth(p, n, chosen) == max(worth(p, n, a) for a in possible)
        bound += (chosen != fill_gaps(p, n, m.sum(axis=1), budget)).any()
    assert bound > 5, "the limits must bind in some of the problems"


def test_limits_that_do_not_bind_change_nothing() -> None:
    rng = np.random.default_rng(5)
    p, n = rng.dirichlet(np.ones(50)), rng.integers(0, 30, 50).astype(float)
    m = rng.integers(0, 40, (50, 6))
    expected = fill_gaps(p, n, m.sum(axis=1), 900)
    assert fill_gaps_capped(p, n, m, np.full(6, 900), 900).tolist() == expected.tolist()


def test_a_split_keeps_every_limit_and_moves_as_few_rows_as_possible() -> None:
    rng = np.random.default_rng(6)
    for _ in range(20):
        p, n = rng.dirichlet(np.full(12, 0.3)), rng.integers(0, 20, 12).astype(float)
        m = rng.integers(0, 30, (12, 4))
        most = np.full(4, 60)
        a = fill_gaps_capped(p, n, m, most, 200)
        wanted = np.zeros_like(m)
        for cluster, rows in enumerate(a):  # the first languages that have any
            for language in range(4):
                wanted[cluster, language] = min(rows, m[cluster, language])
                rows -= wanted[cluster, language]
        rows_KL = split(a, wanted, m, most)
        assert (rows_KL.sum(axis=1) == a).all()
        assert (rows_KL <= m).all() and (rows_KL >= 0).all()
        assert (rows_KL.sum(axis=0) <= most).all()
        over = np.maximum(wanted.sum(axis=0) - most, 0).sum()
        moved = np.maximum(rows_KL - wanted, 0).sum()
        assert moved >= over
        if moved > over:  # only where the language's clusters could not take the others' rows
            assert (m[wanted[:, 0] > 0, 1:].sum() > 0) or (rows_KL.sum(axis=0) == most).any()
