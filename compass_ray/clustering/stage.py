"""Fit the space and the clusters once, then assign every row in a Ray Data pass.

Three passes over the parts: sums of each language (the space), a balanced sample (the fit), and
the assignment. Only sums and file names come back to the driver.

A row is novel that is farther from its centroid than all but a hundredth of the sample.

Where ``corpora.cleaning.near_duplicates`` asks for it, the rows of each cluster are then compared
and the pool leaves out those that all but repeat an earlier one. They keep their cluster: parts,
vectors and assignments stay row for row.

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
from collections import Counter
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import IO, Protocol

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from compass_ray import artifacts
from compass_ray.artifacts import Artifact, Storage
from compass_ray.claims import claim
from compass_ray.clustering.choice import Choice
from compass_ray.clustering.diagnostics import Diagnostics
from compass_ray.clustering.duplicates import buckets
from compass_ray.clustering.kmeans import Clusters
from compass_ray.clustering.passes import (
    DUPLICATES,
    Bucket,
    Counts,
    Fitted,
    Work,
    add_assigned,
    assign_part,
    assignment_name,
    build_space,
    cluster_map,
    diagnose_sample,
    fit_sample,
    leave_out,
    load_shard,
    merge_sums,
    sample_part,
    sum_part,
)
from compass_ray.clustering.sample import balanced_shares
from compass_ray.clustering.sharded import fit_sharded
from compass_ray.config import Config
from compass_ray.corpora.stage import Corpus, Part
from compass_ray.embedding.local import Space, load_space
from compass_ray.embedding.stage import Embedded, EmbeddedPart
from compass_ray.parallel import map_parts
from compass_ray.resources import cluster

log = logging.getLogger(__name__)

STAGE = "cluster"
VERSION = 4
SPACE = "space.npz"
CENTROIDS = "centroids.npz"
MAP = "clusters.parquet"
START_ROWS = 200_000
"""Rows whose clusters k-means over all rows starts from."""
BUCKET_ROWS = 500_000
"""Rows of the pool that are compared in one place, where clusters are not larger: 1 GB at 1024
dimensions. Each bucket reads every part, so there should be few."""


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
        """Columns ``cluster`` int32, ``distance`` float32 and ``novel`` bool, row for row."""
        return self.artifact.read_table(assignment_name(number))

    def usage_values(self, language: str | None = None) -> list[str]:
        """``Part.values`` of the parts with usage, of one language or of all.

        No cluster depends on what a prompt weighs, and the clustering is not made anew for it.
        """
        return [
            part.part.values
            for part in self.parts
            if part.part.role == "usage" and (language is None or language in part.part.languages)
        ]

    def read_left_out(self) -> dict[int, NDArray[np.int64]]:
        """By number of the part, the rows that the pool leaves out; only parts that have any."""
        files = [name for name in self.artifact.files if name.startswith(f"{DUPLICATES}/")]
        if not files:
            return {}
        table = pa.concat_tables(self.artifact.read_table(name) for name in files)
        parts, rows = table["part"].to_numpy(), table["row"].to_numpy()
        return {int(number): rows[parts == number] for number in np.unique(parts)}


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
    work = [Work(number, part, draft) for number, part in enumerate(embedded.parts)]

    sums = merge_sums(map_parts(work, sum_part))
    space, from_usage = build_space(config, sums)

    fit_rows = config.clustering.fit_rows
    sample_rows = START_ROWS if fit_rows == "all" else fit_rows
    shares = balanced_shares(corpus.languages("auxiliary"), sample_rows)
    pool = [replace(w, shares=shares) for w in work if w.part.part.role == "auxiliary"]
    sampled = sum(map_parts(pool, partial(sample_part, space)))
    log.info("cluster: fitting %s on %s rows", config.clustering.method, f"{sampled:,}")
    on_gpu = 1 if cluster().gpus and config.clustering.wants_gpu else 0
    # num_gpus must be given here and not by .options(): only then does Ray end the process, and
    # with it its hold on GPU memory.
    fit = ray.remote(num_cpus=1, num_gpus=on_gpu)(fit_sample)
    fitted: Fitted = ray.get(fit.remote(config, draft, space))
    choice, space = fitted.choice, fitted.space
    draft.write_bytes(SPACE, _saved(space))
    if config.clustering.fit_rows == "all":
        # One after the other, runs and trials each have all of the cluster for their shards.
        with claim(storage, STAGE, "shards"):
            choice = _refined(choice, space, pool, on_gpu)
    diagnose = ray.remote(num_cpus=1)(diagnose_sample)
    diagnostics: Diagnostics
    diagnostics, cutoff = ray.get(diagnose.remote(config, draft, space, choice.clusters))
    clusters = replace(choice.clusters, cutoff=cutoff)
    draft.write_bytes(CENTROIDS, _saved(clusters))
    storage.delete_dir(draft.path("sample"))

    assigned = add_assigned(map_parts(work, partial(assign_part, space, clusters)))
    draft.write_table(MAP, cluster_map(clusters, assigned.counts, config.run.seed))
    near_duplicates = _leave_out_near_duplicates(config, work, assigned.counts)
    summary = {
        "method": config.clustering.method,
        "k": len(clusters.centroids),
        "rows": sum(part.part.rows for part in embedded.parts),
        "fit_rows": choice.rows,
        "noise": choice.noise,
        "backend": clusters.backend,
        "inertia": clusters.inertia,
        "measure": choice.measure,
        "curve": [asdict(point) for point in choice.curve],
        "languages_from_usage": from_usage,
        "near_duplicates": near_duplicates,
        "novel_beyond": cutoff,
        "novel": assigned.novelty(),
        "diagnostics": asdict(diagnostics),
    }
    return draft.commit(summary)


def assign_corpus(
    config: Config,
    storage: Storage,
    corpus: Corpus,
    embedded: Embedded,
    space: Space,
    clusters: Clusters,
) -> Clustered:
    """Every row put into clusters that were fitted before; nothing is fitted anew."""
    saved = {SPACE: _saved(space), CENTROIDS: _saved(clusters)}
    fingerprint = artifacts.fingerprint(
        stage=STAGE,
        version=VERSION,
        fitted=[hashlib.blake2b(data, digest_size=16).hexdigest() for data in saved.values()],
        near_duplicates=config.corpora.cleaning.near_duplicates,
        parts=[(part.part.role, part.vectors.fingerprint) for part in embedded.parts],
    )
    done = artifacts.find(storage, STAGE, fingerprint)
    if done:
        return Clustered(done, embedded.parts, reused=True, items=corpus.of("evaluation"))
    draft = artifacts.begin(storage, STAGE, fingerprint)
    for name, data in saved.items():
        draft.write_bytes(name, data)
    work = [Work(number, part, draft) for number, part in enumerate(embedded.parts)]
    assigned = add_assigned(map_parts(work, partial(assign_part, space, clusters)))
    summary = {
        "rows": sum(part.part.rows for part in embedded.parts),
        "near_duplicates": _leave_out_near_duplicates(config, work, assigned.counts),
        "novel": assigned.novelty(),
    }
    done = draft.commit(summary)
    return Clustered(done, embedded.parts, reused=False, items=corpus.of("evaluation"))


def clustering_fingerprint(config: Config, embedded: Embedded) -> str:
    return artifacts.fingerprint(
        stage=STAGE,
        version=VERSION,
        clustering=config.clustering.identity(),
        space=config.embedding.space_identity(),
        seed=config.run.seed,
        targets=sorted(config.languages),
        near_duplicates=config.corpora.cleaning.near_duplicates,
        parts=[(part.part.role, part.vectors.fingerprint) for part in embedded.parts],
    )


def _refined(choice: Choice, space: Space, pool: list[Work], on_gpu: int) -> Choice:
    """Go on with k-means over every row of the pool, in as many shards as the cluster holds."""
    actors = min(len(pool), max(1, cluster().slots(1, on_gpu)))
    rows = sum(work.part.part.rows for work in pool)
    log.info("cluster: k-means goes on over %s rows in %d shards", f"{rows:,}", actors)
    shards = [partial(load_shard, space, pool[number::actors]) for number in range(actors)]
    clusters = fit_sharded(shards, choice.clusters.centroids, gpus=on_gpu)
    return replace(choice, clusters=clusters, rows=rows)


def _leave_out_near_duplicates(
    config: Config, work: list[Work], counts: Counts
) -> dict[str, int] | None:
    """How many rows of each source the pool leaves out; None where that was not asked for."""
    cosine = config.corpora.cleaning.near_duplicates
    if cosine is None:
        return None
    pool = tuple(item for item in work if item.part.part.role == "auxiliary")
    rows_K = np.sum(list(counts.values()), axis=0)
    work_by_bucket = [
        Bucket(number, clusters, pool, cosine)
        for number, clusters in enumerate(buckets(rows_K, BUCKET_ROWS))
    ]
    found: Counter[str] = Counter()
    for counted in map_parts(work_by_bucket, leave_out):
        found.update(counted)
    log.info("cluster: %s near duplicates are left out of the pool", f"{found.total():,}")
    return dict(sorted(found.items()))


def _saved(value: _Saves) -> bytes:
    buffer = io.BytesIO()
    value.save(buffer)
    return buffer.getvalue()
