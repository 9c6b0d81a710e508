"""Strategies that build a language's subset, all behind one function of the same shape. Pure.

``select(pool, target, settings, seed)`` is a function of its arguments alone. Shapes: N rows of
the pool, K clusters, D dimensions, B picked rows.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from compass_ray.config import Sampling, Strategy
from compass_ray.sampling.allocation import GapTable, fill_gaps, gap_table
from compass_ray.sampling.baselines import (
    Distances,
    dsir_rows,
    langrank_features,
    langrank_order,
    langrank_rows,
    langsim_rows,
    nearest_rows,
    uniform_allocation,
)
from compass_ray.sampling.distribution import smooth
from compass_ray.sampling.picking import first_distinct, gumbel_order
from compass_ray.sampling.similarity import TextProfile


@dataclass(frozen=True, eq=False)
class Pool:
    """The auxiliary rows of every language, column by column.

    Attributes:
        vectors_ND: unit vectors in the run's space, float16.
        clusters_N: int32 in [0, K).
        languages_N: index into ``languages``.
        languages: BCP-47 codes.
        centroids_KD: unit centroids, float32.
    """

    vectors_ND: NDArray[np.float16]
    clusters_N: NDArray[np.int32]
    languages_N: NDArray[np.int16]
    languages: tuple[str, ...]
    centroids_KD: NDArray[np.float32]

    @property
    def k(self) -> int:
        return len(self.centroids_KD)

    @cached_property
    def _by_cluster(self) -> list[NDArray[np.int64]]:
        order = np.argsort(self.clusters_N, kind="stable")
        bounds = np.searchsorted(self.clusters_N[order], np.arange(1, self.k))
        return np.split(order, bounds)

    def candidates(self, cluster: int, target: str) -> NDArray[np.int64]:
        """Rows of the cluster in other languages than the target, in the order of the pool."""
        rows = self._by_cluster[cluster]
        others: NDArray[np.int64] = rows[self.languages_N[rows] != self._code(target)]
        return others

    def available(self, target: str) -> NDArray[np.int64]:
        """m: rows of other languages in each cluster, [K]."""
        others = self.languages_N != self._code(target)
        return np.bincount(self.clusters_N[others], minlength=self.k).astype(np.int64)

    def others(self, target: str) -> NDArray[np.int64]:
        return np.flatnonzero(self.languages_N != self._code(target))

    def _code(self, language: str) -> int:
        return self.languages.index(language) if language in self.languages else -1


@dataclass(frozen=True, eq=False)
class Target:
    """What one language asks and has.

    Attributes:
        language: BCP-47 code.
        usage_K: e, weighted count of usage prompts in each cluster.
        own_K: n, the language's own training rows in each cluster.
        prototypes_KD: unit mean of the usage vectors of each cluster; zeros where there are none.
        distances: URIEL distances to ``Pool.languages`` (langsim, langrank only).
        profile: vocabulary of the own rows, or of usage where there are none (langrank only).
        profiles: vocabulary of each of ``Pool.languages`` (langrank only).
        log_weights_N: DSIR's log importance weight of each row of the pool (dsir only).
    """

    language: str
    usage_K: NDArray[np.float64]
    own_K: NDArray[np.int64]
    prototypes_KD: NDArray[np.float32]
    distances: Distances | None = None
    profile: TextProfile | None = None
    profiles: Sequence[TextProfile] | None = None
    log_weights_N: NDArray[np.float64] | None = None


@dataclass(frozen=True, eq=False)
class Selection:
    """Rows picked from the pool, by cluster and in the order they were drawn.

    Attributes:
        rows_B: indices into the pool.
        scores_B: cosine to what the rows of the cluster are wanted for, float32.
        gaps: target, own and added rows of each cluster.
        refused: near duplicates passed over.
        unspent: rows of the budget that no eligible row was left for.
    """

    rows_B: NDArray[np.int64]
    scores_B: NDArray[np.float32]
    gaps: GapTable
    refused: int
    unspent: int


def select(pool: Pool, target: Target, settings: Sampling, seed: int) -> Selection:
    """The rows that ``settings.strategy`` adds to the target's own rows."""
    return _STRATEGIES[settings.strategy](pool, target, settings, seed)


def _compass(pool: Pool, target: Target, settings: Sampling, seed: int) -> Selection:
    """Fill the gaps between usage and own rows exactly, then draw within each cluster.

    COMPASS (Flynn, arXiv 2604.20720), with the exact allocation of ``allocation.fill_gaps``.
    """
    p_K = smooth(target.usage_K, settings.smoothing)

    def allot(m_K: NDArray[np.int64]) -> NDArray[np.int64]:
        return fill_gaps(p_K, target.own_K, m_K, settings.budget)

    return _by_cluster(pool, target, settings, seed, allot)


def _uniform(pool: Pool, target: Target, settings: Sampling, seed: int) -> Selection:
    """The same number of rows from every cluster, drawn as ``compass`` draws them."""

    def allot(m_K: NDArray[np.int64]) -> NDArray[np.int64]:
        return uniform_allocation(m_K, settings.budget)

    return _by_cluster(pool, target, settings, seed, allot)


def _by_cluster(
    pool: Pool,
    target: Target,
    settings: Sampling,
    seed: int,
    allot: Callable[[NDArray[np.int64]], NDArray[np.int64]],
) -> Selection:
    """Draw what ``allot`` gives each cluster, [K], of the rows it can give, [K].

    A cluster whose rows run out under the refusal of near duplicates is capped at what it gave,
    and the allotment is done again without it.
    """
    m_K = pool.available(target.language)
    drawn: dict[int, _Draw] = {}
    while True:
        wanted_K = allot(m_K)
        short = False
        for cluster in map(int, np.flatnonzero(wanted_K)):
            wanted = int(wanted_K[cluster])
            if cluster not in drawn or drawn[cluster].asked < wanted:
                drawn[cluster] = _draw(pool, target, settings, seed, cluster, wanted)
            if len(drawn[cluster].rows_B) < wanted:
                m_K[cluster] = len(drawn[cluster].rows_B)
                short = True
        if not short:
            break
    taken = [(drawn[int(c)], int(wanted_K[c])) for c in np.flatnonzero(wanted_K)]
    return _selection(
        pool,
        target,
        settings,
        rows=[draw.rows_B[:wanted] for draw, wanted in taken],
        scores=[draw.scores_B[:wanted] for draw, wanted in taken],
        refused=sum(draw.refused for draw, _ in taken),
        budget=settings.budget,
    )


def _random(pool: Pool, target: Target, settings: Sampling, seed: int) -> Selection:
    """Rows of other languages, each as likely as any other."""
    rows = _rng(target, seed).permutation(pool.others(target.language))[: settings.budget]
    return _selection(pool, target, settings, rows=[rows], budget=settings.budget)


def _all(pool: Pool, target: Target, settings: Sampling, seed: int) -> Selection:
    """Every row of every other language: the paper's all-data mixing."""
    rows = pool.others(target.language)
    return _selection(pool, target, settings, rows=[rows], budget=len(rows))


def _target_only(pool: Pool, target: Target, settings: Sampling, seed: int) -> Selection:
    """Nothing but the language's own rows."""
    return _selection(pool, target, settings, rows=[np.empty(0, np.int64)], budget=0)


def _nearest(pool: Pool, target: Target, settings: Sampling, seed: int) -> Selection:
    """The rows nearest to any usage prototype (``baselines.nearest_rows``)."""
    candidates, budget = pool.others(target.language), settings.budget
    rows = nearest_rows(pool.vectors_ND, candidates, target.prototypes_KD, budget)
    return _selection(pool, target, settings, rows=[rows], budget=budget)


def _langsim(pool: Pool, target: Target, settings: Sampling, seed: int) -> Selection:
    """Rows of the most similar languages (``baselines.langsim_rows``)."""
    assert target.distances is not None
    rows = langsim_rows(
        pool.languages_N,
        pool.languages,
        pool.others(target.language),
        target.distances,
        settings.budget,
        _rng(target, seed),
    )
    return _selection(pool, target, settings, rows=[rows], budget=settings.budget)


def _langrank(pool: Pool, target: Target, settings: Sampling, seed: int) -> Selection:
    """Rows of the languages LangRank's features put first (``baselines.langrank_order``)."""
    assert target.profile is not None
    assert target.profiles is not None
    assert target.distances is not None
    features_LF = langrank_features(
        target.profile, target.profiles, pool.languages, target.distances
    )
    rows = langrank_rows(
        pool.languages_N,
        langrank_order(features_LF),
        pool.others(target.language),
        settings.budget,
        _rng(target, seed),
    )
    return _selection(pool, target, settings, rows=[rows], budget=settings.budget)


def _dsir(pool: Pool, target: Target, settings: Sampling, seed: int) -> Selection:
    """Rows whose words resemble usage's (``baselines.dsir_rows``)."""
    assert target.log_weights_N is not None
    candidates = pool.others(target.language)
    weights_C = target.log_weights_N[candidates]
    rows = dsir_rows(weights_C, candidates, settings.budget, _rng(target, seed))
    return _selection(pool, target, settings, rows=[rows], budget=settings.budget)


_STRATEGIES: dict[Strategy, Callable[[Pool, Target, Sampling, int], Selection]] = {
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


@dataclass(frozen=True, eq=False)
class _Draw:
    rows_B: NDArray[np.int64]
    scores_B: NDArray[np.float32]
    refused: int
    asked: int


def _draw(
    pool: Pool, target: Target, settings: Sampling, seed: int, cluster: int, count: int
) -> _Draw:
    rows = pool.candidates(cluster, target.language)
    rng = _rng(target, seed, cluster)
    if settings.within == "random":
        order = rng.permutation(len(rows))
        scores = _scores(pool, rows, _wanted(pool, target, cluster, "usage"))
    else:
        scores = _scores(pool, rows, _wanted(pool, target, cluster, settings.within))
        order = gumbel_order(scores, settings.temperature, rng)
    picked, refused = first_distinct(pool.vectors_ND, rows[order], count, settings.max_similarity)
    return _Draw(picked, scores[np.searchsorted(rows, picked)], refused, count)


def _wanted(pool: Pool, target: Target, cluster: int, within: str) -> NDArray[np.float32]:
    prototype_D: NDArray[np.float32] = target.prototypes_KD[cluster]
    centroid_D: NDArray[np.float32] = pool.centroids_KD[cluster]
    return prototype_D if within == "usage" and prototype_D.any() else centroid_D


def _scores(
    pool: Pool, rows: NDArray[np.int64], wanted_D: NDArray[np.float32]
) -> NDArray[np.float32]:
    return np.asarray(pool.vectors_ND[rows].astype(np.float32) @ wanted_D, dtype=np.float32)


def _selection(
    pool: Pool,
    target: Target,
    settings: Sampling,
    *,
    rows: list[NDArray[np.int64]],
    budget: int,
    scores: list[NDArray[np.float32]] | None = None,
    refused: int = 0,
) -> Selection:
    rows_B = np.concatenate(rows) if rows else np.empty(0, np.int64)
    if scores is None:
        scores_B = np.empty(len(rows_B), np.float32)
        for cluster in np.unique(pool.clusters_N[rows_B]):
            mine = pool.clusters_N[rows_B] == cluster
            wanted = _wanted(pool, target, int(cluster), "usage")
            scores_B[mine] = _scores(pool, rows_B[mine], wanted)
    else:
        scores_B = np.concatenate(scores) if scores else np.empty(0, np.float32)
    added_K = np.bincount(pool.clusters_N[rows_B], minlength=pool.k)
    p_K = smooth(target.usage_K, settings.smoothing)
    return Selection(
        rows_B=rows_B,
        scores_B=scores_B,
        gaps=gap_table(p_K, target.own_K, added_K),
        refused=refused,
        unspent=budget - len(rows_B),
    )


def _rng(target: Target, seed: int, *more: int) -> np.random.Generator:
    return np.random.default_rng([seed, _number(target.language), *more])


def _number(language: str) -> int:
    return zlib.crc32(language.encode())
