"""The driver is killed in the middle of training; the same command takes up where it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.ray

MakeConfig = Callable[..., Path]
STEPS = 120
TRAINING = {"max_steps": STEPS, "epochs": 1, "checkpoint_steps": 10, "learning_rate": 0.003}
COMMAND = [sys.executable, "-c", "from compass_ray.cli import main; main()", "train"]


def committed_step(storage: Path) -> int:
    """The step of the newest checkpoint that Ray Train has committed, 0 if none."""
    newest = 0
    for snapshot in storage.glob("cache/train/*/runs/adapter/checkpoint_manager_snapshot.json"):
        try:
            results = json.loads(snapshot.read_text())["checkpoint_results"]
        except (ValueError, KeyError):
            continue
        newest = max([newest, *(result["metrics"]["step"] for result in results)])
    return newest


def train(path: Path) -> subprocess.Popen[bytes]:
    log = path.with_suffix(".log").open("ab")
    return subprocess.Popen([*COMMAND, str(path)], stderr=log, start_new_session=True)


def test_training_goes_on_from_its_checkpoint(make_config: MakeConfig, tmp_path: Path) -> None:
    killed = make_config("killed.yaml", languages=["de"], training=TRAINING)
    storage = tmp_path / "storage"
    process = train(killed)
    deadline = time.monotonic() + 600
    while committed_step(storage) < 20:
        assert process.poll() is None, killed.with_suffix(".log").read_text()
        assert time.monotonic() < deadline, "no checkpoint within 600 s"
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    reached = committed_step(storage)

    again = train(killed)
    assert again.wait(timeout=600) == 0, killed.with_suffix(".log").read_text()
    manifest = json.loads((storage / "runs/small/manifest.json").read_text())["stages"]
    assert manifest["records"]["computed"] == 0
    assert manifest["embed"]["computed_rows"] == 0
    assert manifest["cluster"]["reused"]
    assert manifest["sample"]["languages"]["de"]["reused"]
    (resumed,) = manifest["train"]["languages"]["de"]["resumed_after"]
    assert resumed >= reached - TRAINING["checkpoint_steps"]
    assert 0 < resumed < STEPS
    steps = pq.read_table(storage / "runs/small/losses/de.parquet")["step"].to_pylist()
    assert steps == list(range(1, STEPS + 1))
