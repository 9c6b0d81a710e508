"""What trials came to: kept one by one in the run directory, so that none is run twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from compass_ray.artifacts import Storage
from compass_ray.config import Metric
from compass_ray.search.space import LARGER_IS_BETTER, Values

Status = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True)
class Trial:
    """One trial that is over.

    Attributes:
        key: names it by all that decides its outcome.
        values: of the searched keys.
        status: ``stopped`` is early, by ASHA; ``failed`` is with ``cause``.
        steps: optimiser steps of all its languages together.
        loss: training loss in nats, the mean over languages of their last steps.
        accuracy: share of items answered rightly, the mean over languages and tasks.
        tokens: trained on, over all languages.
        device_hours: of training; GPU-hours on GPUs, core-hours on CPUs.
        seconds: from its start to its end.
        embedded_rows: rows it embedded itself; the others it found in the cache.
        clustered: whether it made the clusters itself.
        trained: languages whose adapter it trained itself.
        cause: why it failed.
    """

    key: str
    values: Values
    status: Status
    steps: int = 0
    loss: float | None = None
    accuracy: float | None = None
    tokens: int | None = None
    device_hours: float | None = None
    seconds: float = 0.0
    embedded_rows: int = 0
    clustered: bool = False
    trained: int = 0
    cause: str | None = None

    def objectives(self, metrics: Sequence[Metric]) -> list[float]:
        """Values of these metrics; the trial is finished, so it has them."""
        return [float(getattr(self, metric)) for metric in metrics]


class Ledger:
    """Trials of a run that are over, one small file each."""

    def __init__(self, storage: Storage, run: str) -> None:
        self._storage = storage
        self._folder = f"runs/{run}/search/trials"

    def write(self, trial: Trial) -> None:
        self._storage.write_json(f"{self._folder}/{trial.key}.json", asdict(trial))

    def read(self) -> list[Trial]:
        names = self._storage.list_files(self._folder)
        return [Trial(**self._storage.read_json(f"{self._folder}/{name}")) for name in names]


def best_of(trials: Sequence[Trial], metrics: Sequence[Metric]) -> Trial | None:
    """The finished trial with the best value of the first metric.

    Of equals it is the one that is better in the next metric, and so on; then the one of fewer
    tokens, then that of the lower key. None where no trial is finished.
    """
    finished = [trial for trial in trials if trial.status == "finished"]
    return min(finished, key=lambda trial: _standing(trial, metrics), default=None)


def _standing(trial: Trial, metrics: Sequence[Metric]) -> tuple[tuple[float, ...], int, str]:
    """The lower, the better."""
    signs = [-1.0 if LARGER_IS_BETTER[metric] else 1.0 for metric in metrics]
    values = zip(signs, trial.objectives(metrics), strict=True)
    return tuple(sign * value for sign, value in values), trial.tokens or 0, trial.key


def pareto_front(values_NM: NDArray[np.float64], larger_is_better: Sequence[bool]) -> list[bool]:
    """Which of N points no other beats: at least as good in all M values and better in one."""
    signs = np.where(larger_is_better, 1.0, -1.0)
    points = values_NM * signs
    as_good = (points[:, None, :] >= points[None, :, :]).all(axis=2)
    better = (points[:, None, :] > points[None, :, :]).any(axis=2)
    beaten = np.any(as_good & better, axis=0)
    return [not lost for lost in beaten.tolist()]


def on_front(trials: Sequence[Trial], metrics: Sequence[Metric]) -> set[str]:
    """Keys of the finished trials on the Pareto front."""
    finished = [trial for trial in trials if trial.status == "finished"]
    if not finished:
        return set()
    values = np.array([trial.objectives(metrics) for trial in finished])
    free = pareto_front(values, [LARGER_IS_BETTER[metric] for metric in metrics])
    return {trial.key for trial, on in zip(finished, free, strict=True) if on}


def in_order(trials: Sequence[Trial], metrics: Sequence[Metric]) -> list[Trial]:
    """Finished trials, best first as ``best_of`` has it, then those stopped and those failed."""
    by_status: dict[Status, list[Trial]] = {"finished": [], "stopped": [], "failed": []}
    for trial in trials:
        by_status[trial.status].append(trial)
    by_status["finished"].sort(key=lambda trial: _standing(trial, metrics))
    return [trial for among in by_status.values() for trial in among]


def as_table(trials: Sequence[Trial], metrics: Sequence[Metric]) -> pa.Table:
    """One row a trial, best first; a column for every searched key."""
    front = on_front(trials, metrics)
    rows: list[dict[str, Any]] = []
    for trial in in_order(trials, metrics):
        told = asdict(trial)
        values = told.pop("values")
        rows.append({**told, "pareto": trial.key in front, **_plain(values)})
    return pa.Table.from_pylist(rows)


def _plain(values: Values) -> dict[str, Any]:
    return {k: v if isinstance(v, int | float | str) else str(v) for k, v in values.items()}
