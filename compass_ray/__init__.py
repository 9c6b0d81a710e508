"""Find where a language's training data falls short, and train adapters that fill the gap.

``load_config`` and ``run`` are the whole of the top-level interface; neither torch nor Ray is
imported before ``run`` is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from compass_ray.loading import load_config

if TYPE_CHECKING:
    from compass_ray.config import Config
    from compass_ray.pipeline import RunResult, Stage

__all__ = ["load_config", "run"]


def run(config: Config, until: Stage = "report") -> RunResult:
    """Carry out the stages of ``config`` up to ``until``; see ``compass_ray.pipeline.run``."""
    from compass_ray import pipeline

    return pipeline.run(config, until)
