"""Score base and adapter of every language, languages side by side, one base load a worker.

What is cached is the score of each item by one model, so a new budget scores new adapters only
and the base never twice.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow.compute as pc
import ray
from ray.exceptions import RayError, RayTaskError

from compass_ray import artifacts
from compass_ray.artifacts import Artifact, Storage
from compass_ray.config import Config, Evaluation, Source, Training
from compass_ray.corpora.stage import Corpus
from compass_ray.errors import UserError, root_cause
from compass_ray.evaluation.benchmarks import Benchmark, Lacking, benchmark
from compass_ray.evaluation.scores import Comparison
from compass_ray.imports import load_peft
from compass_ray.models import for_workers, model_identity
from compass_ray.progress import Progress
from compass_ray.resources import WorkerShape, check_gpu, cluster, worker_shape
from compass_ray.training.launch import ADAPTER

if TYPE_CHECKING:
    from compass_ray.evaluation.harness import Harness

log = logging.getLogger(__name__)

STAGE = "evaluate"
VERSION = 2
ITEMS = "items.parquet"
RETRIES = 3
PATIENCE_S = 10.0
"""How long no worker has a place before that is told."""

Model = Literal["base", "adapter"]


@dataclass(frozen=True)
class Evaluated:
    """Scored items of every language and task, and why there are none where there are none.

    ``lacking`` has the reason where a task has no items for a language, ``failures`` the cause
    where scoring them failed, both by language and task.
    """

    comparisons: tuple[Comparison, ...]
    reused_items: int
    computed_items: int
    lacking: Mapping[tuple[str, str], str] = field(default_factory=dict)
    failures: Mapping[tuple[str, str], str] = field(default_factory=dict)

    def whole(self) -> Evaluated:
        """Itself. Raises ``RuntimeError`` if anything failed, for who needs all of it."""
        for (language, task), cause in self.failures.items():
            raise RuntimeError(f"{language} {task} could not be scored: {cause}")
        return self


@dataclass(frozen=True)
class _Job:
    """Score one language's items of one task by one model."""

    storage: Storage
    fingerprint: str
    language: str
    task: str
    benchmark: Benchmark
    adapter: Artifact | None

    @property
    def model(self) -> Model:
        return "adapter" if self.adapter else "base"

    @property
    def name(self) -> str:
        return f"{self.language} {self.task} {self.model}"


def on_items(config: Config, path: str) -> Config:
    """The same run, scored on the items of a file, folder or glob and on nothing else."""
    corpora = config.corpora.model_copy(update={"evaluation": [Source(path=path)]})
    tasks = config.evaluation.model_copy(update={"tasks": ["items"]})
    return config.model_copy(update={"corpora": corpora, "evaluation": tasks})


def evaluate(
    config: Config, storage: Storage, corpus: Corpus, adapters: Mapping[str, Artifact]
) -> Evaluated:
    """Item by item, base beside adapter, for every language that has an adapter and items.

    A pass that fails takes no other with it; called again, only what failed is tried again.
    """
    asked = {
        (language, task): benchmark(config, storage, corpus, task, language)
        for language in adapters
        for task in config.evaluation.tasks
    }
    lacking = {key: found.reason for key, found in asked.items() if isinstance(found, Lacking)}
    for (language, task), reason in lacking.items():
        log.warning("evaluate %s: %s has no items for it (%s); not scored", language, task, reason)
    jobs = _jobs(config, storage, asked, adapters)
    found = artifacts.find_all(storage, STAGE, (job.fingerprint for job in jobs.values()))
    missing = {job.fingerprint: job for job in jobs.values() if job.fingerprint not in found}
    made, causes = _score(config, list(missing.values()))
    found |= made
    failures = {
        (language, task): causes[job.fingerprint]
        for (language, task, _), job in jobs.items()
        if job.fingerprint in causes
    }
    passes = {key: found[job.fingerprint] for key, job in jobs.items() if key[:2] not in failures}
    _warn_of_mixed(passes)
    scored = {key: done.read_table(ITEMS) for key, done in passes.items()}
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
        failures=failures,
    )


def _warn_of_mixed(passes: Mapping[tuple[str, str, Model], Artifact]) -> None:
    """Say so where a score in the cache is from a machine of another kind than the other one."""
    for (language, task, model), done in passes.items():
        base = passes.get((language, task, "base"), done)
        # Scores of earlier versions do not tell.
        both = [scored.summary.get("precision") for scored in (base, done)]
        if model == "adapter" and all(both) and both[0] != both[1]:
            log.warning(
                "evaluate %s: %s was scored in %s by the base and in %s by the adapter; a part of "
                "their difference is rounding",
                *(language, task, *both),
            )


def find_scored(
    config: Config, storage: Storage, corpus: Corpus, adapters: Mapping[str, Artifact]
) -> frozenset[tuple[str, str, Model]]:
    """The passes that are scored already, those of the base where there is no adapter yet too."""
    asked = {
        (language, task): benchmark(config, storage, corpus, task, language)
        for language in config.languages
        for task in config.evaluation.tasks
    }
    jobs = _jobs(config, storage, asked, adapters)
    found = artifacts.find_all(storage, STAGE, (job.fingerprint for job in jobs.values()))
    return frozenset(key for key, job in jobs.items() if job.fingerprint in found)


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
        for model, adapter in _models(config.evaluation, adapters.get(language))
    }


def _models(
    config: Evaluation, trained: Artifact | None
) -> Iterator[tuple[Model, Artifact | None]]:
    if config.baseline:
        yield "base", None
    if trained:
        yield "adapter", trained


def _fingerprint(
    config: Config, language: str, task: str, asked: Benchmark, adapter: Artifact | None
) -> str:
    settings = config.evaluation
    four_bits = {"base": "4 bits"} if config.training.adapter.type == "qlora" else {}
    return artifacts.fingerprint(
        stage=STAGE,
        version=VERSION,
        language=language,
        task=task,
        asked=asked.identity(),
        limit=settings.limit,
        num_fewshot=settings.num_fewshot,
        chat_template=settings.chat_template,
        model=model_identity(config.training.model),
        system_prompt=config.training.system_prompt,
        adapter=adapter.fingerprint if adapter else None,
        **four_bits,
    )


def _score(config: Config, jobs: list[_Job]) -> tuple[dict[str, Artifact], dict[str, str]]:
    """Scored items and causes of failures, both by fingerprint."""
    if not jobs:
        return {}, {}
    shape = worker_shape(config, cluster())
    workers = max(1, min(cluster().slots(shape.cpus, shape.gpus), len(jobs)))
    environment = {"OMP_NUM_THREADS": str(int(shape.cpus)), "TOKENIZERS_PARALLELISM": "false"}
    worker = ray.remote(_Worker).options(
        num_cpus=shape.cpus, num_gpus=shape.gpus, runtime_env={"env_vars": environment}
    )
    described = for_workers(config.training), config.evaluation, shape
    log.info("evaluate: %d passes on %d workers", len(jobs), workers)
    passes = _Passes(lambda: worker.remote(*described), jobs)
    passes.run(workers)
    return passes.done, passes.causes


class _Passes:
    """Passes over items, each given to a worker that has a place and nothing to do.

    A worker without a place may never get one, while another could do its pass. And one for which
    no pass is left gives up its place, since one that replaces a lost worker, or another run, may
    be waiting for it.

    A pass whose worker is lost goes to the next that is free, ``RETRIES`` times at most: a node may
    have left, or the pass may be what kills workers. Ray's own retries would keep it for the worker
    that was lost, and are over before Ray knows that a node is gone.
    """

    def __init__(self, start_worker: Callable[[], Any], jobs: Sequence[_Job]) -> None:
        self.done: dict[str, Artifact] = {}
        self.causes: dict[str, str] = {}
        self._start_worker = start_worker
        self._waiting = list(jobs)
        # Without a job, a worker has yet to say that it has a place.
        self._asked: dict[ray.ObjectRef[Any], tuple[Any, _Job | None]] = {}
        self._losses: Counter[str] = Counter()
        self._progress = Progress("evaluate", len(jobs), "passes")

    def run(self, workers: int) -> None:
        try:
            for _ in range(workers):
                self._add_worker()
            if not ray.wait(list(self._asked), timeout=PATIENCE_S)[0]:
                log.info("evaluate: waiting for a place to be free")
            while self._waiting or any(job for _, job in self._asked.values()):
                (answer,), _ = ray.wait(list(self._asked))
                worker, job = self._asked.pop(answer)
                lives = self._settle(answer, job)
                if not self._waiting:
                    ray.kill(worker)
                elif lives:
                    job = self._waiting.pop(0)
                    self._asked[worker.score.remote(job)] = (worker, job)
                else:
                    ray.kill(worker)
                    self._add_worker()
        finally:
            for worker, _ in self._asked.values():
                ray.kill(worker)

    def _add_worker(self) -> None:
        worker = self._start_worker()
        self._asked[worker.here.remote()] = (worker, None)

    def _settle(self, answer: ray.ObjectRef[Any], job: _Job | None) -> bool:
        """Write down what came of a pass; False if its worker is gone for good."""
        lives = True
        try:
            result = ray.get(answer)
            if job is None:
                return lives
            self.done[job.fingerprint] = result
            note = f"{job.name}: {result.summary['accuracy']:.3f}"
        except RayError as error:
            lives = isinstance(error, RayTaskError)
            if lives and isinstance(error.cause, UserError):
                raise UserError(str(error.cause)) from None
            if not lives and self._is_tried_again(job):
                return lives
            # Where no worker can start, each takes a pass along, so that there is an end.
            job = job or self._waiting.pop(0)
            note, cause = job.name, root_cause(error)
            self.causes[job.fingerprint] = cause
            log.error("evaluate %s failed: %s", note, cause)
        self._progress.at(len(self.done) + len(self.causes), note)
        return lives

    def _is_tried_again(self, job: _Job | None) -> bool:
        """Whether that a worker is lost, with a pass or before it had one, is not the end of it."""
        key = job.fingerprint if job else ""
        self._losses[key] += 1
        if self._losses[key] > RETRIES:
            return job is None and not self._waiting
        if job:
            self._waiting.insert(0, job)
        return True


class _Worker:
    """Holds one base model and scores whatever it is given."""

    def __init__(self, training: Training, settings: Evaluation, shape: WorkerShape) -> None:
        self._training, self._settings, self._shape = training, settings, shape
        self._built: tuple[Benchmark, Any] | None = None

    # Not loaded before a job: what fails then is the job, with its cause, and not the actor.
    @cached_property
    def _harness(self) -> Harness:
        load_peft(quantised=self._training.adapter.type == "qlora")
        from compass_ray.evaluation.harness import Harness

        check_gpu(self._shape)
        return Harness(self._training, self._settings)

    def here(self) -> None:
        """Answers as soon as the worker has a place; nothing is loaded yet."""

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
                "model": job.model,
                "items": scored.num_rows,
                "accuracy": pc.mean(scored["correct"]).as_py(),
                "unparsed": 1 - pc.mean(scored["parsed"]).as_py(),
                "precision": harness.precision,
            }
        )
