"""Device hours of a run by stage: GPU-hours where the cluster has GPUs, else core-hours.

What is counted is what a stage held, busy or not, since that is what is paid for. Training is
counted by its steps alone, for its languages may wait for each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from compass_ray.config import Config
from compass_ray.embedding.encoders import encoder_device
from compass_ray.resources import Cluster, encoder_actors, worker_shape

HELD_BY = ("embed", "cluster", "train", "evaluate")
"""Stages that hold devices worth counting; the others read and write."""


def unit(on: Cluster) -> str:
    return "GPU-hours" if on.gpus else "core-hours"


def training_hours(seconds: Iterable[float], config: Config, on: Cluster) -> float:
    """Device hours of adapters that trained for so many seconds each."""
    shape = worker_shape(config, on)
    each = shape.gpus if on.gpus else shape.cpus
    return sum(seconds) * config.training.workers_per_language * each / 3600


def device_hours(
    stage: str, entry: Mapping[str, Any], seconds: float, config: Config, on: Cluster
) -> float:
    """Device hours of one stage that took ``seconds`` and is described by its manifest entry."""
    if stage == "train":
        told = entry["languages"].values()
        return training_hours((t["seconds"] for t in told if not t["reused"]), config, on)
    return seconds * _held(stage, config, on) / 3600


def _held(stage: str, config: Config, on: Cluster) -> float:
    if stage == "embed":
        device = encoder_device(config.embedding.model, on.gpus > 0)
        actors = encoder_actors(config.embedding, on, device)
        if on.gpus:
            return actors if device == "cuda" else 0.0
        return actors * config.embedding.threads
    if stage == "cluster":
        return float(config.clustering.wants_gpu) if on.gpus else on.cpus
    shape = worker_shape(config, on)
    return on.slots(shape.cpus, shape.gpus) * (shape.gpus if on.gpus else shape.cpus)
