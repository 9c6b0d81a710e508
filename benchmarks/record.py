"""Keeps what a benchmark found in ``results/NAME.json``, with what it was measured on."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def record(name: str, found: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Write ``found`` with the command, machine, commit and time; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(about() | found, indent=1) + "\n")
    return path


def earlier(name: str, folder: Path = RESULTS) -> dict[str, Any]:
    """What an earlier run kept, for a long benchmark to go on from."""
    path = folder / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def about() -> dict[str, str]:
    given = sys.argv[1:]
    if "--storage" in given:  # a folder of this machine, which changes nothing that is found
        at = given.index("--storage")
        del given[at : at + 2]
    words = [f"benchmarks/{Path(sys.argv[0]).name}", *given]
    return {
        "command": " ".join(["python", *words]),
        "machine": machine(),
        "commit": _commit(),
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def machine() -> str:
    import torch

    cores = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    if not torch.cuda.is_available():
        return cores
    return f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}, {cores}"


def _commit() -> str:
    head = _git("rev-parse", "--short", "HEAD")
    if head.returncode:
        return "unknown"
    # Results change while a benchmark writes them; it is the code that made them.
    changed = _git("diff", "--quiet", "HEAD", "--", ":/", ":(exclude)results").returncode
    return head.stdout.strip() + ("-dirty" if changed else "")


def _git(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True
    )
