from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from compass_ray import artifacts
from compass_ray.artifacts import Storage
from compass_ray.clustering.stage import SPACE, Clustered
from compass_ray.config import Role
from compass_ray.continual.drift import Located
from compass_ray.continual.reference import Reference
from compass_ray.continual.stage import prototype_cosines
from compass_ray.corpora.stage import Part
from compass_ray.embedding.space import RawSpace
from compass_ray.embedding.stage import VECTORS, EmbeddedPart

VECTORS_OF = {
    "own-far": [0.0, 1.0],
    "own-near": [0.8, 0.6],
    "other": [1.0, 0.0],
    "picked": [0.6, 0.8],
    "picked-2": [0.8, -0.6],
}


def part(storage: Storage, role: Role, ids: list[str]) -> EmbeddedPart:
    path = f"{role}.parquet"
    storage.write_table(path, pa.table({"id": ids}))
    saved = io.BytesIO()
    np.save(saved, np.array([VECTORS_OF[row_id] for row_id in ids], np.float16))
    vectors = artifacts.begin(storage, "embed", role)
    vectors.write_bytes(VECTORS, saved.getvalue())
    return EmbeddedPart(Part(role, path, len(ids), {"de": len(ids)}, role, role), vectors.commit())


@pytest.mark.parametrize("rescored", [False, True])
def test_own_and_picked_rows_are_measured_by_the_same_prototypes(
    tmp_path: Path, rescored: bool
) -> None:
    storage = Storage.open(str(tmp_path))
    clustering = artifacts.begin(storage, "cluster", "c")
    space = io.BytesIO()
    RawSpace().save(space)
    clustering.write_bytes(SPACE, space.getvalue())
    parts = (
        part(storage, "train", ["own-far", "other", "own-near"]),
        part(storage, "auxiliary", ["picked-2", "other", "picked"]),
    )
    clustered = Clustered(clustering.commit(), parts, reused=False)
    usage = Located(np.array([0, 1]), np.zeros(2, np.float32), np.ones(2))
    reference = Reference.of(usage, np.eye(2, dtype=np.float32), 2)
    rows = pa.table(
        {
            "id": ["own-far", "own-near", "picked", "picked-2"],
            "language": ["de", "de", "en", "fr"],
            "cluster": pa.array([0, 0, 1, 0], pa.int32()),
            "score": pa.array([None, None, 0.25, 0.5], pa.float32()),
        }
    )
    cosines = prototype_cosines(clustered, rows, reference, rescored)
    picked = [0.8, 0.8] if rescored else [0.25, 0.5]
    assert cosines == pytest.approx([0.0, 0.8, *picked], abs=1e-3)
