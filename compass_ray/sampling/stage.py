"""One subset per target language: own rows and picked rows, with where each came from."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from compass_ray import artifacts
from compass_ray.artifacts import Artifact, Storage
from compass_ray.claims import claim
from compass_ray.clustering.stage import Clustered
from compass_ray.config import Config
from compass_ray.sampling.actor import RESTARTS, History, Located, gap_sampler
from compass_ray.sampling.subset import GAPS, SUBSET, SUBSET_SCHEMA
from compass_ray.sampling.summary import unspent_reason

log = logging.getLogger(__name__)

STAGE = "sample"
VERSION = 3


@dataclass(frozen=True)
class Sampled:
    subsets: Mapping[str, Artifact]
    reused: frozenset[str]


def subset_fingerprint(
    config: Config, clustered: Clustered, language: str, history: History | None = None
) -> str:
    known = {"history": sorted(history.ids)} if history else {}
    return artifacts.fingerprint(
        stage=STAGE,
        version=VERSION,
        language=language,
        sampling=config.sampling.identity(),
        seed=config.run.seed,
        clusters=clustered.artifact.fingerprint,
        items=[part.identity() for part in clustered.items],
        weights=clustered.usage_values(language),
        labels=[
            part.part.labels
            for part in clustered.parts
            if part.part.role == "auxiliary"
            or (part.part.role == "train" and language in part.part.languages)
        ],
        tokens=_tokens_identity(config),
        **known,
    )


def _tokens_identity(config: Config) -> dict[str, Any] | None:
    """What the length of a row depends on, where the budget is counted in it."""
    if config.sampling.budget_unit == "rows":
        return None
    training = config.training
    names = ("model", "max_length", "system_prompt")
    return {name: getattr(training, name) for name in names}


def sample(
    config: Config,
    storage: Storage,
    clustered: Clustered,
    histories: Mapping[str, History] | None = None,
) -> Sampled:
    """Build, or find in the cache, the subset of every target language.

    With the history of a language, its subset has only rows that are not in there.
    """
    past = histories or {}
    keys = {
        language: subset_fingerprint(config, clustered, language, past.get(language))
        for language in config.languages
    }
    found = _find(storage, keys)
    reused = frozenset(found)
    if len(found) < len(keys):
        # One caller a clustering: its sampler answers one request after the other anyway.
        with claim(storage, STAGE, clustered.artifact.fingerprint):
            found = _find(storage, keys)
            reused = frozenset(found)
            missing = {language: key for language, key in keys.items() if language not in found}
            found |= _sample_missing(config, clustered, missing, past)
    return Sampled({language: found[language] for language in config.languages}, reused)


def _find(storage: Storage, keys: Mapping[str, str]) -> dict[str, Artifact]:
    found = artifacts.find_all(storage, STAGE, keys.values())
    return {language: found[key] for language, key in keys.items() if key in found}


def _sample_missing(
    config: Config,
    clustered: Clustered,
    missing: Mapping[str, str],
    histories: Mapping[str, History],
) -> dict[str, Artifact]:
    sampler = gap_sampler(clustered)
    written = {}
    for language, key in missing.items():
        history = histories.get(language)
        picked = sampler.subset.remote(
            language, config.sampling, config.run.seed, config.training, history
        )
        written[language] = _write.remote(config, clustered, language, key, picked, history)
    made = {}
    for language, reference in written.items():
        try:
            artifact = made[language] = ray.get(reference)
        except ray.exceptions.RayActorError as error:
            raise RuntimeError(
                f"sample: the gap sampler was lost {RESTARTS + 1} times; most often its node has "
                "too little memory for the pool, which fewer rows of a source would mend"
            ) from error
        told = artifact.summary
        log.info(
            "sample %s: %d own rows + %d picked, divergence %.3f -> %.3f",
            language,
            told["own"],
            told["picked"],
            told["js_before"],
            told["js_after"],
        )
        _warn(language, told)
    return made


def _warn(language: str, told: Mapping[str, Any]) -> None:
    if told["unspent"] and told["budget_unit"] == "rows":
        log.warning("sample %s: %s", language, unspent_reason(told))
    if told["own_contaminated"]:
        log.warning(
            "sample %s: %d own rows repeat evaluation items; the score will flatter the adapter",
            language,
            told["own_contaminated"],
        )


@ray.remote(num_cpus=1)
def _write(
    config: Config,
    clustered: Clustered,
    language: str,
    fingerprint: str,
    located: Located,
    history: History | None,
) -> Artifact:
    draft = artifacts.begin(clustered.artifact.storage, STAGE, fingerprint)
    own = _own_rows(clustered, language)
    if history:
        fresh = [row_id not in history.ids for row_id in own["id"].to_pylist()]
        own = own.filter(pa.array(fresh, pa.bool_()))
    picked = _picked_rows(clustered, located, config.sampling.strategy)
    subset = pa.concat_tables([own, picked])
    gaps = located.selection.gaps
    draft.write_table(SUBSET, subset)
    draft.write_table(
        GAPS,
        pa.table(
            {
                "cluster": np.arange(len(gaps.target), dtype=np.int32),
                "target": gaps.target,
                "have": gaps.have.astype(np.int64),
                "added": gaps.added,
                "before": gaps.before,
                "after": gaps.after,
            }
        ),
    )
    return draft.commit(
        {
            "language": language,
            "strategy": config.sampling.strategy,
            "rows": subset.num_rows,
            "content": artifacts.fingerprint(rows=subset["id"].to_pylist()),
            "own": own.num_rows,
            "picked": picked.num_rows,
            "picked_tokens": located.selection.tokens,
            "budget": config.sampling.budget,
            "budget_unit": config.sampling.budget_unit,
            "available": located.selection.available,
            "js_before": gaps.js_before,
            "js_after": gaps.js_after,
            "refused_duplicates": located.selection.duplicates,
            "refused_far": located.selection.far,
            "refused_contaminated": located.selection.contaminated,
            "own_contaminated": located.own_contaminated,
            "unspent": located.selection.unspent,
        }
    )


def _own_rows(clustered: Clustered, language: str) -> pa.Table:
    tables = []
    for number, part in enumerate(clustered.parts):
        if part.part.role != "train" or language not in part.part.languages:
            continue
        table = clustered.artifact.storage.read_table(part.part.path).append_column(
            "cluster", clustered.read_assignment(number)["cluster"]
        )
        tables.append(table.filter(pc.equal(table["language"], language)))
    if not tables:
        return SUBSET_SCHEMA.empty_table()
    return _as_subset(pa.concat_tables(tables), gap=None, score=None, strategy="own")


def _picked_rows(clustered: Clustered, located: Located, strategy: str) -> pa.Table:
    """Rows of the selection, read part by part and put back into the order they were picked in."""
    if not len(located.parts_B):
        return SUBSET_SCHEMA.empty_table()
    tables, positions = [], []
    for number in np.unique(located.parts_B):
        mine = np.flatnonzero(located.parts_B == number)
        table = clustered.artifact.storage.read_table(clustered.parts[number].part.path)
        tables.append(table.take(located.offsets_B[mine]))
        positions.append(mine)
    order = np.argsort(np.concatenate(positions))
    rows = pa.concat_tables(tables).take(order)
    rows = rows.append_column("cluster", pa.array(located.clusters_B))
    selection = located.selection
    gap = selection.gaps.gap[located.clusters_B]
    return _as_subset(rows, gap=gap, score=selection.scores_B, strategy=strategy)


def _as_subset(rows: pa.Table, *, gap: Any, score: Any, strategy: str) -> pa.Table:
    count = rows.num_rows
    columns = {
        "gap": pa.nulls(count, pa.float64()) if gap is None else pa.array(gap),
        "score": pa.nulls(count, pa.float32()) if score is None else pa.array(score),
        "strategy": pa.array([strategy] * count, pa.string()),
    }
    for name, values in columns.items():
        rows = rows.append_column(name, values)
    return rows.select(SUBSET_SCHEMA.names).cast(SUBSET_SCHEMA)
