"""The gap sampler as a Ray actor: it holds the pool once and answers for every language.

Named after the clustering it serves, so that all callers of one clustering share one actor. It
keeps nothing that the cache does not hold: killed, it restarts, loads again and answers.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray

from compass_ray.clustering.stage import Clustered
from compass_ray.config import Role, Sampling, Strategy
from compass_ray.resources import connect
from compass_ray.sampling.baselines import HashedNgrams, dsir_log_weights
from compass_ray.sampling.distribution import histogram
from compass_ray.sampling.similarity import TextProfile, uriel_distances
from compass_ray.sampling.strategies import Pool, Selection, Target, select

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Located:
    """A selection, with the place of each picked row: number of the part, row within it."""

    selection: Selection
    parts_B: NDArray[np.int32]
    offsets_B: NDArray[np.int64]
    clusters_B: NDArray[np.int32]


class GapSampler:
    """Answers ``subset`` for any language and settings on one clustering."""

    def __init__(self, clustered: Clustered) -> None:
        self._clustered = clustered
        self._space = clustered.read_space()
        centroids = clustered.read_clusters().centroids
        lengths = np.linalg.norm(centroids, axis=1, keepdims=True)
        self._centroids = (centroids / np.where(lengths > 0, lengths, 1)).astype(np.float32)
        self._pool, self._parts, self._offsets = self._load_pool()
        self._targets: dict[str, Target] = {}

    def subset(self, language: str, settings: Sampling, seed: int) -> Located:
        """What ``settings.strategy`` adds to the language's own rows, and where it is stored."""
        if language not in self._targets:
            self._targets[language] = self._load_target(language)
        target = self._with_texts(self._targets[language], settings.strategy)
        selection = select(self._pool, target, settings, seed)
        rows = selection.rows_B
        return Located(
            selection, self._parts[rows], self._offsets[rows], self._pool.clusters_N[rows]
        )

    def _load_pool(self) -> tuple[Pool, NDArray[np.int32], NDArray[np.int64]]:
        vectors, clusters, names, parts, offsets = [], [], [], [], []
        seen: set[str] = set()
        for number, part in enumerate(self._clustered.parts):
            if part.part.role != "auxiliary":
                continue
            table = self._rows(number)
            # The same row in two sources is one row; the first source that has it keeps it.
            fresh = _unseen(table["id"].to_pylist(), seen)
            languages = np.array(table["language"].to_pylist())[fresh]
            vectors.append(
                self._space.transform(part.read_vectors()[fresh], languages).astype(np.float16)
            )
            clusters.append(table["cluster"].to_numpy()[fresh])
            names.append(languages)
            parts.append(np.full(len(fresh), number, np.int32))
            offsets.append(np.array(fresh, np.int64))
        known, codes = np.unique(np.concatenate(names), return_inverse=True)
        pool = Pool(
            vectors_ND=np.concatenate(vectors),
            clusters_N=np.concatenate(clusters),
            languages_N=codes.astype(np.int16),
            languages=tuple(map(str, known)),
            centroids_KD=self._centroids,
        )
        return pool, np.concatenate(parts), np.concatenate(offsets)

    def _load_target(self, language: str) -> Target:
        k, dimension = self._centroids.shape
        usage, own = np.zeros(k), np.zeros(k)
        sums = np.zeros((k, dimension))
        own_ids: set[str] = set()
        for number, part in enumerate(self._clustered.parts):
            if part.part.role == "auxiliary" or language not in part.part.languages:
                continue
            table = self._rows(number)
            mine = np.flatnonzero(np.array(table["language"].to_pylist()) == language)
            clusters = table["cluster"].to_numpy()[mine]
            if part.part.role == "train":
                fresh = _unseen(table["id"].take(mine).to_pylist(), own_ids)
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

    def _with_texts(self, target: Target, strategy: Strategy) -> Target:
        """What only some strategies need is read when one of them asks for it."""
        if strategy in ("langsim", "langrank"):
            distances = uriel_distances(target.language, self._pool.languages)
            target = replace(target, distances=distances)
        if strategy == "langrank":
            own = self._prompts_of(target.language, "train")
            profile = TextProfile.of(own or self._prompts_of(target.language, "usage"))
            target = replace(target, profile=profile, profiles=self._profiles())
        if strategy == "dsir":
            target = replace(target, log_weights_N=self._dsir_weights(target.language))
        return target

    def _profiles(self) -> list[TextProfile]:
        profiles = [TextProfile.of([]) for _ in self._pool.languages]
        for rows, prompts in self._pool_prompts():
            codes = self._pool.languages_N[rows]
            for code in np.unique(codes):
                mine = [prompts[i] for i in np.flatnonzero(codes == code)]
                profiles[code] += TextProfile.of(mine)
        return profiles

    def _dsir_weights(self, language: str) -> NDArray[np.float64]:
        """Two passes over the prompts: the bag of the other languages, then each row's weight."""
        ngrams = HashedNgrams()
        is_other = np.zeros(len(self._pool.clusters_N), bool)
        is_other[self._pool.others(language)] = True
        raw = np.zeros(ngrams.buckets, np.int64)
        for rows, prompts in self._pool_prompts():
            raw += ngrams.bag(
                [p for p, other in zip(prompts, is_other[rows], strict=True) if other]
            )
        wanted = ngrams.bag(self._prompts_of(language, "usage"))
        weights = np.empty(len(self._pool.clusters_N))
        for rows, prompts in self._pool_prompts():
            weights[rows] = dsir_log_weights(ngrams.counts(prompts), wanted, raw)
        return weights

    def _pool_prompts(self) -> Iterator[tuple[slice, list[str]]]:
        """Rows of the pool, part by part, and their prompts."""
        for number in np.unique(self._parts):
            rows = np.flatnonzero(self._parts == number)
            prompts = self._read(int(number), ["prompt"])["prompt"].take(self._offsets[rows])
            yield slice(int(rows[0]), int(rows[-1]) + 1), prompts.to_pylist()

    def _prompts_of(self, language: str, role: Role) -> list[str]:
        prompts: list[str] = []
        for number, part in enumerate(self._clustered.parts):
            if part.part.role == role and language in part.part.languages:
                table = self._read(number, ["language", "prompt"])
                mine = pc.equal(table["language"], language)
                prompts += table.filter(mine)["prompt"].to_pylist()
        return prompts

    def _rows(self, number: int) -> pa.Table:
        table = self._read(number, ["id", "language", "weight"])
        return table.append_column("cluster", self._clustered.read_assignment(number)["cluster"])

    def _read(self, number: int, columns: list[str]) -> pa.Table:
        path = self._clustered.parts[number].part.path
        return self._clustered.artifact.storage.read_table(path, columns)


def _unseen(ids: Sequence[str], seen: set[str]) -> list[int]:
    """Positions of ids not in ``seen``; they are added to it."""
    fresh = []
    for position, row_id in enumerate(ids):
        if row_id not in seen:
            seen.add(row_id)
            fresh.append(position)
    return fresh


def gap_sampler(clustered: Clustered) -> Any:
    """The actor of this clustering, started if it is not there yet."""
    connect()
    return (
        ray.remote(GapSampler)
        .options(
            name=f"gap-sampler-{clustered.artifact.fingerprint}",
            get_if_exists=True,
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=-1,
        )
        .remote(clustered)
    )
