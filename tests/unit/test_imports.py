"""Where Ray is met: everything else can be read, tested and used without it."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "compass_ray"

MEETS_RAY = {
    "claims.py",
    "clustering/sharded.py",
    "clustering/stage.py",
    "continual/methods.py",
    "continual/stage.py",
    "evaluation/stage.py",
    "metrics.py",
    "parallel.py",
    "planning/hardware.py",
    "reach.py",
    "resources.py",
    "sampling/actor.py",
    "sampling/stage.py",
    "search/trial.py",
    "search/tuning.py",
    "training/board.py",
    "training/launch.py",
    "training/placement.py",
}


def imported(source: str) -> set[str]:
    """Top-level packages that a module imports, anywhere in it."""
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.append(node.module or "")
    return {name.partition(".")[0] for name in names}


def test_ray_is_met_in_these_modules_alone() -> None:
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if "ray" in imported(path.read_text(encoding="utf-8"))
    }
    assert found == MEETS_RAY
