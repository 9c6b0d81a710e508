"""What a run keeps beside each adapter so that it can be watched and updated later."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from compass_ray import artifacts
from compass_ray.artifacts import Artifact, Storage
from compass_ray.clustering.stage import CENTROIDS as CENTROIDS_FILE
from compass_ray.clustering.stage import SPACE as SPACE_FILE
from compass_ray.clustering.stage import Clustered
from compass_ray.config import Config, Role
from compass_ray.continual.anchors import choose_anchors
from compass_ray.continual.drift import Located
from compass_ray.continual.reference import REFERENCE, Reference
from compass_ray.continual.registry import Registry
from compass_ray.continual.runfolder import CENTROIDS, SPACE
from compass_ray.records import SCHEMA
from compass_ray.resources import connect
from compass_ray.sampling.subset import SUBSET
from compass_ray.training.launch import ADAPTER, ANCHORS

STAGE = "keepsakes"
VERSION = 2
ROWS = "rows.parquet"
KEPT_COLUMNS = [*SCHEMA.names, "cluster"]


def keepsakes(
    config: Config, storage: Storage, clustered: Clustered, subsets: Mapping[str, Artifact]
) -> dict[str, Artifact]:
    """Reference usage, rows trained on and anchors of each language, computed or cached."""
    connect()
    fraction = config.continual.replay_fraction
    rescored = config.sampling.within == "centroid"
    keys = {
        language: artifacts.fingerprint(
            stage=STAGE,
            version=VERSION,
            subset=subset.fingerprint,
            clusters=clustered.artifact.fingerprint,
            fraction=fraction,
        )
        for language, subset in subsets.items()
    }
    found = artifacts.find_all(storage, STAGE, keys.values())
    missing = [
        _keep.remote(clustered, language, subsets[language], key, fraction, rescored)
        for language, key in keys.items()
        if key not in found
    ]
    found |= {artifact.fingerprint: artifact for artifact in ray.get(missing)}
    return {language: found[key] for language, key in keys.items()}


def register(
    storage: Storage,
    run: str,
    clustered: Clustered,
    adapters: Mapping[str, Artifact],
    kept: Mapping[str, Artifact],
) -> None:
    """Put adapters that a run made into its directory, each as a version that is current.

    An adapter that is there already stays current if it is, or if what is current is an update of
    it: running a configuration again undoes no update.
    """
    for source, target in ((SPACE_FILE, SPACE), (CENTROIDS_FILE, CENTROIDS)):
        storage.write_bytes(f"runs/{run}/{target}", clustered.artifact.read_bytes(source))
    for language, adapter in adapters.items():
        registry = Registry(storage, run, language)
        version, current = registry.find(adapter.fingerprint), registry.current()
        if version is None:
            files = adapter_files(adapter) | {n: kept[language].read_bytes(n) for n in kept_names()}
            about = {"kind": "run", "parent": None, "fingerprint": adapter.fingerprint}
            version = registry.add(files, {**about, "rows": kept[language].summary["rows"]})
        if current is None or version not in registry.line_of(current):
            registry.make_current(version, "made by the run")


def adapter_files(adapter: Artifact) -> dict[str, bytes]:
    """The PEFT files of a trained adapter, by name."""
    prefix = f"{ADAPTER}/"
    return {
        name.removeprefix(prefix): adapter.read_bytes(name)
        for name in adapter.files
        if name.startswith(prefix)
    }


def kept_names() -> tuple[str, ...]:
    return (REFERENCE, ROWS, ANCHORS)


@ray.remote(num_cpus=1)
def _keep(
    clustered: Clustered,
    language: str,
    subset: Artifact,
    fingerprint: str,
    fraction: float,
    rescored: bool,
) -> Artifact:
    reference = read_reference(clustered, language)
    rows = subset.read_table(SUBSET)
    scores = prototype_cosines(clustered, rows, reference, rescored)
    chosen = choose_anchors(rows["cluster"].to_numpy(), scores, reference.counts(), fraction)
    draft = artifacts.begin(subset.storage, STAGE, fingerprint)
    draft.write_bytes(REFERENCE, reference.to_bytes())
    draft.write_table(ROWS, rows.select(KEPT_COLUMNS))
    draft.write_table(ANCHORS, rows.select(KEPT_COLUMNS).take(chosen))
    return draft.commit({"language": language, "rows": rows.num_rows, "anchors": len(chosen)})


def read_reference(clustered: Clustered, language: str) -> Reference:
    """Usage of a language as the clustering has it."""
    space = clustered.read_space()
    clusters, distances, weights, vectors = [], [], [], []
    for number, part in enumerate(clustered.parts):
        if part.part.role != "usage" or language not in part.part.languages:
            continue
        table, mine = _rows_of(clustered, number, language, ["weight"])
        assigned = clustered.read_assignment(number)
        clusters.append(assigned["cluster"].to_numpy()[mine])
        distances.append(assigned["distance"].to_numpy()[mine])
        weights.append(table["weight"].to_numpy()[mine])
        vectors.append(space.transform(part.read_vectors()[mine], [language] * len(mine)))
    usage = Located(np.concatenate(clusters), np.concatenate(distances), np.concatenate(weights))
    k = len(clustered.read_clusters().centroids)
    return Reference.of(usage, np.concatenate(vectors), k)


def prototype_cosines(
    clustered: Clustered, rows: pa.Table, reference: Reference, rescored: bool
) -> NDArray[np.float64]:
    """Cosine of each row of a subset to the usage prototype of its cluster.

    Picked rows bring theirs as their score, which saves reading the pool for them; that of own rows
    is worked out here.

    Args:
        clustered: has the rows' vectors.
        rows: of a subset, [N].
        reference: the usage that the subset was made for.
        rescored: whether the scores of picked rows are to something else, as they are with
            ``sampling.within: centroid``.

    Returns:
        float64 [N]; NaN for a row that is in no part of ``clustered``.
    """
    cosines_N: NDArray[np.float64] = np.array(rows["score"].to_pylist(), dtype=np.float64)
    if rescored:
        cosines_N[:] = np.nan
    prototypes_ND = reference.prototypes_KD[rows["cluster"].to_numpy()]
    ids, languages = rows["id"].to_pylist(), rows["language"].to_pylist()
    missing = {ids[row]: row for row in map(int, np.flatnonzero(np.isnan(cosines_N)))}
    roles: tuple[Role, ...] = ("train", "auxiliary") if rescored else ("train",)
    space = clustered.read_space()
    for part in (part for part in clustered.parts if part.part.role in roles):
        if not missing:
            break
        stored = clustered.artifact.storage.read_table(part.part.path, ["id"])["id"].to_pylist()
        places = [place for place, row_id in enumerate(stored) if row_id in missing]
        if not places:
            continue
        found = [missing.pop(stored[place]) for place in places]
        vectors = space.transform(part.read_vectors()[places], [languages[row] for row in found])
        cosines_N[found] = np.einsum("nd,nd->n", vectors, prototypes_ND[found])
    return cosines_N


def _rows_of(
    clustered: Clustered, number: int, language: str, columns: list[str]
) -> tuple[pa.Table, NDArray[np.int64]]:
    """Columns of a part, and the positions of the language's rows in it."""
    path = clustered.parts[number].part.path
    table = clustered.artifact.storage.read_table(path, ["language", *columns])
    languages = np.array(table["language"].to_pylist())
    return table, np.flatnonzero(languages == language)
