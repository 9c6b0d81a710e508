"""Bring adapters up to date with new usage: fill its gaps, train, prove, promote or refuse.

Every step is cached by content, so an update that was killed goes on where it was, and until the
last step, one atomic write, the old version is current.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from compass_ray import artifacts
from compass_ray.artifacts import Artifact, Storage
from compass_ray.clustering.stage import Clustered, assign_corpus
from compass_ray.config import Config
from compass_ray.continual.anchors import choose_anchors
from compass_ray.continual.drift import DriftReport, detect
from compass_ray.continual.gate import Verdict
from compass_ray.continual.methods import Parent, train_update
from compass_ray.continual.proof import adapter_of, judge
from compass_ray.continual.reference import REFERENCE, Reference
from compass_ray.continual.registry import Version
from compass_ray.continual.runfolder import RunFolder
from compass_ray.continual.stage import (
    KEPT_COLUMNS,
    ROWS,
    adapter_files,
    prototype_cosines,
    read_reference,
)
from compass_ray.corpora.stage import Corpus, read_corpora
from compass_ray.embedding.stage import embed
from compass_ray.errors import UserError
from compass_ray.loading import override
from compass_ray.pipeline import STAGES, check_config
from compass_ray.sampling.actor import History
from compass_ray.sampling.stage import sample
from compass_ray.sampling.subset import SUBSET
from compass_ray.training.fisher import FISHER_FILE
from compass_ray.training.launch import ADAPTER, ANCHORS

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Updated:
    """What became of one language.

    Attributes:
        language: BCP-47 code.
        parent: version that was current before.
        version: version that was made, None if none was.
        promoted: whether it is current now.
        reason: why, or why not.
        failed: whether something broke, rather than being refused.
    """

    language: str
    parent: str
    version: str | None
    promoted: bool
    reason: str
    failed: bool = False

    def __str__(self) -> str:
        verdict = "promoted" if self.promoted else "not promoted"
        return f"{self.language}: {self.parent} -> {self.version or '-'} {verdict}: {self.reason}"


def update(
    run: RunFolder,
    usage: str,
    languages: Sequence[str] = (),
    evaluation: str | None = None,
    overrides: Sequence[str] = (),
    prove: bool = True,
) -> list[Updated]:
    """Update the adapters of a run for new usage.

    Args:
        run: the finished run.
        usage: file, folder or glob with the prompts of the new usage.
        languages: which; default: all that have an adapter and are in ``usage``.
        evaluation: items of the new usage; default: the run's items, weighted as the new usage is
            spread over their clusters.
        overrides: changes to the run's configuration, such as a corpus that has grown.
        prove: score the update and let the gate decide; without it, it is promoted as it is.

    Raises:
        UserError: nothing in ``usage`` is in a language with an adapter, or an input is wrong.
    """
    config = _config(run, usage, overrides)
    corpus = read_corpora(config, run.storage)
    config = _with_languages(config, run, corpus, usage, languages)
    embedded = embed(config, run.storage, corpus)
    space, clusters = run.read_space(), run.read_clusters()
    clustered = assign_corpus(config, run.storage, corpus, embedded, space, clusters)
    work = {lang: _Work.begin(run, config, corpus, clustered, lang) for lang in config.languages}
    done = [
        item.refused("the current version was made for this usage")
        for item in work.values()
        if item.made_for_this_usage()
    ]
    work = {lang: item for lang, item in work.items() if not item.made_for_this_usage()}
    if not work:
        return done
    todo = config.model_copy(update={"languages": list(work)})
    histories = {lang: item.history for lang, item in work.items()}
    sampled = sample(todo, run.storage, clustered, histories)
    subsets = {lang: s for lang, s in sampled.subsets.items() if s.summary["rows"]}
    parents = {lang: item.parent for lang, item in work.items()}
    trained = train_update(todo.continual.method, todo, run.storage, parents, subsets)
    if prove:
        usages = {lang: (item.before, item.usage) for lang, item in work.items()}
        current = {lang: adapter_of(run.storage, work[lang].version) for lang in trained.adapters}
        verdicts = judge(run, todo, corpus, evaluation, usages, current, trained.adapters)
    else:
        verdicts = dict.fromkeys(
            trained.adapters, Verdict(True, "not put to the proof", None, None)
        )
    for language, item in work.items():
        if language not in subsets:
            done.append(item.refused("no row is left that it was not trained on"))
        elif language in trained.failures:
            done.append(item.failed(f"training failed: {trained.failures[language]}"))
        else:
            adapter, verdict = trained.adapters[language], verdicts[language]
            done.append(item.finish(adapter, subsets[language], verdict))
    return done


def _config(run: RunFolder, usage: str, overrides: Sequence[str]) -> Config:
    config = override(run.config, overrides)
    if config.training.deepspeed.zero_stage == 3:
        raise UserError(
            "training.deepspeed.zero_stage: an update needs whole weights on each worker, so 0, 1 "
            "or 2; add --set training.deepspeed.zero_stage=2"
        )
    corpora = config.corpora.model_copy(update={"usage": [run.usage_source(usage)]})
    # Long-context items are of no subject that users ask about.
    tasks = [task for task in config.evaluation.tasks if task != "oneruler"] or ["items"]
    quick = config.evaluation.model_copy(update={"baseline": False, "tasks": tasks})
    config = config.model_copy(update={"corpora": corpora, "evaluation": quick})
    check_config(config, STAGES.index("evaluate"))
    return config


def _with_languages(
    config: Config, run: RunFolder, corpus: Corpus, usage: str, languages: Sequence[str]
) -> Config:
    known, asked = run.languages(), corpus.languages("usage")
    for language in languages:
        run.current(language)
        if not asked[language]:
            raise UserError(f"{usage}: no prompts in {language}; there are {', '.join(asked)}")
    todo = list(languages) or [language for language in known if asked[language]]
    for language in asked:
        if language not in known:
            log.warning("update: %s: no adapter in run %s; passed over", language, run.name)
    if not todo:
        raise UserError(
            f"{usage}: no prompts in a language with an adapter ({', '.join(known) or 'none'})"
        )
    return config.model_copy(update={"languages": todo})


@dataclass(frozen=True)
class _Work:
    """One language's update: what it starts from and what it is for."""

    run: RunFolder
    config: Config
    language: str
    version: Version
    parent: Parent
    before: Reference
    usage: Reference
    content: list[list[str]]
    clustered: Clustered

    @classmethod
    def begin(
        cls, run: RunFolder, config: Config, corpus: Corpus, clustered: Clustered, language: str
    ) -> _Work:
        version = run.current(language)
        anchors = run.storage.read_table(f"{version.folder}/{ANCHORS}", ["id"])
        parent = Parent(
            folder=version.folder,
            fingerprint=version.about["fingerprint"],
            updates=fisher_updates(run.storage, version),
            anchors=artifacts.fingerprint(anchors=anchors["id"].to_pylist()),
            rows=_history(run, language, version),
        )
        content = [p.identity() for p in corpus.of("usage") if language in p.languages]
        before, usage = run.reference(version), read_reference(clustered, language)
        return cls(run, config, language, version, parent, before, usage, content, clustered)

    @property
    def history(self) -> History:
        clusters = self.parent.rows["cluster"].to_numpy()
        counts = np.bincount(clusters, minlength=self.before.k).astype(np.int64)
        return History(frozenset(self.parent.rows["id"].to_pylist()), counts)

    def drift(self) -> DriftReport:
        settings = self.config.continual
        return detect(
            self.before.usage,
            self.usage.usage,
            self.before.k,
            alpha=settings.alpha,
            threshold=settings.threshold,
            seed=self.config.run.seed,
        )

    def made_for_this_usage(self) -> bool:
        told: Mapping[str, Any] = self.version.about.get("usage") or {}
        return told.get("content") == self.content

    def refused(self, reason: str) -> Updated:
        return Updated(self.language, self.version.name, None, False, reason)

    def failed(self, reason: str) -> Updated:
        return Updated(self.language, self.version.name, None, False, reason, failed=True)

    def finish(self, adapter: Artifact, subset: Artifact, verdict: Verdict) -> Updated:
        """Register the new version and, if it passed, make it current."""
        registry = self.run.registry(self.language)
        version = registry.find(adapter.fingerprint) or registry.add(
            self._files(adapter, subset), self._about(adapter, subset, verdict)
        )
        promoted, reason = verdict.promoted, verdict.reason
        if promoted and registry.was_current(version):
            promoted, reason = False, f"{version.name} was made before and rolled back"
        elif promoted:
            registry.make_current(version, reason)
        log.info("update %s: %s %s", self.language, version.name, reason)
        return Updated(self.language, self.version.name, version.name, promoted, reason)

    def _files(self, adapter: Artifact, subset: Artifact) -> dict[str, bytes]:
        rows = subset.read_table(SUBSET)
        chosen = choose_anchors(
            rows["cluster"].to_numpy(),
            prototype_cosines(
                self.clustered, rows, self.usage, self.config.sampling.within == "centroid"
            ),
            self.usage.counts(),
            self.config.continual.replay_fraction,
        )
        rows = rows.select(KEPT_COLUMNS)
        old = self.run.storage.read_table(f"{self.version.folder}/{ANCHORS}")
        tables = {ROWS: rows, ANCHORS: pa.concat_tables([old, rows.take(chosen)])}
        files = adapter_files(adapter) | {REFERENCE: self.usage.to_bytes()}
        if FISHER_FILE not in files and self._fisher_updates(adapter):
            before = f"{self.version.folder}/{FISHER_FILE}"
            files[FISHER_FILE] = self.run.storage.read_bytes(before)
        return files | {name: _parquet(table) for name, table in tables.items()}

    def _fisher_updates(self, adapter: Artifact) -> int:
        if f"{ADAPTER}/{FISHER_FILE}" in adapter.files:
            return self.parent.updates + 1
        # The parent's says nothing of weights that began anew.
        return 0 if self.config.continual.method == "full_retrain" else self.parent.updates

    def _about(self, adapter: Artifact, subset: Artifact, verdict: Verdict) -> dict[str, Any]:
        return {
            "kind": "update",
            "method": self.config.continual.method,
            "parent": self.version.number,
            "fingerprint": adapter.fingerprint,
            "fisher_updates": self._fisher_updates(adapter),
            "rows": self.parent.rows.num_rows + subset.summary["rows"],
            "usage": {
                "path": self.config.corpora.usage[0].path,
                "content": self.content,
                "prompts": len(self.usage.usage),
            },
            "drift": asdict(self.drift()),
            "subset": dict(subset.summary),
            "training": dict(adapter.summary),
            **asdict(verdict),
        }


def _history(run: RunFolder, language: str, version: Version) -> pa.Table:
    """All rows a version was trained on, its parents' first."""
    line = run.registry(language).line_of(version)
    return pa.concat_tables(run.storage.read_table(f"{v.folder}/{ROWS}") for v in line)


def fisher_updates(storage: Storage, version: Version) -> int:
    """How many updates a version's Fisher information is the mean of; 0 where it has none."""
    if "fisher_updates" in version.about:
        return int(version.about["fisher_updates"])
    # Older versions counted all updates, and did not carry the file past one that made none.
    kept = storage.exists(f"{version.folder}/{FISHER_FILE}")
    return int(version.about.get("updates", 1)) if kept else 0


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    data: bytes = sink.getvalue().to_pybytes()
    return data
