"""Adapters on Ray Train: one ``TorchTrainer`` per language, as many side by side as fit.

A language that fails is reported with its cause and does not take the others down. Everything
that trains lives in ``loop``; here is only where it runs and what survives a crash.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from compass_ray import artifacts
from compass_ray.artifacts import Artifact, Storage
from compass_ray.claims import claim, claim_name
from compass_ray.config import Config, Training
from compass_ray.errors import root_cause
from compass_ray.imports import load_peft
from compass_ray.models import for_workers, model_identity
from compass_ray.resources import WorkerShape, cluster, parallel_languages, worker_shape
from compass_ray.sampling.subset import SUBSET
from compass_ray.training.board import Reader, make_board
from compass_ray.training.placement import Places, free, free_abandoned, mark
from compass_ray.training.tracking import Trackers

log = logging.getLogger(__name__)

STAGE = "train"
VERSION = 3
ADAPTER = "adapter"
LOSS_FILE = "loss.parquet"
ANCHORS = "anchors.parquet"
# Train's name of a run, and so of the folder in which its checkpoints are.
RUN = "adapter"
# Seconds between two looks for what stopped trials and dead controllers have left behind.
SWEEP_S = 30
# Train's controller takes one report at a look and by default looks every two seconds: checkpoints
# that come faster wait for it, and so does the end of every training.
LOOK_ENV, LOOK_S = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25"


@dataclass(frozen=True)
class StartFrom:
    """An adapter that training goes on from (see ``anchoring.Start``), by reference.

    Attributes:
        folder: where in the storage its PEFT files, anchors and Fisher information are.
        fingerprint: of the training that made it.
        anchors: names the anchors; empty where none are used.
    """

    folder: str
    fingerprint: str
    anchors: str
    ewc_lambda: float
    replay_beta: float
    updates: int


@dataclass(frozen=True)
class Job:
    """All that one language's training needs, small enough to send anywhere."""

    language: str
    fingerprint: str
    subset: Artifact
    training: Training
    seed: int
    workers: int
    shape: WorkerShape
    start: StartFrom | None = None

    @property
    def claim(self) -> str:
        return claim_name(self.subset.storage, STAGE, self.fingerprint)


@dataclass
class Outcome:
    """Adapters by language, which of them were there before, and the cause of each failure."""

    adapters: dict[str, Artifact] = field(default_factory=dict)
    reused: set[str] = field(default_factory=set)
    failures: dict[str, str] = field(default_factory=dict)


def adapter_fingerprint(
    config: Config, language: str, subset: Artifact, start: StartFrom | None = None
) -> str:
    # The folder does not change what is trained, so it stays out of the fingerprint.
    from_there = {"start": asdict(replace(start, folder=""))} if start else {}
    return artifacts.fingerprint(
        stage=STAGE,
        version=VERSION,
        language=language,
        training=config.training.identity() | {"model": model_identity(config.training.model)},
        seed=config.run.seed,
        # Subjects and sources of the same rows are nothing to the adapter.
        subset=subset.summary.get("content", subset.fingerprint),
        **from_there,
    )


def train_languages(
    config: Config,
    storage: Storage,
    subsets: Mapping[str, Artifact],
    board: Any = None,
    starts: Mapping[str, StartFrom] | None = None,
) -> Outcome:
    """Train, or find in the cache, the adapter of every language in ``subsets``.

    A language in ``starts`` goes on from there; any other begins anew. Losses by step are left on
    ``board``, where a caller brings one of ``make_board``.
    """
    outcome = Outcome()
    waiting: list[Job] = []
    for language, subset in subsets.items():
        start = (starts or {}).get(language)
        fingerprint = adapter_fingerprint(config, language, subset, start)
        done = artifacts.find(storage, STAGE, fingerprint)
        if done:
            outcome.adapters[language] = done
            outcome.reused.add(language)
            continue
        waiting.append(
            Job(
                language=language,
                fingerprint=fingerprint,
                subset=subset,
                training=for_workers(config.training),
                seed=config.run.seed,
                workers=config.training.workers_per_language,
                shape=worker_shape(config, cluster()),
                start=start,
            )
        )
    if waiting:
        trackers = Trackers(config, storage, {job.language: job.fingerprint for job in waiting})
        parallel = parallel_languages(config, cluster())
        _run_side_by_side(waiting, parallel, board or make_board(), trackers, outcome)
    return outcome


def _run_side_by_side(
    waiting: list[Job], parallel: int, board: Any, trackers: Trackers, outcome: Outcome
) -> None:
    log.info("train: %d languages, %d side by side", len(waiting), parallel)
    # Longest first, so that no long one is left to run alone at the end.
    waiting.sort(key=lambda job: -job.subset.summary["rows"])
    reader = Reader(board, trackers)
    environment = {
        # Train frees what a dead controller held only if it finds this Ray, and by itself it finds
        # none where there are several on one machine.
        "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
        LOOK_ENV: os.environ.get(LOOK_ENV, LOOK_S),
    }
    fit = _fit.options(runtime_env={"env_vars": environment})
    running: dict[ray.ObjectRef[Artifact], Job] = {}
    places = Places()
    sweep = 0.0
    while waiting or running:
        while waiting and len(running) < parallel:
            job = waiting.pop(0)
            running[fit.remote(job, board)] = job
            log.info(
                "train %s: %d rows, starting workers", job.language, job.subset.summary["rows"]
            )
        done, _ = ray.wait(list(running), timeout=2)
        reader.read()
        if time.monotonic() >= sweep:
            free_abandoned()
            places.warn(running.values())
            sweep = time.monotonic() + SWEEP_S
        for ref in done:
            job = running.pop(ref)
            try:
                outcome.adapters[job.language] = ray.get(ref)
                _tell_unpacked(job, outcome.adapters[job.language])
            except ray.exceptions.RayError as error:
                cause = reader.failure(job.language) or root_cause(error)
                outcome.failures[job.language] = cause
                log.error("train %s failed: %s", job.language, cause)
            trackers.close(job.language, failed=job.language in outcome.failures)


def _tell_unpacked(job: Job, adapter: Artifact) -> None:
    if job.training.packing and not adapter.summary["packed"]:
        log.warning(
            "train %s: rows were not packed, since layers of %s carry on from one to the next",
            job.language,
            job.training.model,
        )


def back_off(failures: int) -> float:
    """Seconds to wait after so many failures: 2, 4, 8 and so on, a minute at most."""
    return min(60.0, 2.0**failures)


# Ray's own retries are for a node that is lost with this task on it; an exception is not retried.
@ray.remote(num_cpus=0, max_retries=3)
def _fit(job: Job, board: Any) -> Artifact:
    storage = job.subset.storage
    with claim(storage, STAGE, job.fingerprint):
        return artifacts.find(storage, STAGE, job.fingerprint) or _train(job, board)


def _train(job: Job, board: Any) -> Artifact:
    """Start workers, and again from the last checkpoint when they or their controller die."""
    from ray.train import TrainingFailedError

    storage = job.subset.storage
    # Train V2 resumes by (storage_path, name): both are a function of the job's fingerprint.
    runs = f"{artifacts.entry_path(STAGE, job.fingerprint)}/runs"
    artifact = None
    failures = reached = 0
    while artifact is None:
        # What a controller left that died, under this task or one that Ray started before it.
        free(job.claim)
        try:
            artifact = _fit_once(job, board, storage.location(runs))
        except (TrainingFailedError, ray.exceptions.RayActorError, OSError) as error:
            # A run on another Ray cluster, which no claim keeps from this work, may have done it
            # and deleted the folder that both were at.
            artifact = artifacts.find(storage, STAGE, job.fingerprint)
            if artifact:
                break
            step = _committed_step(storage, f"{runs}/{RUN}")
            # Failures are counted since training last got on; over weeks there may be many.
            failures = 1 if step > reached else failures + 1
            reached = step
            if failures > job.training.max_failures:
                raise
            board.on_restart.remote(job.language, root_cause(error))
            time.sleep(back_off(failures))
    storage.delete_dir(runs)
    return artifact


def _fit_once(job: Job, board: Any, runs: str) -> Artifact:
    with _own_interrupts():
        result = _trainer(job, board, runs).fit()
    if result.checkpoint is None:
        raise RuntimeError("training ended without a checkpoint")
    with result.checkpoint.as_directory() as folder:
        return _commit(job, Path(folder))


def _committed_step(storage: Storage, run: str) -> int:
    """The step of the newest checkpoint that Train can go on from, 0 if there is none."""
    from ray.train import Result

    try:
        found = Result.from_path(storage.path(run), storage.filesystem)
    except Exception:
        # There is none yet, or it is one from which Train could not go on either.
        return 0
    return int(found.metrics["step"]) if found.metrics else 0


def _trainer(job: Job, board: Any, runs: str) -> Any:
    from ray.train import CheckpointConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    on_gpu = job.shape.gpus > 0
    threads = str(max(1, int(job.shape.cpus)))
    environment = {"OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
    if not on_gpu:
        environment["DS_ACCELERATOR"] = "cpu"
    # Preemption is Train's to handle, which waits it out and counts it apart; every other failure
    # comes up here, since Train starts again at once and its controller may be what died.
    return TorchTrainer(
        _worker,
        train_loop_config={"job": job, "board": board},
        torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=job.workers,
            use_gpu=on_gpu,
            resources_per_worker=_reservation(job),
        ),
        run_config=RunConfig(
            name=RUN,
            storage_path=runs,
            checkpoint_config=CheckpointConfig(num_to_keep=job.training.keep_checkpoints),
            worker_runtime_env={"env_vars": environment},
        ),
    )


@contextmanager
def _own_interrupts() -> Iterator[None]:
    """Put the handler of interrupts back: Train's keeps its controller alive for ever."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before or signal.default_int_handler)


def _reservation(job: Job) -> dict[str, float]:
    wanted = {"CPU": job.shape.cpus, "GPU": job.shape.gpus, "memory": mark(job.claim)}
    return {name: amount for name, amount in wanted.items() if amount}


def _commit(job: Job, checkpoint: Path) -> Artifact:
    from compass_ray.training.loop import ADAPTER_FOLDER, PROGRESS_FILE

    progress = json.loads(Path(checkpoint, PROGRESS_FILE).read_text())
    if progress["summary"] is None:
        raise RuntimeError("training stopped before its last step")
    draft = artifacts.begin(job.subset.storage, STAGE, job.fingerprint)
    for file in sorted(Path(checkpoint, ADAPTER_FOLDER).iterdir()):
        draft.write_bytes(f"{ADAPTER}/{file.name}", file.read_bytes())
    draft.write_table(LOSS_FILE, pa.Table.from_pylist(progress["history"]))
    return draft.commit({**progress["summary"], "language": job.language})


class _RayReporter:
    def __init__(self, language: str, board: Any) -> None:
        self._language = language
        self._board = board

    def resume_from(self) -> Path | None:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return None
        return Path(checkpoint.to_directory(tempfile.mkdtemp()))

    def on_step(self, step: Any, total: int) -> None:
        self._board.on_step.remote(self._language, asdict(step), total)

    def save(self, folder: Path | None, metrics: Mapping[str, Any]) -> None:
        checkpoint = ray.train.Checkpoint.from_directory(folder) if folder else None
        ray.train.report(dict(metrics), checkpoint=checkpoint)


def _worker(loop_config: dict[str, Any]) -> None:
    import torch

    job, board = loop_config["job"], loop_config["board"]
    load_peft(quantised=job.training.adapter.type == "qlora")
    from compass_ray.training.group import join_group
    from compass_ray.training.loop import TrainingError, train

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    join_group(on_gpu=job.shape.gpus > 0)
    rows = job.subset.read_table(SUBSET, columns=["prompt", "response"])
    try:
        with _started(job) as start:
            train(
                job.training,
                rows["prompt"].to_pylist(),
                rows["response"].to_pylist(),
                job.seed,
                _RayReporter(job.language, board),
                start,
            )
    except TrainingError as error:
        # Returning instead of raising keeps Ray Train from retrying what would fail again.
        ray.get(board.on_failure.remote(job.language, str(error)))


@contextmanager
def _started(job: Job) -> Iterator[Any]:
    """The adapter to go on from, on this machine; None where there is none."""
    if job.start is None:
        yield None
        return
    from compass_ray.training.anchoring import Start

    storage = job.subset.storage
    anchors = storage.read_table(f"{job.start.folder}/{ANCHORS}", ["prompt", "response"])
    with storage.as_local_dir(job.start.folder) as folder:
        yield Start(
            adapter=Path(folder),
            prompts=anchors["prompt"].to_pylist(),
            responses=anchors["response"].to_pylist(),
            ewc_lambda=job.start.ewc_lambda,
            replay_beta=job.start.replay_beta,
            updates=job.start.updates,
        )
