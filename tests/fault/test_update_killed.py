"""An update is killed while it trains and while it evaluates; then the same command finishes it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray

MakeConfig = Callable[..., Path]
COMMAND = [sys.executable, "-c", "from compass_ray.cli import main; main()"]


def start(log: Path, *arguments: object) -> subprocess.Popen[bytes]:
    with log.open("ab") as file:
        words = [*COMMAND, *map(str, arguments)]
        return subprocess.Popen(words, stderr=file, stdout=file, start_new_session=True)


def kill_when(process: subprocess.Popen[bytes], log: Path, reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 600
    while not reached():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def test_an_update_killed_twice_leaves_the_old_version_current_until_it_is_done(
    make_config: MakeConfig, tmp_path: Path, corpus: Path
) -> None:
    training = {"max_steps": 60, "checkpoint_steps": 10}
    config = make_config(languages=["de"], training=training, continual={"tolerance": 0.99})
    log, storage = tmp_path / "log", tmp_path / "storage"
    assert start(log, "train", config).wait(timeout=600) == 0, log.read_text()
    folder = storage / "runs/small"
    adapters = folder / "adapters/de"
    before = json.loads((adapters / "current.json").read_text())
    usage = tmp_path / "moved.jsonl"
    rows = [json.loads(line) for line in (corpus / "train.jsonl").read_text().splitlines()]
    asked = [{"text": row["prompt"], "language": "de"} for row in rows if row["language"] == "de"]
    usage.write_text("".join(json.dumps(row) + "\n" for row in asked))

    def committed(stage: str) -> int:
        return len(list(storage.glob(f"cache/{stage}/*/_COMMITTED")))

    trained, scored = committed("train"), committed("evaluate")
    command = ("update", folder, "--usage", usage)
    snapshots = "cache/train/*/runs/adapter/checkpoint_manager_snapshot.json"
    kill_when(start(log, *command), log, lambda: any(storage.glob(snapshots)))
    assert committed("train") == trained
    assert json.loads((adapters / "current.json").read_text()) == before

    kill_when(start(log, *command), log, lambda: committed("evaluate") > scored)
    assert committed("train") == trained + 1
    assert json.loads((adapters / "current.json").read_text()) == before
    assert [path.parent.name for path in adapters.glob("*/version.json")] == ["v0001"]

    assert start(log, *command).wait(timeout=600) == 0, log.read_text()
    about = json.loads((adapters / "v0002/version.json").read_text())
    current = json.loads((adapters / "current.json").read_text())["version"]
    assert current == ("v0002" if about["promoted"] else "v0001")
    assert about["parent"] == 1 and about["training"]["resumed_after"]
    assert committed("train") == trained + 1
