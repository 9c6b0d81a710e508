"""Strategies that build a language's subset, all behind one function of the same shape. Pure.

``select(pool, target, settings, seed)`` is a function of its arguments alone. Shapes: N rows of
the pool, K clusters, D dimensions, B picked rows.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compass_ray.config import Sampling, Strategy
from compass_ray.sampling.allocation import GapTable, gap_table
from compass_ray.sampling.baselines import (
    dsir_rows,
    langrank_features,
    langrank_order,
    langrank_rows,
    langsim_rows,
    nearest_rows,
)
from compass_ray.sampling.clusterwise import Drawn, cosines, fill_clusters, rng_of, wanted_vector
from compass_ray.sampling.distribution import smooth
from compass_ray.sampling.pool import Pool, Target


@dataclass(frozen=True, eq=False)
class Selection:
    """Rows picked from the pool, by cluster and in the order they were drawn.

    Attributes:
        rows_B: indices into the pool.
        scores_B: cosine to what the rows of the cluster are wanted for, float32.
        gaps: target, own and added rows of each cluster.
        available: rows of other languages, without contaminated ones.
        contaminated: rows of other languages refused because they repeat an evaluation item.
        duplicates: near duplicates passed over.
        far: rows refused as too far from usage, of the clusters that were drawn from.
        tokens: length of the picked rows; None where the pool's lengths are not known.
        unspent: what is left of the budget, in its unit.
    """

    rows_B: NDArray[np.int64]
    scores_B: NDArray[np.float32]
    gaps: GapTable
    available: int
    contaminated: int
    duplicates: int
    far: int
    tokens: int | None
    unspent: int


def select(pool: Pool, target: Target, settings: Sampling, seed: int) -> Selection:
    """The rows that ``settings.strategy`` adds to the target's own rows."""
    choose = _STRATEGIES[settings.strategy]
    if settings.budget_unit == "tokens" and settings.strategy not in _WITHOUT_BUDGET:
        rows = _affordable_rows(pool, target, settings, seed)
        settings_in_rows = settings.model_copy(update={"budget": rows})
        return _selection(pool, target, settings, choose(pool, target, settings_in_rows, seed))
    return _selection(pool, target, settings, choose(pool, target, settings, seed))


def _affordable_rows(pool: Pool, target: Target, settings: Sampling, seed: int) -> int:
    """The most rows of the strategy that the budget in tokens pays for.

    A larger budget in rows keeps the rows of a smaller one, whatever the strategy, so their
    length grows with it and bisection finds the last that fits; what is taken stays exact in
    rows. Under ``max_share`` the limit moves with the budget and it may miss the very last.
    """
    assert pool.tokens_N is not None
    tokens_N = pool.tokens_N
    choose = _STRATEGIES[settings.strategy]

    def tokens(rows: int) -> int:
        in_rows = settings.model_copy(update={"budget": rows})
        return int(tokens_N[choose(pool, target, in_rows, seed).rows_B].sum())

    lengths = np.sort(tokens_N[pool.others(target.language)])
    most = int(np.searchsorted(np.cumsum(lengths), settings.budget, side="right"))
    return max(0, bisect_right(range(most + 1), settings.budget, key=tokens) - 1)


def _compass(pool: Pool, target: Target, settings: Sampling, seed: int) -> Drawn:
    """Fill the gaps between usage and own rows exactly, then draw within each cluster.

    COMPASS (Flynn, arXiv 2604.20720), with the exact allocation of ``allocation.fill_gaps``.
    """
    p_K = smooth(target.usage_K, settings.smoothing)
    return fill_clusters(pool, target, settings, seed, p_K, target.own_K.astype(np.float64))


def _uniform(pool: Pool, target: Target, settings: Sampling, seed: int) -> Drawn:
    """The same number of rows from every cluster, drawn as ``compass`` draws them.

    That is the filling of a flat target without own rows; what exhausted clusters cannot give
    goes to the others equally, odd rows to the fullest.
    """
    flat_K = np.full(pool.k, 1 / pool.k)
    return fill_clusters(pool, target, settings, seed, flat_K, np.zeros(pool.k))


def _random(pool: Pool, target: Target, settings: Sampling, seed: int) -> Drawn:
    """Rows of other languages, each as likely as any other."""
    rows = rng_of(target, seed).permutation(pool.others(target.language))[: settings.budget]
    return _scored(pool, target, rows)


def _all(pool: Pool, target: Target, settings: Sampling, seed: int) -> Drawn:
    """Every row of every other language: the paper's all-data mixing."""
    return _scored(pool, target, pool.others(target.language))


def _target_only(pool: Pool, target: Target, settings: Sampling, seed: int) -> Drawn:
    """Nothing but the language's own rows."""
    return Drawn()


def _nearest(pool: Pool, target: Target, settings: Sampling, seed: int) -> Drawn:
    """The rows nearest to any usage prototype (``baselines.nearest_rows``)."""
    candidates = pool.others(target.language)
    rows = nearest_rows(pool.vectors_ND, candidates, target.prototypes_KD, settings.budget)
    return _scored(pool, target, rows)


def _langsim(pool: Pool, target: Target, settings: Sampling, seed: int) -> Drawn:
    """Rows of the most similar languages (``baselines.langsim_rows``)."""
    assert target.distances is not None
    rows = langsim_rows(
        pool.languages_N,
        pool.languages,
        pool.others(target.language),
        target.distances,
        settings.budget,
        rng_of(target, seed),
    )
    return _scored(pool, target, rows)


def _langrank(pool: Pool, target: Target, settings: Sampling, seed: int) -> Drawn:
    """Rows of the languages LangRank's features put first (``baselines.langrank_order``)."""
    assert target.profile is not None
    assert target.profiles is not None
    assert target.distances is not None
    features_LF = langrank_features(
        target.profile, target.profiles, pool.languages, target.distances
    )
    rows = langrank_rows(
        pool.languages_N,
        langrank_order(features_LF, target.ranker),
        pool.others(target.language),
        settings.budget,
        rng_of(target, seed),
    )
    return _scored(pool, target, rows)


def _dsir(pool: Pool, target: Target, settings: Sampling, seed: int) -> Drawn:
    """Rows whose words resemble usage's (``baselines.dsir_rows``)."""
    assert target.log_weights_N is not None
    candidates = pool.others(target.language)
    weights_C = target.log_weights_N[candidates]
    rows = dsir_rows(weights_C, candidates, settings.budget, rng_of(target, seed))
    return _scored(pool, target, rows)


_WITHOUT_BUDGET = ("all", "target_only")
_STRATEGIES: dict[Strategy, Callable[[Pool, Target, Sampling, int], Drawn]] = {
    "compass": _compass,
    "random": _random,
    "all": _all,
    "target_only": _target_only,
    "uniform": _uniform,
    "nearest": _nearest,
    "langsim": _langsim,
    "langrank": _langrank,
    "dsir": _dsir,
}


def _scored(pool: Pool, target: Target, rows_B: NDArray[np.int64]) -> Drawn:
    """Rows that were chosen without looking at it, with their cosine to usage."""
    scores_B = np.empty(len(rows_B), np.float32)
    for cluster in np.unique(pool.clusters_N[rows_B]):
        mine = pool.clusters_N[rows_B] == cluster
        wanted_D = wanted_vector(pool, target, int(cluster), "usage")
        scores_B[mine] = cosines(pool, rows_B[mine], wanted_D[None])
    return Drawn(rows_B, scores_B)


def _selection(pool: Pool, target: Target, settings: Sampling, drawn: Drawn) -> Selection:
    rows_B = drawn.rows_B
    added_K = np.bincount(pool.clusters_N[rows_B], minlength=pool.k)
    tokens = None if pool.tokens_N is None else int(pool.tokens_N[rows_B].sum())
    spent = len(rows_B) if settings.budget_unit == "rows" or tokens is None else tokens
    budget = spent if settings.strategy in _WITHOUT_BUDGET else settings.budget
    return Selection(
        rows_B=rows_B,
        scores_B=drawn.scores_B,
        gaps=gap_table(smooth(target.usage_K, settings.smoothing), target.own_K, added_K),
        available=len(pool.others(target.language)),
        contaminated=pool.contaminated(target.language),
        duplicates=drawn.duplicates,
        far=drawn.far,
        tokens=tokens,
        unspent=budget - spent,
    )
