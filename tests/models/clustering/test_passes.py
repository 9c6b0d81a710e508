"""The passes of the cluster stage over real parts, in this process and without Ray."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from compass_ray import artifacts
from compass_ray.artifacts import Storage
from compass_ray.clustering.kmeans import Clusters
from compass_ray.clustering.passes import (
    Bucket,
    Work,
    add_assigned,
    assign_part,
    diagnose_sample,
    fit_sample,
    leave_out,
    sample_part,
)
from compass_ray.clustering.stage import CENTROIDS, SPACE, Clustered, clustering_fingerprint
from compass_ray.config import Config
from compass_ray.corpora.stage import Part
from compass_ray.embedding.space import RawSpace
from compass_ray.embedding.stage import VECTORS, Embedded, EmbeddedPart
from compass_ray.errors import UserError
from compass_ray.loading import build_config
from compass_ray.records import SCHEMA, row_id
from compass_ray.sampling.actor import GapSampler

# Two clusters on the axes of a plane; angles are those of rows to the first axis, in degrees.
CENTROIDS_KD = np.eye(2, dtype=np.float32)
Row = tuple[str, float]


def embedded(storage: Storage, name: str, role: Any, rows: list[Row]) -> EmbeddedPart:
    records = [
        {
            "id": row_id(language, f"{name} {number}", "r"),
            "language": language,
            "prompt": f"{name} {number}",
            "response": "r",
            "source": f"{name}.jsonl",
            "weight": 1.0,
        }
        for number, (language, _) in enumerate(rows)
    ]
    storage.write_table(f"{name}.parquet", pa.Table.from_pylist(records, schema=SCHEMA))
    angles = np.radians([angle for _, angle in rows])
    draft = artifacts.begin(storage, "embed", name)
    buffer = io.BytesIO()
    np.save(buffer, np.column_stack([np.cos(angles), np.sin(angles)]).astype(np.float16))
    draft.write_bytes(VECTORS, buffer.getvalue())
    languages = dict(Counter(language for language, _ in rows))
    part = Part(role, f"{name}.parquet", len(rows), languages, name, "")
    return EmbeddedPart(part, draft.commit({"rows": len(rows), "dimension": 2}))


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    value.save(buffer)
    return buffer.getvalue()


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.open(str(tmp_path))


def clustered(storage: Storage, parts: list[EmbeddedPart], cosine: float | None) -> Clustered:
    draft = artifacts.begin(storage, "cluster", "f00")
    space, clusters = RawSpace(), Clusters(CENTROIDS_KD, 0.0, "sklearn")
    draft.write_bytes(SPACE, saved(space))
    draft.write_bytes(CENTROIDS, saved(clusters))
    work = [Work(number, part, draft) for number, part in enumerate(parts)]
    counts = add_assigned(assign_part(space, clusters, item) for item in work).counts
    assert sum(rows.sum() for rows in counts.values()) == sum(
        part.part.rows for part in parts if part.part.role == "auxiliary"
    )
    summary = Counter[str]()
    if cosine is not None:
        pool = tuple(item for item in work if item.part.part.role == "auxiliary")
        buckets = [Bucket(0, range(1), pool, cosine), Bucket(1, range(1, 2), pool, cosine)]
        for found in map(leave_out, buckets):
            summary.update(found)
    return Clustered(draft.commit({"near_duplicates": summary}), tuple(parts), reused=False)


# Within 0.8 degrees the cosine is over 0.9999.
FIRST: list[Row] = [("de", 0), ("de", 0.4), ("fr", 0.4), ("de", 44.9), ("de", 80)]
SECOND: list[Row] = [("fr", 80.1), ("fr", 0.5), ("de", 45.1), ("de", 80.3), ("de", 81)]


def test_the_pool_leaves_out_rows_near_an_earlier_one_of_their_language_and_cluster(
    storage: Storage,
) -> None:
    own = embedded(storage, "own", "train", [("de", 0.1), ("de", 0.1)])
    parts = [embedded(storage, "a", "auxiliary", FIRST), own]
    found = clustered(storage, [*parts, embedded(storage, "b", "auxiliary", SECOND)], 0.9999)
    assert {number: rows.tolist() for number, rows in found.read_left_out().items()} == {
        0: [1],  # beside row 0
        2: [1, 3],  # beside rows 2 and 4 of the first part; row 4 is near to a row that goes
    }
    assert found.artifact.summary["near_duplicates"] == {"a.jsonl": 1, "b.jsonl": 2}

    sampler = GapSampler(found)
    assert sampler._parts.tolist() == [0, 0, 0, 0, 2, 2, 2]
    assert sampler._offsets.tolist() == [0, 2, 3, 4, 0, 2, 4]
    assert sampler._pool.clusters_N.tolist() == [0, 0, 0, 1, 1, 1, 1]
    names = [sampler._pool.languages[code] for code in sampler._pool.languages_N]
    assert names == ["de", "fr", "de", "de", "fr", "de", "de"]


def test_without_the_option_the_pool_has_every_row(storage: Storage) -> None:
    found = clustered(storage, [embedded(storage, "a", "auxiliary", FIRST)], None)
    assert found.read_left_out() == {}
    assert GapSampler(found)._offsets.tolist() == [0, 1, 2, 3, 4]


def test_the_option_makes_another_clustering_and_reads_nothing_again() -> None:
    def configured(cosine: float | None) -> Config:
        corpora = {"cleaning": {"near_duplicates": cosine}}
        return build_config({"languages": ["de"], "corpora": corpora}, where="test")

    off, on, higher = (configured(cosine) for cosine in (None, 0.98, 0.99))
    embedded = Embedded((), 0, 0)
    keys = {clustering_fingerprint(config, embedded) for config in (off, on, higher)}
    assert len(keys) == 3
    assert off.corpora.cleaning.reading_identity() == on.corpora.cleaning.reading_identity()
    with pytest.raises(UserError, match=r"corpora\.cleaning\.near_duplicates"):
        configured(1.0)


def test_a_row_is_novel_beyond_all_but_a_hundredth_of_the_fitted_sample(storage: Storage) -> None:
    config = build_config({"languages": ["de"], "clustering": {"k": 2}}, where="test")
    rng = np.random.default_rng(0)
    pool = [("de", float(angle)) for angle in np.r_[rng.normal(0, 3, 150), rng.normal(90, 3, 150)]]
    parts = [
        embedded(storage, "pool", "auxiliary", pool),
        embedded(storage, "asked", "usage", [("de", 1), ("de", 45), ("de", 88), ("de", 200)]),
    ]
    draft = artifacts.begin(storage, "cluster", "f01")
    space = RawSpace()
    work = [Work(number, part, draft, {"de": 1.0}) for number, part in enumerate(parts)]
    assert sample_part(space, work[0]) == 300
    clusters = fit_sample(config, draft, space).choice.clusters
    diagnostics, cutoff = diagnose_sample(config, draft, space, clusters)
    assert diagnostics.sample_rows == 300

    clusters = replace(clusters, cutoff=cutoff)
    told = add_assigned(assign_part(space, clusters, item) for item in work)
    draft.write_bytes(CENTROIDS, saved(clusters))
    found = Clustered(draft.commit(), tuple(parts), reused=False)
    novel = found.read_assignment(1)["novel"].to_pylist()
    assert novel == [False, True, False, True]
    distances = np.sort(found.read_assignment(0)["distance"].to_numpy())
    assert cutoff == pytest.approx(distances[-3])
    assert told.novelty() == {
        "auxiliary": {"rows": 300, "novel": 2},
        "usage": {"rows": 4, "novel": 2},
    }
    assert found.read_clusters().cutoff == cutoff
