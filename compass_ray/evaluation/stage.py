"""Score base and adapter of every language, languages side by side, one base load a worker.

What is cached is the score of each item by one model, so a new budget scores new adapters only
and the base never twice.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.util import ActorPool

from compass_ray import artifacts
from compass_ray.artifacts import Artifact, Storage
from compass_ray.config import Config, Evaluation, Training
from compass_ray.corpora.stage import Corpus, Part
from compass_ray.evaluation.scores import Comparison
from compass_ray.progress import Progress
from compass_ray.resources import cluster, worker_shape
from compass_ray.training.launch import ADAPTER

log = logging.getLogger(__name__)

STAGE = "evaluate"
VERSION = 1
ITEMS = "items.parquet"

Model = Literal["base", "adapter"]


@dataclass(frozen=True)
class Evaluated:
    comparisons: tuple[Comparison, ...]
    reused_items: int
    computed_items: int


@dataclass(frozen=True)
class _Job:
    """Score one language's items by one model."""

    storage: Storage
    fingerprint: str
    language: str
    task: str
    parts: tuple[Part, ...]
    limit: int | None
    adapter: Artifact | None


def evaluate(
    config: Config, storage: Storage, corpus: Corpus, adapters: Mapping[str, Artifact]
) -> Evaluated:
    """Item by item, base beside adapter, for every language that has an adapter and items."""
    jobs = _jobs(config, storage, corpus, adapters)
    for language in adapters:
        if not _parts(corpus, language):
            log.warning("evaluate %s: no items in corpora.evaluation; not scored", language)
    keys = {job.fingerprint for job in jobs.values()}
    found = {key: artifacts.find(storage, STAGE, key) for key in keys}
    missing = [job for job in jobs.values() if found[job.fingerprint] is None]
    for artifact in _score(config, missing):
        found[artifact.fingerprint] = artifact
    scored = {
        key: cast(Artifact, found[job.fingerprint]).read_table(ITEMS) for key, job in jobs.items()
    }
    comparisons = [
        Comparison(language, task, scored.get((language, task, "base")), items)
        for (language, task, model), items in scored.items()
        if model == "adapter"
    ]
    fresh = {job.fingerprint for job in missing}
    counts = {key: scored[key].num_rows for key in scored}
    return Evaluated(
        tuple(comparisons),
        reused_items=sum(n for key, n in counts.items() if jobs[key].fingerprint not in fresh),
        computed_items=sum(n for key, n in counts.items() if jobs[key].fingerprint in fresh),
    )


def count_cached(
    config: Config, storage: Storage, corpus: Corpus, adapters: Mapping[str, Artifact]
) -> int:
    """How many passes over the items, base and adapters, are scored already."""
    jobs = _jobs(config, storage, corpus, adapters).values()
    return sum(artifacts.find(storage, STAGE, job.fingerprint) is not None for job in jobs)


def _jobs(
    config: Config, storage: Storage, corpus: Corpus, adapters: Mapping[str, Artifact]
) -> dict[tuple[str, str, Model], _Job]:
    return {
        (language, task, model): _job(config, storage, corpus, language, task, adapter)
        for language, trained in adapters.items()
        for task in config.evaluation.tasks
        for model, adapter in _models(config.evaluation, trained)
        if _parts(corpus, language)
    }


def _models(config: Evaluation, trained: Artifact) -> Sequence[tuple[Model, Artifact | None]]:
    adapter: tuple[Model, Artifact | None] = ("adapter", trained)
    return [("base", None), adapter] if config.baseline else [adapter]


def _parts(corpus: Corpus, language: str) -> tuple[Part, ...]:
    return tuple(part for part in corpus.of("evaluation") if language in part.languages)


def _job(
    config: Config,
    storage: Storage,
    corpus: Corpus,
    language: str,
    task: str,
    adapter: Artifact | None,
) -> _Job:
    parts = _parts(corpus, language)
    fingerprint = artifacts.fingerprint(
        stage=STAGE,
        version=VERSION,
        language=language,
        task=task,
        limit=config.evaluation.limit,
        items=[part.content for part in parts],
        model=config.training.model,
        system_prompt=config.training.system_prompt,
        adapter=adapter.fingerprint if adapter else None,
    )
    limit = config.evaluation.limit
    return _Job(storage, fingerprint, language, task, parts, limit, adapter)


def _score(config: Config, jobs: list[_Job]) -> Sequence[Artifact]:
    if not jobs:
        return []
    shape = worker_shape(config, cluster())
    workers = max(1, min(cluster().slots(shape.cpus, shape.gpus), len(jobs)))
    environment = {"OMP_NUM_THREADS": str(int(shape.cpus)), "TOKENIZERS_PARALLELISM": "false"}
    worker = ray.remote(_Worker).options(
        num_cpus=shape.cpus, num_gpus=shape.gpus, runtime_env={"env_vars": environment}
    )
    pool = ActorPool(
        [worker.remote(config.training, config.evaluation.batch_size) for _ in range(workers)]
    )
    log.info("evaluate: %d passes on %d workers", len(jobs), workers)
    progress = Progress("evaluate", len(jobs), "passes")
    done: list[Artifact] = []
    for artifact in pool.map_unordered(lambda actor, job: actor.score.remote(job), jobs):
        done.append(artifact)
        told = artifact.summary
        progress.at(len(done), f"{told['language']} {told['model']}: {told['accuracy']:.3f}")
    return done


class _Worker:
    """Holds one base model and scores whatever it is given."""

    def __init__(self, training: Training, batch_size: int) -> None:
        from compass_ray.evaluation.harness import Harness

        self._harness = Harness(training.model, batch_size, training.system_prompt)

    def score(self, job: _Job) -> Artifact:
        items = _read_items(job)
        if job.adapter is None:
            scored = self._harness.score(items, None)
        else:
            with job.storage.as_local_dir(f"{job.adapter.folder()}/{ADAPTER}") as folder:
                scored = self._harness.score(items, Path(folder))
        draft = artifacts.begin(job.storage, STAGE, job.fingerprint)
        draft.write_table(ITEMS, scored)
        return draft.commit(
            {
                "language": job.language,
                "task": job.task,
                "model": "adapter" if job.adapter else "base",
                "items": scored.num_rows,
                "accuracy": pc.mean(scored["correct"]).as_py(),
            }
        )


def _read_items(job: _Job) -> pa.Table:
    tables = []
    for part in job.parts:
        table = job.storage.read_table(part.path)
        tables.append(table.filter(pc.equal(table["language"], job.language)))
    return pa.concat_tables(tables)[: job.limit]
