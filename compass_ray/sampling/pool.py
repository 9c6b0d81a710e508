"""What strategies choose from and for whom: the pool's columns, and one language's wants. Pure.

Shapes: N rows of the pool, K clusters, L languages, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from compass_ray.sampling.baselines import Distances, Ranker
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
        contaminated_N: rows that repeat an evaluation item, which nothing ever picks.
        tokens_N: length of each row in tokens (for a budget in tokens only).
    """

    vectors_ND: NDArray[np.float16]
    clusters_N: NDArray[np.int32]
    languages_N: NDArray[np.int16]
    languages: tuple[str, ...]
    centroids_KD: NDArray[np.float32]
    contaminated_N: NDArray[np.bool_] | None = None
    tokens_N: NDArray[np.int32] | None = None

    @property
    def k(self) -> int:
        return len(self.centroids_KD)

    @cached_property
    def _clean(self) -> NDArray[np.int64]:
        if self.contaminated_N is None:
            return np.arange(len(self.clusters_N))
        return np.flatnonzero(~self.contaminated_N)

    @cached_property
    def _by_cluster(self) -> list[NDArray[np.int64]]:
        clusters = self.clusters_N[self._clean]
        order = np.argsort(clusters, kind="stable")
        bounds = np.searchsorted(clusters[order], np.arange(1, self.k))
        return np.split(self._clean[order], bounds)

    def candidates(self, cluster: int, target: str) -> NDArray[np.int64]:
        """Rows of the cluster in other languages than the target, in the order of the pool."""
        rows = self._by_cluster[cluster]
        others: NDArray[np.int64] = rows[self.languages_N[rows] != self._code(target)]
        return others

    def others(self, target: str) -> NDArray[np.int64]:
        """All rows that may be picked for the target."""
        others: NDArray[np.int64] = self._clean[self.languages_N[self._clean] != self._code(target)]
        return others

    def available(self, target: str) -> NDArray[np.int64]:
        """m: rows of each language in each cluster that may be picked for the target, [K, L]."""
        rows = self.others(target)
        cells = self.clusters_N[rows].astype(np.int64) * len(self.languages)
        counts = np.bincount(cells + self.languages_N[rows], minlength=self.k * len(self.languages))
        return counts.reshape(self.k, len(self.languages))

    def contaminated(self, target: str) -> int:
        """Rows of other languages that repeat an evaluation item."""
        if self.contaminated_N is None:
            return 0
        return int(self.contaminated_N[self.languages_N != self._code(target)].sum())

    def _code(self, language: str) -> int:
        return self.languages.index(language) if language in self.languages else -1


@dataclass(frozen=True, eq=False)
class Target:
    """What one language asks and has.

    Attributes:
        language: BCP-47 code.
        usage_K: e, weighted count of usage prompts in each cluster. Their weights are scaled to sum
            to the number of prompts, so that smoothing does not depend on their unit.
        own_K: n, the language's own training rows in each cluster.
        prototypes_KD: unit mean of the usage vectors of each cluster; zeros where there are none.
        distances: URIEL distances to ``Pool.languages`` (langsim, langrank only).
        profile: vocabulary of the own rows, or of usage where there are none (langrank only).
        profiles: vocabulary of each of ``Pool.languages`` (langrank only).
        ranker: learned from measured transfer, where there is any (langrank only).
        log_weights_N: DSIR's log importance weight of each row of the pool (dsir only).
    """

    language: str
    usage_K: NDArray[np.float64]
    own_K: NDArray[np.int64]
    prototypes_KD: NDArray[np.float32]
    distances: Distances | None = None
    profile: TextProfile | None = None
    profiles: Sequence[TextProfile] | None = None
    ranker: Ranker | None = None
    log_weights_N: NDArray[np.float64] | None = None
