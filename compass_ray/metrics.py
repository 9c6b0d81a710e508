"""Gauges in Ray's own metrics, for Prometheus and Grafana; without a running Ray they go nowhere.

Names reach Prometheus with Ray's prefix: ``ray_compass_progress_done``. Importing this imports no
Ray: what shows progress on a plain machine must not need it.
"""

from __future__ import annotations

import sys
from typing import Any

TAGS: dict[str, tuple[str, ...]] = {
    "compass_progress_done": ("step", "language"),
    "compass_progress_total": ("step", "language"),
    "compass_training_loss": ("language",),
    "compass_stage_seconds": ("run", "stage"),
    "compass_stage_device_hours": ("run", "stage", "device"),
    "compass_accuracy": ("run", "language", "task", "model"),
    "compass_trials_over": ("run", "status"),
    # Of the newest window that was judged; drifted is 1 or 0.
    "compass_drift_divergence": ("language",),
    "compass_drift_threshold": ("language",),
    "compass_drift_novel_share": ("language",),
    "compass_drift_drifted": ("language",),
}
_gauges: dict[str, Any] = {}


def record(name: str, value: float, **tags: str) -> None:
    """Set a gauge; ``tags`` are those of ``TAGS``, empty where not given."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return
    if name not in _gauges:
        from ray.util.metrics import Gauge

        _gauges[name] = Gauge(name, tag_keys=TAGS[name])
    _gauges[name].set(value, tags={key: tags.get(key, "") for key in TAGS[name]})
