"""Fit the space and the clusters once, then assign every row in a Ray Data pass.

Three passes over the parts: sums of each language (the space), a balanced sample (the fit), and
the assignment. Only sums and file names come back to the driver.

Clusters are fitted on the auxiliary pool alone: a gap can only be filled where the pool has rows.
Usage prompts of one language are many, alike and from few topics; fitted along, they draw
centroids to themselves that hold next to nothing to pick.

With ``clustering.fit_rows: all`` the fit on the sample is where k-means over every row starts. A
row then weighs what its chance was to be in the sample: the balance of languages stays the same.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import IO, Protocol

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from compass_ray import artifacts
from compass_ray.artifacts import Artifact, Draft, Storage
from compass_ray.claims import claim
from compass_ray.clustering.choice import Choice, fit_clusters
from compass_ray.clustering.diagnostics import Diagnostics, diagnose
from compass_ray.clustering.kmeans import Clusters
from compass_ray.clustering.layout import layout
from compass_ray.clustering.sample import balanced_shares, draw
from compass_ray.clustering.sharded import Rows, fit_sharded
from compass_ray.config import Config
from compass_ray.corpora.stage import Corpus, Part
from compass_ray.embedding.local import LocalSpace, Space, load_space
from compass_ray.embedding.space import (
    NeutralSpace,
    RawSpace,
    add_sums,
    language_sums,
)
from compass_ray.embedding.stage import Embedded, EmbeddedPart
from compass_ray.errors import UserError
from compass_ray.parallel import map_parts
from compass_ray.resources import cluster

log = logging.getLogger(__name__)

STAGE = "cluster"
VERSION = 2
SPACE = "space.npz"
CENTROIDS = "centroids.npz"
MAP = "clusters.parquet"
START_ROWS = 200_000
"""Rows whose clusters k-means over all rows starts from."""


class _Saves(Protocol):
    def save(self, path: IO[bytes]) -> None: ...


@dataclass(frozen=True)
class Clustered:
    """A committed clustering: the space, the centroids, and each part's assignment.

    ``items`` are the evaluation items of the corpus, which belong to no cluster: no row that
    repeats one may be picked.
    """

    artifact: Artifact
    parts: tuple[EmbeddedPart, ...]
    reused: bool
    items: tuple[Part, ...] = ()

    def read_space(self) -> Space:
        return load_space(io.BytesIO(self.artifact.read_bytes(SPACE)))

    def read_clusters(self) -> Clusters:
        return Clusters.load(io.BytesIO(self.artifact.read_bytes(CENTROIDS)))

    def read_assignment(self, number: int) -> pa.Table:
        """Columns ``cluster`` int32 and ``distance`` float32, row for row with the part."""
        return self.artifact.read_table(_assignment_name(number))


@dataclass(frozen=True)
class _Work:
    """One part of one pass; ``shares`` only for the sample."""

    number: int
    part: EmbeddedPart
    draft: Draft
    shares: Mapping[str, float] | None = None


def cluster_corpus(
    config: Config, storage: Storage, corpus: Corpus, embedded: Embedded
) -> Clustered:
    """Clusters of the pool, with every auxiliary, train and usage row assigned to one."""
    fingerprint = clustering_fingerprint(config, embedded)
    done = artifacts.find(storage, STAGE, fingerprint)
    if done:
        return _clustered(done, corpus, embedded, reused=True)
    with claim(storage, STAGE, fingerprint):
        done = artifacts.find(storage, STAGE, fingerprint)
        if done:
            return _clustered(done, corpus, embedded, reused=True)
        done = _cluster(config, storage, corpus, embedded, fingerprint)
        return _clustered(done, corpus, embedded, reused=False)


def _clustered(done: Artifact, corpus: Corpus, embedded: Embedded, reused: bool) -> Clustered:
    return Clustered(done, embedded.parts, reused, items=corpus.of("evaluation"))


def _cluster(
    config: Config, storage: Storage, corpus: Corpus, embedded: Embedded, fingerprint: str
) -> Artifact:
    draft = artifacts.begin(storage, STAGE, fingerprint)
    work = [_Work(number, part, draft) for number, part in enumerate(embedded.parts)]
    slots = max(1, int(cluster().cpus))

    sums = _merge_sums(map_parts(work, _summing, actors=slots, cpus=1))
    space, from_usage = _build_space(config, sums)

    fit_rows = config.clustering.fit_rows
    sample_rows = START_ROWS if fit_rows == "all" else fit_rows
    shares = balanced_shares(corpus.languages("auxiliary"), sample_rows)
    sampling = [
        _Work(w.number, w.part, draft, shares) for w in work if w.part.part.role == "auxiliary"
    ]
    sampled = sum(map_parts(sampling, partial(_sampling, space), actors=slots, cpus=1))
    log.info("cluster: fitting %s on %s rows", config.clustering.method, f"{sampled:,}")
    on_gpu = 1 if cluster().gpus and config.clustering.backend in ("auto", "cuml") else 0
    fitted: _Fitted = ray.get(_fit.options(num_gpus=on_gpu).remote(config, draft, space))
    choice, space = fitted.choice, fitted.space
    draft.write_bytes(SPACE, _saved(space))
    if config.clustering.fit_rows == "all":
        choice = _refined(choice, space, sampling)
    draft.write_bytes(CENTROIDS, _saved(choice.clusters))
    diagnostics: Diagnostics = ray.get(_diagnose.remote(config, draft, space, choice.clusters))
    storage.delete_dir(draft.path("sample"))

    counts = _add_counts(
        map_parts(work, partial(_assigning, space, choice.clusters), actors=slots, cpus=1)
    )
    draft.write_table(MAP, _map(choice.clusters, counts, config.run.seed))
    summary = {
        "method": config.clustering.method,
        "k": len(choice.clusters.centroids),
        "rows": sum(part.part.rows for part in embedded.parts),
        "fit_rows": choice.rows,
        "noise": choice.noise,
        "backend": choice.clusters.backend,
        "inertia": choice.clusters.inertia,
        "measure": choice.measure,
        "curve": [asdict(point) for point in choice.curve],
        "languages_from_usage": from_usage,
        "diagnostics": asdict(diagnostics),
    }
    return draft.commit(summary)


def assign_corpus(
    storage: Storage, corpus: Corpus, embedded: Embedded, space: Space, clusters: Clusters
) -> Clustered:
    """Every row put into clusters that were fitted before; nothing is fitted anew."""
    saved = {SPACE: _saved(space), CENTROIDS: _saved(clusters)}
    fingerprint = artifacts.fingerprint(
        stage=STAGE,
        version=VERSION,
        fitted=[hashlib.blake2b(data, digest_size=16).hexdigest() for data in saved.values()],
        parts=[(part.part.role, part.vectors.fingerprint) for part in embedded.parts],
    )
    done = artifacts.find(storage, STAGE, fingerprint)
    if done:
        return Clustered(done, embedded.parts, reused=True, items=corpus.of("evaluation"))
    draft = artifacts.begin(storage, STAGE, fingerprint)
    for name, data in saved.items():
        draft.write_bytes(name, data)
    work = [_Work(number, part, draft) for number, part in enumerate(embedded.parts)]
    slots = max(1, int(cluster().cpus))
    for _ in map_parts(work, partial(_assigning, space, clusters), actors=slots, cpus=1):
        pass
    rows = sum(part.part.rows for part in embedded.parts)
    done = draft.commit({"rows": rows})
    return Clustered(done, embedded.parts, reused=False, items=corpus.of("evaluation"))


def clustering_fingerprint(config: Config, embedded: Embedded) -> str:
    return artifacts.fingerprint(
        stage=STAGE,
        version=VERSION,
        clustering=config.clustering.identity(),
        space=config.embedding.space_identity(),
        seed=config.run.seed,
        targets=sorted(config.languages),
        parts=[(part.part.role, part.vectors.fingerprint) for part in embedded.parts],
    )


Sums = dict[str, tuple[NDArray[np.float64], int]]


def _summing() -> Callable[[_Work], tuple[int, str, Sums]]:
    def work(item: _Work) -> tuple[int, str, Sums]:
        sums = language_sums(item.part.read_vectors(), _column(item, "language"))
        return item.number, item.part.part.role, sums

    return work


def _merge_sums(results: Iterable[tuple[int, str, Sums]]) -> dict[str, Sums]:
    # In the order of the parts, since a floating-point sum depends on its order.
    ordered = sorted(results, key=lambda result: result[0])
    roles = dict.fromkeys(role for _, role, _ in ordered)
    return {role: add_sums(sums for _, r, sums in ordered if r == role) for role in roles}


def _build_space(config: Config, sums: dict[str, Sums]) -> tuple[Space, list[str]]:
    """The space, and the languages whose mean had to come from usage."""
    if config.embedding.space == "raw":
        return RawSpace(), []
    fitted = add_sums([sums.get("auxiliary", {}), sums.get("train", {})])
    # Usage never moves a mean where other rows exist: drift in usage must stay visible.
    usage = sums.get("usage", {})
    from_usage = sorted(set(usage) & set(config.languages) - set(fitted))
    for language in from_usage:
        log.warning("space: %s has no auxiliary or train rows; its mean is from usage", language)
        fitted[language] = usage[language]
    if config.embedding.components >= len(fitted):
        raise UserError(
            f"embedding.components: {config.embedding.components} directions asked of the means of "
            f"{len(fitted)} languages; choose at most {len(fitted) - 1}"
        )
    space = NeutralSpace.from_sums(
        fitted, shrinkage=config.embedding.shrinkage, components=config.embedding.components
    )
    return space, from_usage


def _sampling(space: Space) -> Callable[[_Work], int]:
    def work(item: _Work) -> int:
        assert item.shares is not None
        table = item.part.vectors.storage.read_table(
            item.part.part.path, columns=["id", "language", "subject"]
        )
        languages = table["language"].to_pylist()
        chosen = draw(table["id"].to_pylist(), languages, item.shares)
        raw = item.part.read_vectors()[chosen]
        names = np.array(languages)[chosen]
        buffer = io.BytesIO()
        np.savez(buffer, raw=raw, space=space.transform(raw, names))
        sample = table.select(["language", "subject"]).take(chosen)
        item.draft.write_bytes(f"sample/{item.number:05d}.npz", buffer.getvalue())
        item.draft.write_table(f"sample/{item.number:05d}.parquet", sample)
        return len(chosen)

    return work


@dataclass(frozen=True, eq=False)
class _Sample:
    """The sampled rows [S]: raw vectors, vectors in the first space, languages and subjects."""

    raw_SD: NDArray[np.float32]
    vectors_SD: NDArray[np.float32]
    languages: list[str]
    subjects: list[str | None]

    @classmethod
    def read(cls, draft: Draft) -> _Sample:
        storage, folder = draft.storage, draft.path("sample")
        raw, vectors, languages, subjects = [], [], [], []
        for file in storage.list_files(folder):
            if not file.endswith(".npz"):
                continue
            name = f"{folder}/{file.removesuffix('.npz')}"
            with np.load(io.BytesIO(storage.read_bytes(f"{name}.npz"))) as arrays:
                raw.append(arrays["raw"].astype(np.float32))
                vectors.append(arrays["space"])
            table = storage.read_table(f"{name}.parquet")
            languages += table["language"].to_pylist()
            subjects += table["subject"].to_pylist()
        return cls(np.concatenate(raw), np.concatenate(vectors), languages, subjects)

    def vectors_in(self, space: Space) -> NDArray[np.float32]:
        """The vectors as the final space has them; they were drawn before its topics were known."""
        if isinstance(space, LocalSpace):
            return space.refine(self.vectors_SD, self.languages)
        return self.vectors_SD


@dataclass(frozen=True)
class _Fitted:
    space: Space
    choice: Choice


@ray.remote(num_cpus=1)
def _fit(config: Config, draft: Draft, space: Space) -> _Fitted:
    sample = _Sample.read(draft)
    seed, topics = config.run.seed, config.embedding.topics
    if topics and isinstance(space, NeutralSpace):
        space = LocalSpace.fit(space, sample.vectors_SD, sample.languages, topics, seed)
    return _Fitted(space, fit_clusters(sample.vectors_in(space), config.clustering, seed))


@ray.remote(num_cpus=1)
def _diagnose(config: Config, draft: Draft, space: Space, clusters: Clusters) -> Diagnostics:
    sample = _Sample.read(draft)
    return diagnose(
        sample.raw_SD,
        sample.vectors_in(space),
        clusters,
        sample.languages,
        sample.subjects,
        config.run.seed,
    )


def _refined(choice: Choice, space: Space, pool: list[_Work]) -> Choice:
    """Go on with k-means over every row of the pool, in as many shards as the cluster holds."""
    on = cluster()
    actors = min(len(pool), max(1, int(on.gpus or on.cpus)))
    rows = sum(work.part.part.rows for work in pool)
    log.info("cluster: k-means goes on over %s rows in %d shards", f"{rows:,}", actors)
    shards = [partial(_load_shard, space, pool[number::actors]) for number in range(actors)]
    clusters = fit_sharded(shards, choice.clusters.centroids, gpus=1 if on.gpus else 0)
    return replace(choice, clusters=clusters, rows=rows)


def _load_shard(space: Space, pool: list[_Work]) -> Rows:
    vectors, weights = [], []
    for work in pool:
        assert work.shares is not None
        languages = _column(work, "language")
        # Half precision, as on disk: a shard is what a device must hold.
        vectors.append(space.transform(work.part.read_vectors(), languages).astype(np.float16))
        weights += [work.shares[language] for language in languages]
    return Rows(np.concatenate(vectors), np.array(weights, np.float32))


Counts = dict[str, NDArray[np.int64]]


def _assigning(space: Space, clusters: Clusters) -> Callable[[_Work], Counts]:
    def work(item: _Work) -> Counts:
        """Assign the rows; returns those of the pool by language and cluster, [K] each."""
        languages = np.array(_column(item, "language"), dtype=np.str_)
        vectors = space.transform(item.part.read_vectors(), languages)
        cluster, distance = clusters.assign(vectors)
        table = pa.table({"cluster": cluster, "distance": distance})
        item.draft.write_table(_assignment_name(item.number), table)
        if item.part.part.role != "auxiliary":
            return {}
        k = len(clusters.centroids)
        return {
            str(language): np.bincount(cluster[languages == language], minlength=k)
            for language in np.unique(languages)
        }

    return work


def _add_counts(results: Iterable[Counts]) -> Counts:
    whole: Counts = {}
    for counts in results:
        for language, rows_K in counts.items():
            whole[language] = whole.get(language, 0) + rows_K
    return whole


def _map(clusters: Clusters, counts: Counts, seed: int) -> pa.Table:
    """A row a cluster: its place, the pool's rows in it, and the language most of them are in."""
    languages = sorted(counts)
    counts_LK = np.array([counts[language] for language in languages])
    rows_K = counts_LK.sum(axis=0)
    places_K2 = layout(clusters.centroids, seed)
    return pa.table(
        {
            "cluster": np.arange(len(rows_K), dtype=np.int32),
            "x": places_K2[:, 0],
            "y": places_K2[:, 1],
            "rows": rows_K,
            "language": pa.array([languages[code] for code in counts_LK.argmax(axis=0)]),
            "share": counts_LK.max(axis=0) / np.maximum(rows_K, 1),
        }
    )


def _assignment_name(number: int) -> str:
    return f"assignments/{number:05d}.parquet"


def _column(item: _Work, name: str) -> list[str]:
    table = item.part.vectors.storage.read_table(item.part.part.path, columns=[name])
    values: list[str] = table[name].to_pylist()
    return values


def _saved(value: _Saves) -> bytes:
    buffer = io.BytesIO()
    value.save(buffer)
    return buffer.getvalue()
