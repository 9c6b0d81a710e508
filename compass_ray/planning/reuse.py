"""What the cache holds of a run: every stage's entries, found by the fingerprints it would use.

Reads only; starts nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa

from compass_ray import artifacts
from compass_ray.artifacts import Artifact, Storage
from compass_ray.clustering.stage import STAGE as CLUSTER
from compass_ray.clustering.stage import Clustered, clustering_fingerprint
from compass_ray.config import Config, Role
from compass_ray.corpora.preview import Preview, no_sample
from compass_ray.corpora.stage import Corpus, Part, count_cached, find_corpora
from compass_ray.embedding.stage import STAGE as EMBED
from compass_ray.embedding.stage import Embedded, EmbeddedPart, vectors_fingerprints
from compass_ray.evaluation.stage import Model, find_scored
from compass_ray.sampling.stage import STAGE as SAMPLE
from compass_ray.sampling.stage import subset_fingerprint
from compass_ray.training.launch import STAGE as TRAIN
from compass_ray.training.launch import adapter_fingerprint

SEEN_PARTS = 16


@dataclass(frozen=True)
class Found:
    """Committed entries; those of a stage are looked for only where the one before is whole.

    Attributes:
        sources: files, and languages of atlas, that the corpora consist of.
        sources_read: how many of them are read.
        corpus: the rows, if every source is read.
        vectors: parts that are embedded.
        clustered: the clustering.
        subsets: by language.
        adapters: by language.
        scored: passes of the evaluation, by language, task and model.
    """

    sources: int
    sources_read: int
    corpus: Corpus | None = None
    vectors: tuple[EmbeddedPart, ...] = ()
    clustered: Clustered | None = None
    subsets: Mapping[str, Artifact] = field(default_factory=dict)
    adapters: Mapping[str, Artifact] = field(default_factory=dict)
    scored: frozenset[tuple[str, str, Model]] = frozenset()


def look_into_cache(config: Config, storage: Storage) -> Found:
    """Raises ``UserError`` for a source that is not there or has too many rejected rows."""
    found = Found(*count_cached(config, storage))
    corpus = find_corpora(config, storage)
    if corpus is None:
        return found
    parts = corpus.of("auxiliary", "train", "usage")
    keys = vectors_fingerprints(config.embedding, parts)
    entries = artifacts.find_all(storage, EMBED, keys)
    vectors = tuple(
        EmbeddedPart(part, entries[key])
        for part, key in zip(parts, keys, strict=True)
        if key in entries
    )
    found = replace(found, corpus=corpus, vectors=vectors)
    if len(vectors) < len(parts):
        return found
    embedded = Embedded(vectors, reused_rows=corpus.rows(), computed_rows=0)
    clusters = artifacts.find(storage, CLUSTER, clustering_fingerprint(config, embedded))
    if clusters is None:
        return found
    clustered = Clustered(clusters, vectors, reused=True, items=corpus.of("evaluation"))
    subsets, adapters = {}, {}
    for language in config.languages:
        key = subset_fingerprint(config, clustered, language)
        subset = artifacts.find(storage, SAMPLE, key)
        if subset is None:
            continue
        subsets[language] = subset
        adapter = artifacts.find(storage, TRAIN, adapter_fingerprint(config, language, subset))
        if adapter:
            adapters[language] = adapter
    return replace(
        found,
        clustered=clustered,
        subsets=subsets,
        adapters=adapters,
        scored=find_scored(config, storage, corpus, adapters),
    )


def preview_found(storage: Storage, corpus: Corpus, role: Role, targets: Sequence[str]) -> Preview:
    """Counts of rows that are read, and a sample: a part of each target, or parts spread evenly."""
    parts = corpus.of(role)
    seen: list[Part] = []
    if role in ("train", "evaluation"):
        firsts = (next((p for p in parts if t in p.languages), None) for t in targets)
        seen = [part for part in firsts if part]
    elif role == "auxiliary":
        seen = [parts[i * len(parts) // SEEN_PARTS] for i in range(SEEN_PARTS) if parts]
    empty = no_sample(role)
    paths = dict.fromkeys(part.path for part in seen)
    tables = [storage.read_table(path, empty.column_names) for path in paths]
    return Preview(
        rows=corpus.rows(role),
        languages=dict(corpus.languages(role)),
        certainty="exact",
        languages_certain=True,
        sample=pa.concat_tables(tables) if tables else empty,
    )
