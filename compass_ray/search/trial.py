"""One trial: every stage up to the scores, as a task that Tune can watch and stop.

The Tune side holds no CPU: it starts the work outside of its placement group, tells how far
training is, and when told to stop waits until trainers and workers are gone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import ray
from ray import tune

from compass_ray.artifacts import Artifact, Storage
from compass_ray.clustering.stage import Clustered, cluster_corpus
from compass_ray.config import Config
from compass_ray.corpora.stage import read_corpora
from compass_ray.device_hours import training_hours
from compass_ray.embedding.stage import embed
from compass_ray.errors import UserError
from compass_ray.evaluation.stage import evaluate
from compass_ray.pipeline import check_corpus
from compass_ray.resources import cluster
from compass_ray.sampling.actor import gap_sampler, sampler_bytes, sampler_places
from compass_ray.sampling.stage import sample
from compass_ray.search.results import Ledger, Trial
from compass_ray.search.space import Values, trial_key, with_values
from compass_ray.training.board import make_board
from compass_ray.training.launch import LOSS_FILE, train_languages

log = logging.getLogger(__name__)

POLL_S = 2.0
STOP_S = 60.0
RECENT_STEPS = 10
"""Steps whose mean loss stands for a language's loss, so that one hard batch decides nothing."""


class Samplers:
    """Holds gap samplers, each of which would otherwise end with the trial that made it."""

    def __init__(self) -> None:
        self._held: dict[str, Any] = {}

    def hold(self, clustered: Clustered) -> None:
        key = clustered.artifact.fingerprint
        # One place stays free, so that trials whose samplers are not held here take turns in it.
        places = sampler_places(sampler_bytes(clustered), cluster())
        if key not in self._held and len(self._held) + 1 < places:
            self._held[key] = gap_sampler(clustered)


class SearchTrial(tune.Trainable):
    """A trial as Tune sees it: ``step`` tells of training now and then, and at last the result."""

    def setup(self, settings: dict[str, Any]) -> None:
        self._config: Config = settings["config"]
        values: Values = settings["values"]
        contents: list[list[str]] = settings["contents"]
        self._board = make_board()
        self._work = _run_trial.remote(
            self._config, values, contents, self._board, settings["samplers"]
        )

    def step(self) -> dict[str, Any]:
        done, _ = ray.wait([self._work], timeout=POLL_S)
        if done:
            trial: Trial = ray.get(self._work)
            return {**_result_of(trial), "done": True}
        losses: dict[str, dict[int, float]] = ray.get(self._board.losses.remote())
        steps = sum(max(curve) for curve in losses.values())
        recent = [float(np.mean([*curve.values()][-RECENT_STEPS:])) for curve in losses.values()]
        return {"steps": steps, "loss": float(np.mean(recent)) if recent else float("inf")}

    def cleanup(self) -> None:
        """End what the trial started; Tune waits for this before it gives the place away."""
        ray.cancel(self._work, recursive=True)
        done, _ = ray.wait([self._work], timeout=STOP_S)
        if not done:
            ray.cancel(self._work, force=True, recursive=False)


def _result_of(trial: Trial) -> dict[str, Any]:
    told = {"trial": trial, "steps": trial.steps}
    if trial.loss is not None:
        told["loss"] = trial.loss
    if trial.status == "finished":
        told |= {name: getattr(trial, name) for name in ("accuracy", "tokens", "device_hours")}
    return told


# Outside of the trial's placement group: what it starts must be free to run anywhere.
@ray.remote(num_cpus=0, max_retries=0, scheduling_strategy="DEFAULT")
def _run_trial(
    base: Config, values: Values, contents: list[list[str]], board: Any, samplers: Any
) -> Trial:
    started = time.monotonic()
    config = with_values(base, values)
    storage = Storage.open(config.run.storage)
    trial = Trial(trial_key(config, contents), values, "failed")
    try:
        trial = _finish(trial, config, storage, board, samplers)
    except (UserError, RuntimeError) as error:
        # This trial cannot be run or scored; the others may well be.
        trial = replace(trial, cause=str(error))
    trial = replace(trial, seconds=time.monotonic() - started)
    if trial.status == "finished":
        Ledger(storage, config.run.name).write(trial)
    return trial


def _finish(trial: Trial, config: Config, storage: Storage, board: Any, samplers: Any) -> Trial:
    corpus = read_corpora(config, storage)
    check_corpus(config, corpus)
    embedded = embed(config, storage, corpus)
    clustered = cluster_corpus(config, storage, corpus, embedded)
    # If their holder was lost, a sampler ends with the trial that made it, and is made again.
    with suppress(ray.exceptions.RayActorError):
        ray.get(samplers.hold.remote(clustered))
    sampled = sample(config, storage, clustered)
    trained = train_languages(config, storage, sampled.subsets, board)
    if trained.failures:
        language, cause = next(iter(trained.failures.items()))
        raise RuntimeError(f"{language}: {cause}")
    # The base is the same for every trial; the run of the best one scores it.
    without_base = config.evaluation.model_copy(update={"baseline": False})
    scoring = config.model_copy(update={"evaluation": without_base})
    scored = evaluate(scoring, storage, corpus, trained.adapters).whole().comparisons
    if not scored:
        raise UserError("corpora.evaluation: no items in any of the languages")
    adapters = list(trained.adapters.values())
    return replace(
        trial,
        status="finished",
        steps=sum(adapter.summary["steps"] for adapter in adapters),
        loss=_last_loss(adapters),
        accuracy=float(np.mean([_share_correct(compared.adapter) for compared in scored])),
        tokens=sum(adapter.summary["tokens"] for adapter in adapters),
        device_hours=training_hours((a.summary["seconds"] for a in adapters), config, cluster()),
        embedded_rows=embedded.computed_rows,
        clustered=not clustered.reused,
        trained=len(set(trained.adapters) - trained.reused),
    )


def _last_loss(adapters: Sequence[Artifact]) -> float:
    curves = [a.read_table(LOSS_FILE, ["loss"])["loss"].to_numpy() for a in adapters]
    return float(np.mean([curve[-RECENT_STEPS:].mean() for curve in curves]))


def _share_correct(items: Any) -> float:
    return float(items["correct"].to_numpy(zero_copy_only=False).mean())
