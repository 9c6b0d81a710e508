"""Trials as text: a few words for the log, a table for the terminal, JSON for scripts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from compass_ray.config import Metric
from compass_ray.planning.text import duration, table
from compass_ray.search.results import Trial, in_order, on_front
from compass_ray.search.space import Values


def named(values: Values) -> str:
    """``budget=20 k=4``: the values, with the last part of each key."""
    return " ".join(f"{key.rpartition('.')[2]}={value}" for key, value in values.items())


def describe(trial: Trial) -> str:
    """What became of a trial, in a few words."""
    if trial.status == "failed":
        return f"failed: {trial.cause}"
    if trial.status == "stopped":
        return f"stopped after {trial.steps} steps in {duration(trial.seconds)}"
    clusters = "clustered" if trial.clustered else "clusters from the cache"
    return (
        f"accuracy {trial.accuracy:.3f}, loss {trial.loss:.3f}, {trial.tokens:,} tokens in "
        f"{duration(trial.seconds)} ({trial.embedded_rows:,} rows embedded, {clusters}, "
        f"{trial.trained} adapters trained)"
    )


def trial_table(trials: Sequence[Trial], metrics: Sequence[Metric]) -> str:
    """A line a trial, best first; ``*`` marks the Pareto front of several metrics."""
    front = on_front(trials, metrics) if len(metrics) > 1 else set()
    keys = list(trials[0].values) if trials else []
    head = ["", *keys, "accuracy", "loss", "tokens", "device-hours", "time", "status"]
    lines = [
        [
            "*" if trial.key in front else "",
            *(str(trial.values[key]) for key in keys),
            _number(trial.accuracy, ".3f"),
            _number(trial.loss, ".3f"),
            _number(trial.tokens, ",d"),
            _number(trial.device_hours, ".4f"),
            duration(trial.seconds),
            trial.status,
        ]
        for trial in in_order(trials, metrics)
    ]
    return "\n".join(table([head, *lines], left=(0, len(head) - 1)))


def as_rows(trials: Sequence[Trial], metrics: Sequence[Metric]) -> list[dict[str, Any]]:
    front = on_front(trials, metrics)
    return [{**asdict(t), "pareto": t.key in front} for t in in_order(trials, metrics)]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
