"""What the page tells of a language after its run: windows of usage, and versions of its adapter.

Nothing until a log was watched or an update made, so that the page of a run alone stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from compass_ray.artifacts import Storage
from compass_ray.continual.registry import Registry, version_name
from compass_ray.continual.state import STATE
from compass_ray.report import figures


@dataclass(frozen=True)
class Production:
    """One language; ``figure`` is None while no window was judged."""

    name: str
    figure: Markup | None
    versions: Sequence[Mapping[str, Any]]


def production(storage: Storage, run: str, language: str, name: str) -> Production | None:
    """Timeline and versions of one language, None where nothing happened since its run."""
    path = f"runs/{run}/{STATE}"
    told = storage.read_json(path)["windows"] if storage.exists(path) else []
    windows = [window for window in told if window["language"] == language]
    registry = Registry(storage, run, language)
    versions, current = registry.versions(), registry.current()
    if not windows and len(versions) < 2:
        return None
    return Production(
        name,
        _figure(windows) if windows else None,
        [
            {
                "name": version.name,
                "kind": version.about["kind"],
                "parent": version.about["parent"] and version_name(version.about["parent"]),
                "reason": version.about.get("reason", ""),
                "current": version == current,
            }
            for version in versions
        ],
    )


def _figure(windows: Sequence[Mapping[str, Any]]) -> Markup:
    drifted = [window["drifted"] for window in windows]
    divergence, threshold = (
        [window[name] for window in windows] for name in ("divergence", "threshold")
    )
    label = f"Divergence of {len(windows)} windows of usage; {sum(drifted)} drifted."
    return Markup(figures.drift_lines(divergence, threshold, drifted, label=label))
