"""The gap sampler as a Ray actor: it holds the pool once and answers for every language.

Named after the clustering it serves, the weights of usage and the items nothing may repeat, so
that all callers of one share one actor. It keeps nothing that the cache does not hold: killed, it
restarts, loads again and answers.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from compass_ray.artifacts import fingerprint
from compass_ray.clustering.stage import Clustered
from compass_ray.config import Sampling, Training
from compass_ray.resources import connect
from compass_ray.sampling.distribution import histogram
from compass_ray.sampling.pool import Pool, Target
from compass_ray.sampling.similarity import uriel_distances
from compass_ray.sampling.strategies import Selection, select
from compass_ray.sampling.texts import Texts

# Callers answered side by side; what they hold at once is small beside the pool.
_CALLERS = 8


@dataclass(frozen=True, eq=False)
class Located:
    """A selection, with the place of each picked row: number of the part, row within it.

    ``own_contaminated`` counts the language's own rows that repeat an evaluation item.
    """

    selection: Selection
    parts_B: NDArray[np.int32]
    offsets_B: NDArray[np.int64]
    clusters_B: NDArray[np.int32]
    own_contaminated: int


@dataclass(frozen=True, eq=False)
class History:
    """What a language's adapter was trained on already: counted as had, and not picked again.

    Attributes:
        ids: of the rows.
        counts_K: rows in each cluster, [K].
    """

    ids: frozenset[str]
    counts_K: NDArray[np.int64]


class GapSampler:
    """Answers ``subset`` for any language and settings on one clustering."""

    def __init__(self, clustered: Clustered) -> None:
        self._clustered = clustered
        self._space = clustered.read_space()
        centroids = clustered.read_clusters().centroids
        lengths = np.linalg.norm(centroids, axis=1, keepdims=True)
        self._centroids = (centroids / np.where(lengths > 0, lengths, 1)).astype(np.float32)
        pool, self._parts, self._offsets = self._load_pool()
        self._texts = Texts(clustered, pool.languages, pool.languages_N, self._parts, self._offsets)
        self._pool = replace(pool, contaminated_N=self._texts.contaminated())
        self._targets: dict[str, Target] = {}
        self._loading = threading.Lock()

    def subset(
        self,
        language: str,
        settings: Sampling,
        seed: int,
        training: Training | None = None,
        history: History | None = None,
    ) -> Located:
        """What ``settings.strategy`` adds to the language's own rows, and where it is stored.

        ``training`` says how rows become tokens, which only a budget in tokens needs. With
        ``history``, rows that are in it count as own rows and are not picked.
        """
        with self._loading:
            target, pool = self._target(language, history), self._pool
            target = self._with_texts(target, settings)
            if history:
                pool = self._without(history.ids, language)
            if settings.budget_unit == "tokens":
                if training is None:
                    raise ValueError("a budget in tokens needs the training section")
                pool = replace(pool, tokens_N=self._texts.token_counts(training))
            own_contaminated = self._texts.own_contaminated(language)
        selection = select(pool, target, settings, seed)
        rows = selection.rows_B
        return Located(
            selection,
            self._parts[rows],
            self._offsets[rows],
            pool.clusters_N[rows],
            own_contaminated,
        )

    def _load_pool(self) -> tuple[Pool, NDArray[np.int32], NDArray[np.int64]]:
        vectors, clusters, names, parts, offsets = [], [], [], [], []
        left_out = self._clustered.read_left_out()
        for number, part in enumerate(self._clustered.parts):
            if part.part.role != "auxiliary":
                continue
            table = self._assigned(number)
            kept = np.delete(np.arange(part.part.rows), left_out.get(number, []))
            languages = np.array(table["language"].to_pylist())[kept]
            vectors_ND = self._space.transform(part.read_vectors()[kept], languages)
            vectors.append(vectors_ND.astype(np.float16))
            clusters.append(table["cluster"].to_numpy()[kept])
            names.append(languages)
            parts.append(np.full(len(kept), number, np.int32))
            offsets.append(kept)
        known, codes = np.unique(np.concatenate(names), return_inverse=True)
        pool = Pool(
            vectors_ND=np.concatenate(vectors),
            clusters_N=np.concatenate(clusters),
            languages_N=codes.astype(np.int16),
            languages=tuple(map(str, known)),
            centroids_KD=self._centroids,
        )
        return pool, np.concatenate(parts), np.concatenate(offsets)

    def _target(self, language: str, history: History | None) -> Target:
        if history:
            target = self._load_target(language, history.ids)
            return replace(target, own_K=target.own_K + history.counts_K)
        if language not in self._targets:
            self._targets[language] = self._load_target(language)
        return self._targets[language]

    def _without(self, ids: frozenset[str], language: str) -> Pool:
        """The pool with rows left out: as rows of the target's own language, none is picked."""
        names = self._pool.languages
        languages = self._pool.languages_N.copy()
        storage = self._clustered.artifact.storage
        for number in map(int, np.unique(self._parts)):
            rows = np.flatnonzero(self._parts == number)
            part = storage.read_table(self._clustered.parts[number].part.path, ["id"])
            stored = part["id"].take(self._offsets[rows]).to_pylist()
            known = np.fromiter((row_id in ids for row_id in stored), bool, len(stored))
            languages[rows[known]] = names.index(language) if language in names else -1
        return replace(self._pool, languages_N=languages)

    def _load_target(self, language: str, known: frozenset[str] = frozenset()) -> Target:
        k, dimension = self._centroids.shape
        usage, own = np.zeros(k), np.zeros(k)
        sums = np.zeros((k, dimension))
        for number, part in enumerate(self._clustered.parts):
            if part.part.role == "auxiliary" or language not in part.part.languages:
                continue
            table = self._assigned(number)
            mine = np.flatnonzero(np.array(table["language"].to_pylist()) == language)
            clusters = table["cluster"].to_numpy()[mine]
            if part.part.role == "train":
                ids = table["id"].take(mine).to_pylist()
                fresh = np.fromiter((row_id not in known for row_id in ids), bool, len(ids))
                own += histogram(clusters[fresh], k)
                continue
            weights = table["weight"].to_numpy()[mine]
            usage += histogram(clusters, k, weights)
            vectors = self._space.transform(part.read_vectors()[mine], [language] * len(mine))
            np.add.at(sums, clusters, vectors * weights[:, None])
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        return Target(
            language=language,
            usage_K=usage,
            own_K=own.astype(np.int64),
            prototypes_KD=(sums / np.where(lengths > 0, lengths, 1)).astype(np.float32),
        )

    def _with_texts(self, target: Target, settings: Sampling) -> Target:
        """What only some strategies need is read when one of them asks for it."""
        texts, language = self._texts, target.language
        if settings.strategy in ("langsim", "langrank"):
            distances = uriel_distances(language, self._pool.languages)
            target = replace(target, distances=distances)
        if settings.strategy == "langrank":
            target = replace(
                target,
                profile=texts.profile_of(language),
                profiles=texts.profiles(),
                ranker=texts.ranker(settings.transfer) if settings.transfer else None,
            )
        if settings.strategy == "dsir":
            others = np.isin(
                np.arange(len(self._parts)), self._pool.others(language), assume_unique=True
            )
            target = replace(target, log_weights_N=texts.dsir_weights(language, others))
        return target

    def _assigned(self, number: int) -> pa.Table:
        part = self._clustered.parts[number].part
        storage = self._clustered.artifact.storage
        table = storage.read_table(part.path, ["id", "language", "weight"])
        return table.append_column("cluster", self._clustered.read_assignment(number)["cluster"])


def gap_sampler(clustered: Clustered) -> Any:
    """The actor of this clustering, started if it is not there yet."""
    connect()
    rest = fingerprint(
        items=[part.identity() for part in clustered.items], weights=clustered.usage_values()
    )
    return (
        ray.remote(GapSampler)
        .options(
            name=f"gap-sampler-{clustered.artifact.fingerprint}-{rest}",
            get_if_exists=True,
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=-1,
            max_concurrency=_CALLERS,
        )
        .remote(clustered)
    )
