"""What the cluster stage does to one part in each of its passes, and to the sample between them.

Sums of each language for the space, a balanced sample for the fit, rows in shards for k-means over
all of them, the assignment, and near duplicates, a bucket of clusters at a time. Knows nothing of
where the parts are worked on.
"""

from __future__ import annotations

import io
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from compass_ray.artifacts import Draft
from compass_ray.clustering.choice import Choice, fit_clusters
from compass_ray.clustering.diagnostics import Diagnostics, diagnose
from compass_ray.clustering.duplicates import near_duplicates
from compass_ray.clustering.kmeans import Clusters
from compass_ray.clustering.layout import layout
from compass_ray.clustering.novelty import is_novel, novelty_cutoff
from compass_ray.clustering.sample import draw
from compass_ray.clustering.sharded import Rows
from compass_ray.config import Config
from compass_ray.embedding.local import LocalSpace, Space
from compass_ray.embedding.space import (
    NeutralSpace,
    RawSpace,
    add_sums,
    language_sums,
)
from compass_ray.embedding.stage import EmbeddedPart
from compass_ray.errors import UserError

log = logging.getLogger(__name__)

DUPLICATES = "duplicates"
"""Folder of the tables that say which rows the pool leaves out."""


@dataclass(frozen=True)
class Work:
    """One part of one pass; ``shares`` only for the sample."""

    number: int
    part: EmbeddedPart
    draft: Draft
    shares: Mapping[str, float] | None = None


Sums = dict[str, tuple[NDArray[np.float64], int]]


def sum_part(item: Work) -> tuple[int, str, Sums]:
    sums = language_sums(item.part.read_vectors(), _column(item, "language"))
    return item.number, item.part.part.role, sums


def merge_sums(results: Iterable[tuple[int, str, Sums]]) -> dict[str, Sums]:
    # In the order of the parts, since a floating-point sum depends on its order.
    ordered = sorted(results, key=lambda result: result[0])
    roles = dict.fromkeys(role for _, role, _ in ordered)
    return {role: add_sums(sums for _, r, sums in ordered if r == role) for role in roles}


def build_space(config: Config, sums: dict[str, Sums]) -> tuple[Space, list[str]]:
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


def sample_part(space: Space, item: Work) -> int:
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
class Fitted:
    space: Space
    choice: Choice


def fit_sample(config: Config, draft: Draft, space: Space) -> Fitted:
    sample = _Sample.read(draft)
    seed, topics = config.run.seed, config.embedding.topics
    if topics and isinstance(space, NeutralSpace):
        space = LocalSpace.fit(space, sample.vectors_SD, sample.languages, topics, seed)
    return Fitted(space, fit_clusters(sample.vectors_in(space), config.clustering, seed))


def diagnose_sample(
    config: Config, draft: Draft, space: Space, clusters: Clusters
) -> tuple[Diagnostics, float]:
    """What the clusters are made of, and the distance beyond which a row is novel to them."""
    sample = _Sample.read(draft)
    vectors_SD = sample.vectors_in(space)
    _, distances_S = clusters.assign(vectors_SD)
    diagnostics = diagnose(
        sample.raw_SD, vectors_SD, clusters, sample.languages, sample.subjects, config.run.seed
    )
    return diagnostics, novelty_cutoff(distances_S)


def load_shard(space: Space, pool: list[Work]) -> Rows:
    vectors, weights = [], []
    for work in pool:
        assert work.shares is not None
        languages = _column(work, "language")
        # Half precision, as on disk: a shard is what a device must hold.
        vectors.append(space.transform(work.part.read_vectors(), languages).astype(np.float16))
        weights += [work.shares[language] for language in languages]
    return Rows(np.concatenate(vectors), np.array(weights, np.float32))


Counts = dict[str, NDArray[np.int64]]


@dataclass
class Assigned:
    """What one or more parts came to.

    Attributes:
        counts: rows of the pool by language, in each cluster [K].
        rows: rows by role.
        novel: those of them that are novel.
    """

    counts: Counts = field(default_factory=dict)
    rows: Counter[str] = field(default_factory=Counter)
    novel: Counter[str] = field(default_factory=Counter)

    def novelty(self) -> dict[str, dict[str, int]]:
        return {role: {"rows": n, "novel": self.novel[role]} for role, n in self.rows.items()}


def assign_part(space: Space, clusters: Clusters, item: Work) -> Assigned:
    languages = np.array(_column(item, "language"), dtype=np.str_)
    vectors = space.transform(item.part.read_vectors(), languages)
    cluster, distance = clusters.assign(vectors)
    novel = is_novel(distance, clusters.cutoff)
    table = pa.table({"cluster": cluster, "distance": distance, "novel": novel})
    item.draft.write_table(assignment_name(item.number), table)
    role = item.part.part.role
    done = Assigned({}, Counter({role: len(novel)}), Counter({role: int(novel.sum())}))
    if role == "auxiliary":
        k = len(clusters.centroids)
        done.counts = {
            str(language): np.bincount(cluster[languages == language], minlength=k)
            for language in np.unique(languages)
        }
    return done


def add_assigned(results: Iterable[Assigned]) -> Assigned:
    whole = Assigned()
    for assigned in results:
        whole.rows.update(assigned.rows)
        whole.novel.update(assigned.novel)
        for language, rows_K in assigned.counts.items():
            whole.counts[language] = whole.counts.get(language, 0) + rows_K
    return whole


def cluster_map(clusters: Clusters, counts: Counts, seed: int) -> pa.Table:
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


@dataclass(frozen=True)
class Bucket:
    """Some clusters of the pool, whose rows are compared in one place."""

    number: int
    clusters: range
    pool: tuple[Work, ...]
    cosine: float


def leave_out(bucket: Bucket) -> Counter[str]:
    """Write which rows of a bucket the pool leaves out; returns how many by source."""
    groups: dict[tuple[int, str], int] = {}
    vectors, codes, sources, parts, rows = [], list[int](), list[str](), [], []
    for item in bucket.pool:
        assigned = item.draft.storage.read_table(item.draft.path(assignment_name(item.number)))
        clusters = assigned["cluster"].to_numpy()
        mine = np.flatnonzero(np.isin(clusters, bucket.clusters))
        table = item.part.vectors.storage.read_table(item.part.part.path, ["language", "source"])
        languages = table["language"].take(mine).to_pylist()
        keys = zip(clusters[mine].tolist(), languages, strict=True)
        codes += [groups.setdefault(key, len(groups)) for key in keys]
        sources += table["source"].take(mine).to_pylist()
        vectors.append(item.part.read_vectors()[mine])
        parts.append(np.full(len(mine), item.number, np.int32))
        rows.append(mine)
    near = near_duplicates(np.concatenate(vectors), np.array(codes, np.int64), bucket.cosine)
    found = {"part": np.concatenate(parts)[near], "row": np.concatenate(rows)[near]}
    draft = bucket.pool[0].draft
    draft.write_table(f"{DUPLICATES}/{bucket.number:05d}.parquet", pa.table(found))
    return Counter(sources[row] for row in np.flatnonzero(near))


def assignment_name(number: int) -> str:
    return f"assignments/{number:05d}.parquet"


def _column(item: Work, name: str) -> list[str]:
    table = item.part.vectors.storage.read_table(item.part.part.path, columns=[name])
    values: list[str] = table[name].to_pylist()
    return values
