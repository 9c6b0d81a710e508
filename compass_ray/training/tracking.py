"""Loss curves to TensorBoard, MLflow and Weights & Biases, one run a language.

Where they go is set as each library's users set it: ``MLFLOW_TRACKING_URI`` and
``MLFLOW_EXPERIMENT_NAME``, ``WANDB_PROJECT``, ``WANDB_MODE`` and so on; TensorBoard's files are in
``<storage>/runs/<run>/tensorboard/<language>/<fingerprint>``, by which trials of a search are told
apart. A language that is trained on after a crash goes on in the run it had. Knows nothing of Ray
or of training.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from compass_ray.artifacts import Storage
from compass_ray.config import Config, Tracker
from compass_ray.errors import UserError, first_line

log = logging.getLogger(__name__)

PROJECT = "compass_ray"
SHOWN = {
    "loss": "train/loss",
    "validation_loss": "validation/loss",
    "learning_rate": "train/learning_rate",
    "tokens": "train/tokens",
    "seconds": "train/step_seconds",
}
_MODULES: dict[Tracker, str] = {
    "tensorboard": "tensorboardX",
    "mlflow": "mlflow",
    "wandb": "wandb",
}

Scalars = Mapping[str, float]


class Curve(Protocol):
    """One language's run in one tracker."""

    def log(self, step: int, scalars: Scalars) -> None: ...

    def close(self, failed: bool) -> None: ...


def check_trackers(config: Config) -> None:
    """Raise ``UserError`` if a tracker's library is not installed."""
    for name in config.run.trackers:
        if importlib.util.find_spec(_MODULES[name]) is None:
            raise UserError(f"run.trackers: {name} is not installed; pip install {_MODULES[name]}")


class Trackers:
    """All trackers of a run. A step that was logged already is not logged again.

    A tracker that fails is told once and gets no more of that language; nothing is raised.
    """

    def __init__(self, config: Config, storage: Storage, identities: Mapping[str, str]) -> None:
        """``identities``: by language, what its run is found again by."""
        self._config, self._storage, self._identities = config, storage, identities
        self._curves: dict[str, dict[Tracker, Curve]] = {}
        self._last: dict[str, int] = {}

    def log(self, language: str, steps: Sequence[Mapping[str, Any]]) -> None:
        """``steps`` are ``loop.Step`` as dictionaries, in order."""
        if not self._config.run.trackers:
            return
        if language not in self._curves:
            curves = self._curves[language] = {}
            for tracker in self._config.run.trackers:
                with self._dropping(tracker, language):
                    curves[tracker] = self._open(tracker, language)
        for step in steps:
            number = step["step"]
            if number <= self._last.get(language, 0):
                continue
            self._last[language] = number
            scalars = {SHOWN[key]: step[key] for key in SHOWN if step.get(key) is not None}
            for tracker, curve in list(self._curves[language].items()):
                with self._dropping(tracker, language):
                    curve.log(number, scalars)

    def close(self, language: str, failed: bool = False) -> None:
        for tracker, curve in self._curves.pop(language, {}).items():
            with self._dropping(tracker, language):
                curve.close(failed)

    @contextmanager
    def _dropping(self, tracker: Tracker, language: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # What a tracker raises, from a missing login to a server that is down, is its own.
            self._curves.get(language, {}).pop(tracker, None)
            log.warning(
                "train %s: no curve in %s any more: %s", language, tracker, first_line(error)
            )

    def _open(self, tracker: Tracker, language: str) -> Curve:
        run, identity = self._config.run.name, self._identities[language]
        settings = _flat(self._config.training.model_dump(mode="json"))
        if tracker == "tensorboard":
            folder = f"runs/{run}/tensorboard/{language}/{identity}"
            return _TensorBoard(self._storage.location(folder))
        if tracker == "mlflow":
            return _MLflow(f"{run} {language}", identity, settings)
        return _WandB(run, language, identity, settings)


class _TensorBoard:
    def __init__(self, folder: str) -> None:
        from tensorboardX import SummaryWriter

        # Files are named by the second; one that is opened again must not replace the first.
        suffix = f".{secrets.token_hex(4)}"
        self._writer = SummaryWriter(folder, flush_secs=10, filename_suffix=suffix)

    def log(self, step: int, scalars: Scalars) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def close(self, failed: bool) -> None:
        self._writer.close()


class _MLflow:
    def __init__(self, name: str, identity: str, settings: Mapping[str, Any]) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient()
        wanted = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = self._client.get_experiment_by_name(wanted)
        experiment = known.experiment_id if known else self._client.create_experiment(wanted)
        found = self._client.search_runs([experiment], f"tags.adapter = '{identity}'")
        if found:
            self._run = found[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
            return
        run = self._client.create_run(experiment, run_name=name, tags={"adapter": identity})
        self._run = run.info.run_id
        for key, value in settings.items():
            self._client.log_param(self._run, key, value)

    def log(self, step: int, scalars: Scalars) -> None:
        for name, value in scalars.items():
            self._client.log_metric(self._run, name, value, step=step)

    def close(self, failed: bool) -> None:
        self._client.set_terminated(self._run, "FAILED" if failed else "FINISHED")


class _WandB:
    def __init__(self, run: str, language: str, identity: str, settings: Mapping[str, Any]) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            group=run,
            name=f"{run} {language}",
            id=identity,
            resume="allow",
            reinit="create_new",
            config=dict(settings),
        )

    def log(self, step: int, scalars: Scalars) -> None:
        self._run.log(dict(scalars), step=step)

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
