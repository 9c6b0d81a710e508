"""The gap sampler as a Ray actor: it holds the pool once and answers for every language.

Named after the clustering it serves, the weights of usage and the items nothing may repeat, so
that all callers of one share one actor. It keeps nothing that the cache does not hold: killed, it
restarts, loads again and answers. It reserves the memory that it fills.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from compass_ray.artifacts import fingerprint
from compass_ray.claims import RETRY_S
from compass_ray.clustering.stage import Clustered
from compass_ray.config import Sampling, Training
from compass_ray.embedding.space import unit
from compass_ray.errors import UserError
from compass_ray.resources import Cluster, cluster
from compass_ray.sampling.distribution import counted, histogram, prototypes
from compass_ray.sampling.pool import Pool, Target
from compass_ray.sampling.similarity import uriel_distances
from compass_ray.sampling.strategies import Selection, select
from compass_ray.sampling.texts import Texts

log = logging.getLogger(__name__)

RESTARTS = 3
# Callers answered side by side; what they hold at once is small beside the pool.
_CALLERS = 8
# Beside each vector: cluster, language and place, and the orders that questions are answered by.
_ROW_BYTES = 64
# While items are indexed; measured with questions of 60 words.
_ITEM_BYTES = 4_000
# Of the memory that Ray gives away; trials of a search and marks of training reserve some as well.
_SHARE = 0.9
_PATIENCE_S = 10.0
_TRIES = 10


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
        centroids_KD = clustered.read_clusters().centroids.astype(np.float64)
        self._centroids = unit(centroids_KD, 0.0).astype(np.float32)
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
        left_out = self._clustered.read_left_out()
        kept_in = {
            number: np.delete(np.arange(part.part.rows), left_out.get(number, []))
            for number, part in enumerate(self._clustered.parts)
            if part.part.role == "auxiliary"
        }
        # Filled part by part: lists of parts, put together at the end, would take twice the memory.
        offsets_N = np.concatenate(list(kept_in.values()))
        parts_N = np.empty(len(offsets_N), np.int32)
        vectors_ND = np.empty((len(offsets_N), self._centroids.shape[1]), np.float16)
        clusters_N = np.empty(len(offsets_N), np.int32)
        languages_N = np.empty(len(offsets_N), np.int16)
        codes: dict[str, int] = {}
        end = 0
        for number, kept in kept_in.items():
            start, end = end, end + len(kept)
            table = self._assigned(number)
            names = table["language"].take(kept).to_pylist()
            vectors = self._clustered.parts[number].read_vectors()[kept]
            vectors_ND[start:end] = self._space.transform(vectors, names)
            clusters_N[start:end] = table["cluster"].to_numpy()[kept]
            languages_N[start:end] = [codes.setdefault(name, len(codes)) for name in names]
            parts_N[start:end] = number
        languages = sorted(codes)
        rank_L = np.array([languages.index(name) for name in codes], np.int16)
        pool = Pool(
            vectors_ND=vectors_ND,
            clusters_N=clusters_N,
            languages_N=rank_L[languages_N],
            languages=tuple(languages),
            centroids_KD=self._centroids,
        )
        return pool, parts_N, offsets_N

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
        own_K = np.zeros(k)
        clusters, weights = [np.empty(0, np.int32)], [np.empty(0)]
        vectors = [np.empty((0, dimension), np.float32)]
        for number, part in enumerate(self._clustered.parts):
            if part.part.role == "auxiliary" or language not in part.part.languages:
                continue
            table = self._assigned(number)
            mine = np.flatnonzero(np.array(table["language"].to_pylist()) == language)
            assigned = table["cluster"].to_numpy()[mine]
            if part.part.role == "train":
                ids = table["id"].take(mine).to_pylist()
                fresh = np.fromiter((row_id not in known for row_id in ids), bool, len(ids))
                own_K += histogram(assigned[fresh], k)
                continue
            clusters.append(assigned)
            weights.append(table["weight"].to_numpy()[mine])
            raw = part.read_vectors()[mine]
            vectors.append(self._space.transform(raw, [language] * len(mine)))
        clusters_R, weights_R = np.concatenate(clusters), np.concatenate(weights)
        return Target(
            language=language,
            usage_K=counted(clusters_R, k, weights_R),
            own_K=own_K.astype(np.int64),
            prototypes_KD=prototypes(np.concatenate(vectors), clusters_R, weights_R, k),
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


class _Actor:
    """The sampler, loaded at the first question: until then an answer says that it has a place."""

    def __init__(self, clustered: Clustered) -> None:
        self._clustered = clustered
        self._sampler: GapSampler | None = None
        self._loading = threading.Lock()

    def here(self) -> None: ...

    def subset(self, *question: Any) -> Located:
        """As ``GapSampler.subset`` has it."""
        with self._loading:
            self._sampler = self._sampler or GapSampler(self._clustered)
        return self._sampler.subset(*question)


def sampler_bytes(clustered: Clustered) -> int:
    """Memory of a sampler: the pool's vectors in half precision, what goes with each row, items."""
    pool = [part for part in clustered.parts if part.part.role == "auxiliary"]
    vector = 2 * int(pool[0].vectors.summary["dimension"])
    items = sum(part.rows for part in clustered.items)
    return sum(part.part.rows for part in pool) * (vector + _ROW_BYTES) + items * _ITEM_BYTES


def sampler_places(need: int, on: Cluster) -> int:
    """How many samplers of ``need`` bytes the nodes hold at once.

    Raises ``UserError`` for none, which would otherwise wait for ever.
    """
    places = sum(int(_SHARE * node.memory / need) for node in on.nodes)
    if not places:
        most = max(_SHARE * node.memory for node in on.nodes)
        raise UserError(
            f"sampling: the pool needs {need / 1e9:.1f} GB of one node's memory, and the largest "
            f"has {most / 1e9:.1f} GB for it; draw the pool down (rows of a source) or take an "
            "embedding.model of fewer dimensions"
        )
    return places


def gap_sampler(clustered: Clustered) -> Any:
    """The actor of this clustering, started if it is not there yet.

    Raises ``UserError`` where no node has the memory.
    """
    need = sampler_bytes(clustered)
    sampler_places(need, cluster())
    rest = fingerprint(
        items=[part.identity() for part in clustered.items], weights=clustered.usage_values()
    )
    shape = ray.remote(_Actor).options(
        name=f"gap-sampler-{clustered.artifact.fingerprint}-{rest}",
        get_if_exists=True,
        num_cpus=0,
        memory=need,
        max_restarts=RESTARTS,
        # Calls fail at once until Ray knows that a node is gone; it is restarts that are bounded.
        max_task_retries=-1,
        max_concurrency=_CALLERS,
    )
    for _ in range(_TRIES):
        sampler = shape.remote(clustered)
        try:
            ray.get(sampler.here.remote(), timeout=_PATIENCE_S)
        except ray.exceptions.GetTimeoutError:
            log.info("sample: waiting for a node with %.1f GB of memory to be free", need / 1e9)
        except ray.exceptions.RayActorError:
            # One whose last user has just gone has its name a moment longer.
            time.sleep(RETRY_S)
            continue
        break
    return sampler
