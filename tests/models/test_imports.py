"""What is loaded by whom: on a cluster, every worker pays for it at its start."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Seconds each; whoever trains, scores or embeds loads what it needs itself.
HEAVY = {"torch", "transformers", "sklearn", "pandas", "scipy.stats", "datasets"}


@pytest.mark.parametrize(
    "module", ["compass_ray.pipeline", "compass_ray.continual.update", "compass_ray.plan"]
)
def test_drivers_and_light_workers_load_nothing_heavy(module: str) -> None:
    script = f"import sys, {module}; print(*sorted({HEAVY} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
