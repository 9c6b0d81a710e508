"""Score base and adapter of every language, languages side by side, one base load a worker.

What is cached is the score of each item by one model, so a new budget scores new adapters only
and the base never twice.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import pyarrow.compute as pc
import ray
from ray.exceptions import RayTaskError
from ray.util import ActorPool

from compass_ray import artifacts
from compass_ray.artifacts import Artifact, Storage
from compass_ray.config import Config, Evaluation, Source, Training
from compass_ray.corpora.stage import Corpus
from compass_ray.errors import UserError
from compass_ray.evaluation.benchmarks import Benchmark, Lacking, benchmark
from compass_ray.evaluation.scores import Comparison
from compass_ray.models import for_workers
from compass_ray.progress import Progress
from compass_ray.resources import WorkerShape, check_gpu, cluster, worker_shape
from compass_ray.training.launch import ADAPTER

if TYPE_CHECKING:
    from compass_ray.evaluation.harness import Harness

log = logging.getLogger(__name__)

STAGE = "evaluate"
VERSION = 2
ITEMS = "items.parquet"

Model = Literal["base", "adapter"]


@dataclass(frozen=True)
class Evaluated:
    """Scored items of every language and task, and why there are none where there are none."""

    comparisons: tuple[Comparison, ...]
    reused_items: int
    computed_items: int
    lacking: Mapping[tuple[str, str], str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Job:
    """Score one language's items of one task by one model."""

    storage: Storage
    fingerprint: str
    language: str
    task: str
    benchmark: Benchmark
    adapter: Artifact | None


def on_items(config: Config, path: str) -> Config:
    """The same run, scored on the items of a file, folder or glob and on nothing else."""
    corpora = config.corpora.model_copy(update={"evaluation": [Source(path=path)]})
    tasks = config.evaluation.model_copy(update={"tasks": ["items"]})
    return config.model_copy(update={"corpora": corpora, "evaluation": tasks})


def evaluate(
    config: Config, storage: Storage, corpus: Corpus, adapters: Mapping[str, Artifact]
) -> Evaluated:
    """Item by item, base beside adapter, for every language that has an adapter and items."""
    asked = {
        (language, task): benchmark(config, storage, corpus, task, language)
        for language in adapters
        for task in config.evaluation.tasks
    }
    lacking = {key: found.reason for key, found in asked.items() if isinstance(found, Lacking)}
    for (language, task), reason in lacking.items():
        log.warning("evaluate %s: %s has no items for it (%s); not scored", language, task, reason)
    jobs = _jobs(config, storage, asked, adapters)
    keys = {job.fingerprint for job in jobs.values()}
    found = {key: artifacts.find(storage, STAGE, key) for key in keys}
    missing = {job.fingerprint: job for job in jobs.values() if found[job.fingerprint] is None}
    for artifact in _score(config, list(missing.values())):
        found[artifact.fingerprint] = artifact
    scored = {
        key: cast(Artifact, found[job.fingerprint]).read_table(ITEMS) for key, job in jobs.items()
    }
    comparisons = [
        Comparison(language, task, scored.get((language, task, "base")), items)
        for (language, task, model), items in scored.items()
        if model == "adapter"
    ]
    counts = {key: scored[key].num_rows for key in scored}
    return Evaluated(
        tuple(comparisons),
        reused_items=sum(n for key, n in counts.items() if jobs[key].fingerprint not in missing),
        computed_items=sum(n for key, n in counts.items() if jobs[key].fingerprint in missing),
        lacking=lacking,
    )


def count_cached(
    config: Config, storage: Storage, corpus: Corpus, adapters: Mapping[str, Artifact]
) -> int:
    """How many passes over the items, base and adapters, are scored already."""
    asked = {
        (language, task): benchmark(config, storage, corpus, task, language)
        for language in adapters
        for task in config.evaluation.tasks
    }
    jobs = _jobs(config, storage, asked, adapters).values()
    return sum(artifacts.find(storage, STAGE, job.fingerprint) is not None for job in jobs)


def _jobs(
    config: Config,
    storage: Storage,
    asked: Mapping[tuple[str, str], Benchmark | Lacking],
    adapters: Mapping[str, Artifact],
) -> dict[tuple[str, str, Model], _Job]:
    return {
        (language, task, model): _Job(
            storage,
            _fingerprint(config, language, task, found, adapter),
            *(language, task, found, adapter),
        )
        for (language, task), found in asked.items()
        if not isinstance(found, Lacking)
        for model, adapter in _models(config.evaluation, adapters[language])
    }


def _models(config: Evaluation, trained: Artifact) -> Sequence[tuple[Model, Artifact | None]]:
    adapter: tuple[Model, Artifact | None] = ("adapter", trained)
    return [("base", None), adapter] if config.baseline else [adapter]


def _fingerprint(
    config: Config, language: str, task: str, asked: Benchmark, adapter: Artifact | None
) -> str:
    settings = config.evaluation
    return artifacts.fingerprint(
        stage=STAGE,
        version=VERSION,
        language=language,
        task=task,
        asked=asked.identity(),
        limit=settings.limit,
        num_fewshot=settings.num_fewshot,
        chat_template=settings.chat_template,
        model=config.training.model,
        system_prompt=config.training.system_prompt,
        adapter=adapter.fingerprint if adapter else None,
    )


def _score(config: Config, jobs: list[_Job]) -> Sequence[Artifact]:
    if not jobs:
        return []
    shape = worker_shape(config, cluster())
    workers = max(1, min(cluster().slots(shape.cpus, shape.gpus), len(jobs)))
    environment = {"OMP_NUM_THREADS": str(int(shape.cpus)), "TOKENIZERS_PARALLELISM": "false"}
    # A worker lost with its node comes back elsewhere; one that its work kills must come to an end.
    worker = ray.remote(_Worker).options(
        num_cpus=shape.cpus,
        num_gpus=shape.gpus,
        max_restarts=3,
        max_task_retries=3,
        runtime_env={"env_vars": environment},
    )
    pool = ActorPool(
        [
            worker.remote(for_workers(config.training), config.evaluation, shape)
            for _ in range(workers)
        ]
    )
    log.info("evaluate: %d passes on %d workers", len(jobs), workers)
    progress = Progress("evaluate", len(jobs), "passes")
    done: list[Artifact] = []
    try:
        for artifact in pool.map_unordered(lambda actor, job: actor.score.remote(job), jobs):
            done.append(artifact)
            told = artifact.summary
            note = f"{told['language']} {told['task']} {told['model']}: {told['accuracy']:.3f}"
            progress.at(len(done), note)
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from None
        raise
    return done


class _Worker:
    """Holds one base model and scores whatever it is given."""

    def __init__(self, training: Training, settings: Evaluation, shape: WorkerShape) -> None:
        self._training, self._settings, self._shape = training, settings, shape
        self._built: tuple[Benchmark, Any] | None = None

    # Not loaded before a job: what fails then is the job, with its cause, and not the actor.
    @cached_property
    def _harness(self) -> Harness:
        from compass_ray.evaluation.harness import Harness

        check_gpu(self._shape)
        training = self._training
        return Harness(training.model, self._settings, training.system_prompt)

    def score(self, job: _Job) -> Artifact:
        harness = self._harness
        # Base and adapter follow each other on the same items.
        if self._built is None or self._built[0] != job.benchmark:
            self._built = (job.benchmark, job.benchmark.build())
        tasks = self._built[1]
        if job.adapter is None:
            scored = harness.score(tasks, None)
        else:
            with job.storage.as_local_dir(f"{job.adapter.folder()}/{ADAPTER}") as folder:
                scored = harness.score(tasks, Path(folder))
        draft = artifacts.begin(job.storage, STAGE, job.fingerprint)
        draft.write_table(ITEMS, scored)
        return draft.commit(
            {
                "language": job.language,
                "task": job.task,
                "model": "adapter" if job.adapter else "base",
                "items": scored.num_rows,
                "accuracy": pc.mean(scored["correct"]).as_py(),
                "unparsed": 1 - pc.mean(scored["parsed"]).as_py(),
            }
        )
