"""Ray Tune: which values come next, how many trials at once, and which are stopped early."""

from __future__ import annotations

import logging
import math
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import ray
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from compass_ray.artifacts import Storage
from compass_ray.config import Config
from compass_ray.errors import root_cause
from compass_ray.metrics import record
from compass_ray.progress import INTERVAL_S
from compass_ray.resources import cluster, this_node, worker_shape
from compass_ray.search.results import Ledger, Trial
from compass_ray.search.space import LARGER_IS_BETTER, Values, distributions
from compass_ray.search.text import describe, named
from compass_ray.search.trial import Samplers, SearchTrial

log = logging.getLogger(__name__)

# What a trial's own process takes; it holds no CPU, or trials would keep their trainers waiting.
TRIAL_MEMORY = 300e6
STUDY = "compass_ray"
# A trial that was lost with a node finds in the cache what it has done. One that cannot be run or
# scored is no failure to Tune: that is its result.
RETRIES = 2
ASKS = 100
"""How often Optuna may propose what was tried before it is taken at its word."""

KeyOf = Callable[[Values], str]


def run_trials(
    config: Config,
    storage: Storage,
    contents: list[list[str]],
    key_of: KeyOf,
    grid: Sequence[Values] | None,
    over: Sequence[Trial],
    wanted: int,
) -> list[Trial]:
    """Run the trials of ``grid``, or as many as Optuna still has to propose; return those failed.

    Finished and stopped ones are in the ledger when this returns.
    """
    run = config.run.name
    watcher = _Watcher(run, Ledger(storage, run), key_of, len(over), wanted)
    here = this_node()
    samplers = ray.remote(Samplers).options(num_cpus=0, scheduling_strategy=here).remote()
    settings: dict[str, Any] = {"config": config, "contents": contents, "samplers": samplers}
    folder = f"runs/{config.run.name}/search/tune"
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    # Until it ends, a trial reports its loss and none of the search's other metrics.
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
    # Keeps Tune from printing tables among the log lines.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    if grid is None:
        algorithm: Searcher | None = _Optuna(config, key_of, over)
    else:
        algorithm = None
        settings["values"] = tune.grid_search(list(grid))
    tuner = tune.Tuner(
        tune.with_resources(SearchTrial, {"CPU": 0, "memory": TRIAL_MEMORY}),
        param_space=settings,
        tune_config=tune.TuneConfig(
            search_alg=algorithm,
            scheduler=_scheduler(config),
            num_samples=1 if grid is not None else wanted - len(over),
            max_concurrent_trials=_parallel_trials(config),
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=storage.location(folder),
            callbacks=[watcher],
            # A trial's state is the cache's; Tune has nothing of its own to keep.
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            verbose=0,
        ),
    )
    try:
        with _folder_that_stays():
            tuner.fit()
    finally:
        # Tune holds on to its settings, and with them to the samplers and what they hold.
        ray.kill(samplers)
    storage.delete_dir(folder)
    return watcher.failed


@contextmanager
def _folder_that_stays() -> Iterator[None]:
    """Run Tune in a temporary working directory: the job's own may be replaced while it runs.

    Several nodes on one machine share the job's, and each of them replaces it by a new one when it
    first runs something of the job: this process would then be in a directory that is gone.
    """
    try:
        before = Path.cwd()
    except FileNotFoundError:
        before = Path(tempfile.gettempdir())
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def _parallel_trials(config: Config) -> int:
    """As many as have room for all their trainers at once."""
    if config.search.max_parallel_trials != "auto":
        return config.search.max_parallel_trials
    on = cluster()
    shape = worker_shape(config, on)
    workers = len(config.languages) * config.training.workers_per_language
    return max(1, on.slots(shape.cpus, shape.gpus) // workers)


def _scheduler(config: Config) -> AsyncHyperBandScheduler | None:
    asha = config.search.asha
    if asha is None:
        return None
    return AsyncHyperBandScheduler(
        time_attr="steps",
        metric="loss",
        mode="min",
        grace_period=asha.grace_steps,
        reduction_factor=asha.reduction_factor,
        # Trials end by themselves; no number of steps is too many.
        max_t=10**9,
    )


class _Optuna(OptunaSearch):
    """Optuna that starts from the trials that are over and proposes nothing twice."""

    def __init__(self, config: Config, key_of: KeyOf, over: Sequence[Trial]) -> None:
        metrics = config.search.metrics
        larger = [LARGER_IS_BETTER[metric] for metric in metrics]
        space = distributions(config)
        storage = optuna.storages.InMemoryStorage()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(
            storage=storage,
            study_name=STUDY,
            directions=["maximize" if up else "minimize" for up in larger],
        )
        for trial in over:
            study.add_trial(
                optuna.trial.create_trial(
                    state=optuna.trial.TrialState.COMPLETE
                    if trial.status == "finished"
                    else optuna.trial.TrialState.PRUNED,
                    values=trial.objectives(metrics) if trial.status == "finished" else None,
                    params=dict(trial.values),
                    distributions=space,
                )
            )
        self._key_of = key_of
        self._proposed = {trial.key for trial in over}
        super().__init__(
            space,
            metric=list(metrics),
            mode=["max" if up else "min" for up in larger],
            # Another seed for what is left: the same draws would propose the same trials.
            sampler=optuna.samplers.TPESampler(seed=config.run.seed + len(over)),
            storage=storage,
            study_name=STUDY,
        )

    def suggest(self, trial_id: str) -> dict[str, Any]:
        for _ in range(ASKS):
            values = super().suggest(trial_id)
            key = self._key_of(values)
            if key not in self._proposed:
                break
            self._ot_study.tell(self._ot_trials.pop(trial_id), state=optuna.trial.TrialState.FAIL)
        else:
            values = super().suggest(trial_id)
        self._proposed.add(key)
        return {"values": values}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """What a trial tells of its training is for ASHA; Optuna learns from finished trials."""

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        whole = result if result and all(metric in result for metric in self.metric) else None
        super().on_trial_complete(trial_id, whole, error)


class _Watcher(tune.Callback):
    """Tells how the search goes, and writes down the trials that ASHA stopped."""

    def __init__(self, run: str, ledger: Ledger, key_of: KeyOf, over: int, wanted: int) -> None:
        self.failed: list[Trial] = []
        self._ledger = ledger
        self._key_of = key_of
        self._over, self._wanted = over, wanted
        self._run = run
        self._counts: Counter[str] = Counter()
        self._started: dict[str, float] = {}
        self._told: dict[str, float] = {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._started[trial.trial_id] = time.monotonic()
        log.info("trial %s: started", named(trial.config["values"]))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        now = time.monotonic()
        due = now - self._told.get(trial.trial_id, 0.0) >= INTERVAL_S
        if result["steps"] and "trial" not in result and due:
            self._told[trial.trial_id] = now
            log.info(
                "trial %s: %d steps, loss %.3f",
                named(trial.config["values"]),
                result["steps"],
                result["loss"],
            )

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        result = trial.last_result
        ended: Trial = result.get("trial") or self._stopped(trial, result)
        self._count(ended)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        values = trial.config["values"]
        log.warning("trial %s: starting again, since %s", named(values), _cause(trial))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        values = trial.config["values"]
        self._count(Trial(self._key_of(values), values, "failed", cause=_cause(trial)))

    def _stopped(self, trial: Any, result: Mapping[str, Any]) -> Trial:
        values = trial.config["values"]
        seconds = time.monotonic() - self._started[trial.trial_id]
        loss = result["loss"] if math.isfinite(result["loss"]) else None
        stopped = Trial(
            self._key_of(values),
            values,
            "stopped",
            steps=result["steps"],
            loss=loss,
            seconds=seconds,
        )
        self._ledger.write(stopped)
        return stopped

    def _count(self, trial: Trial) -> None:
        if trial.status == "failed":
            self.failed.append(trial)
        else:
            self._over += 1
        self._counts[trial.status] += 1
        record(
            "compass_trials_over",
            self._counts[trial.status],
            run=self._run,
            status=trial.status,
        )
        log.info(
            "search: %d/%d trials over, %s %s",
            self._over,
            self._wanted,
            named(trial.values),
            describe(trial),
        )


def _cause(trial: Any) -> str:
    """What ended a trial that has no result."""
    error = trial.get_error()
    return root_cause(error) if error else "its process ended"
