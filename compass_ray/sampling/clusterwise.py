"""Rows cluster by cluster: how many of each, then which, until what is promised is there. Pure.

The allotment says how many rows each cluster gives, and the draw which. A cluster may turn out
to hold fewer than it was counted for, once near duplicates and rows too far from usage are
refused; it is then counted anew and the allotment is done again.

Shapes: K clusters, L languages, C rows of one cluster, D dimensions.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from compass_ray.config import Sampling
from compass_ray.sampling.allocation import fill_gaps
from compass_ray.sampling.caps import fill_gaps_capped, split
from compass_ray.sampling.picking import first_distinct, gumbel_order
from compass_ray.sampling.pool import Pool, Target

IntArray = NDArray[np.int64]

# What fits a core's cache: half of the time of all rows at once, and no memory to speak of.
_BLOCK_ROWS = 512


@dataclass(frozen=True, eq=False)
class Drawn:
    """Rows of one or more clusters, best first within each.

    Attributes:
        rows_B: indices into the pool.
        scores_B: cosine to what the rows of the cluster are wanted for.
        duplicates: near duplicates passed over.
        far: rows of these clusters that are too far from usage.
    """

    rows_B: IntArray = field(default_factory=lambda: np.empty(0, np.int64))
    scores_B: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    duplicates: int = 0
    far: int = 0

    def first(self, count: int) -> Drawn:
        return replace(self, rows_B=self.rows_B[:count], scores_B=self.scores_B[:count])


def fill_clusters(
    pool: Pool,
    target: Target,
    settings: Sampling,
    seed: int,
    p_K: NDArray[np.float64],
    n_K: NDArray[np.float64],
) -> Drawn:
    """Rows that bring ``n_K`` as near to ``p_K`` as the pool, the budget and the limits allow."""
    drawer = _Drawer(pool, target, settings, seed)
    if settings.max_share < 1:
        return _within_shares(drawer, p_K, n_K)
    m_K = pool.available(target.language).sum(axis=1)
    while True:
        wanted_K = fill_gaps(p_K, n_K, m_K, settings.budget)
        drawn = drawer.draw_all(wanted_K)
        short = [c for c, draw in drawn.items() if len(draw.rows_B) < wanted_K[c]]
        if not short:
            return drawer.joined(draw.first(int(wanted_K[c])) for c, draw in drawn.items())
        for cluster in short:
            m_K[cluster] = len(drawn[cluster].rows_B)


def _within_shares(drawer: _Drawer, p_K: NDArray[np.float64], n_K: NDArray[np.float64]) -> Drawn:
    """The same with at most ``max_share`` of the budget from any one language.

    Each cluster first draws as if there were no limit; then as few rows as possible give way to
    rows of other languages, in the order of the draw.
    """
    pool, settings = drawer.pool, drawer.settings
    m_KL = pool.available(drawer.target.language)
    most_L = np.full(len(pool.languages), _most_rows(settings.max_share, settings.budget))
    while True:
        wanted_K = fill_gaps_capped(p_K, n_K, m_KL, most_L, settings.budget)
        free = drawer.draw_all(wanted_K)
        short = {c: draw for c, draw in free.items() if len(draw.rows_B) < wanted_K[c]}
        if not short:
            free_KL = np.zeros_like(m_KL)
            for cluster, draw in free.items():
                free_KL[cluster] = drawer.by_language(draw.first(int(wanted_K[cluster])))
            quota_KL = split(wanted_K, free_KL, m_KL, most_L)
            bound = {c: drawer.draw(c, int(wanted_K[c]), quota_KL[c]) for c in free}
            short = {c: draw for c, draw in bound.items() if len(draw.rows_B) < wanted_K[c]}
            if not short:
                return drawer.joined(bound.values())
            for cluster, draw in short.items():
                gave_L = drawer.by_language(draw)
                lacking_L = gave_L < quota_KL[cluster]
                m_KL[cluster, lacking_L] = gave_L[lacking_L]
        else:
            for cluster, draw in short.items():
                m_KL[cluster] = drawer.by_language(draw)


def _most_rows(max_share: float, budget: int) -> int:
    """Whole rows that one language may give: at least one of any budget."""
    # 0.29 * 100 is less than 29 in floats.
    return max(1, math.floor(max_share * budget + 1e-9)) if budget else 0


class _Drawer:
    """Draws from one cluster after the other; the same question has the same answer."""

    def __init__(self, pool: Pool, target: Target, settings: Sampling, seed: int) -> None:
        self.pool = pool
        self.target = target
        self.settings = settings
        self._seed = seed
        self._largest: dict[int, tuple[int, Drawn]] = {}
        self._latest: dict[int, Drawn] = {}

    def draw_all(self, wanted_K: IntArray) -> dict[int, Drawn]:
        """At least the rows wanted of each cluster, as far as it has them."""
        drawn = {}
        for cluster in map(int, np.flatnonzero(wanted_K)):
            wanted = int(wanted_K[cluster])
            asked, before = self._largest.get(cluster, (0, Drawn()))
            if asked < wanted:
                before = self.draw(cluster, wanted)
                self._largest[cluster] = (wanted, before)
            drawn[cluster] = before
        return drawn

    def draw(self, cluster: int, count: int, room_L: IntArray | None = None) -> Drawn:
        """The first ``count`` rows, with at most ``room_L`` of each language."""
        settings, pool = self.settings, self.pool
        rows_C, far = self._near_enough(cluster)
        rng = rng_of(self.target, self._seed, cluster)
        if settings.within == "random":
            order = rng.permutation(len(rows_C))
            scores_C = self._scores(rows_C, cluster, "usage")
        else:
            scores_C = self._scores(rows_C, cluster, settings.within)
            order = gumbel_order(scores_C, settings.temperature, rng)
        picked, duplicates = first_distinct(
            pool.vectors_ND,
            rows_C[order],
            count,
            settings.max_similarity,
            pool.languages_N[rows_C[order]],
            room_L,
        )
        drawn = Drawn(picked, scores_C[np.searchsorted(rows_C, picked)], duplicates, far)
        self._latest[cluster] = drawn
        return drawn

    def joined(self, parts: Iterable[Drawn]) -> Drawn:
        """Rows of several clusters; what was refused counts in every cluster that was tried."""
        parts = [Drawn(), *parts]
        return Drawn(
            np.concatenate([part.rows_B for part in parts]),
            np.concatenate([part.scores_B for part in parts]),
            sum(drawn.duplicates for drawn in self._latest.values()),
            sum(drawn.far for drawn in self._latest.values()),
        )

    def by_language(self, drawn: Drawn) -> IntArray:
        codes = self.pool.languages_N[drawn.rows_B]
        return np.bincount(codes, minlength=len(self.pool.languages))

    def _near_enough(self, cluster: int) -> tuple[IntArray, int]:
        rows_C = self.pool.candidates(cluster, self.target.language)
        least = self.settings.min_similarity
        if least is None:
            return rows_C, 0
        wanted_KD = self.target.prototypes_KD
        asked = np.flatnonzero(wanted_KD.any(axis=1))
        if cluster in asked:
            wanted_KD = wanted_KD[[cluster]]
        elif len(asked):
            # To the zeros of a cluster nobody asks about, every row has the cosine 0.
            wanted_KD = wanted_KD[asked]
        near = cosines(self.pool, rows_C, wanted_KD) >= least
        return rows_C[near], int((~near).sum())

    def _scores(self, rows_C: IntArray, cluster: int, within: str) -> NDArray[np.float32]:
        wanted_D = wanted_vector(self.pool, self.target, cluster, within)
        return cosines(self.pool, rows_C, wanted_D[None])


def wanted_vector(pool: Pool, target: Target, cluster: int, within: str) -> NDArray[np.float32]:
    """What the rows of a cluster are wanted for: its usage, or its middle where there is none."""
    prototype_D: NDArray[np.float32] = target.prototypes_KD[cluster]
    centroid_D: NDArray[np.float32] = pool.centroids_KD[cluster]
    return prototype_D if within == "usage" and prototype_D.any() else centroid_D


def cosines(pool: Pool, rows_C: IntArray, wanted_MD: NDArray[np.float32]) -> NDArray[np.float32]:
    """Largest cosine of each row to any of the wanted vectors, [C]."""
    cosines_C = np.empty(len(rows_C), np.float32)
    for start in range(0, len(rows_C), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        block_BD = pool.vectors_ND[rows_C[block]].astype(np.float32)
        cosines_C[block] = (block_BD @ wanted_MD.T).max(axis=1)
    return cosines_C


def rng_of(target: Target, seed: int, *more: int) -> np.random.Generator:
    """A generator of the language's own, so that subsets do not depend on each other."""
    return np.random.default_rng([seed, zlib.crc32(target.language.encode()), *more])
