"""An update is killed while it trains and while it evaluates; then the same command finishes it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import TRAINING, start

pytestmark = pytest.mark.ray

MakeConfig = Callable[..., Path]


def test_an_update_killed_twice_leaves_the_old_version_current_until_it_is_done(
    make_config: MakeConfig, sampled: Path, tmp_path: Path, corpus: Path, cluster: Any
) -> None:
    config = make_config(
        run={"name": "updated", "storage": str(sampled)},
        languages=["de"],
        # As in the tests of training: whichever comes first leaves the other its adapter.
        training={**TRAINING, "workers_per_language": 1},
        continual={"tolerance": 0.99},
    )
    log = tmp_path / "log"
    start(log, "train", config).finish()
    folder = sampled / "runs/updated"
    adapters = folder / "adapters/de"
    before = json.loads((adapters / "current.json").read_text())
    usage = tmp_path / "moved.jsonl"
    rows = [json.loads(line) for line in (corpus / "train.jsonl").read_text().splitlines()]
    asked = [{"text": row["prompt"], "language": "de"} for row in rows if row["language"] == "de"]
    usage.write_text("".join(json.dumps(row) + "\n" for row in asked))

    def committed(stage: str) -> int:
        return len(list(sampled.glob(f"cache/{stage}/*/_COMMITTED")))

    trained, scored = committed("train"), committed("evaluate")
    command = ("update", folder, "--usage", usage)
    snapshots = "cache/train/*/runs/adapter/checkpoint_manager_snapshot.json"
    training = start(log, *command)
    training.wait_until(lambda: any(sampled.glob(snapshots)))
    training.kill()
    assert committed("train") == trained
    assert json.loads((adapters / "current.json").read_text()) == before

    evaluating = start(log, *command)
    evaluating.wait_until(lambda: committed("evaluate") > scored)
    evaluating.kill()
    assert committed("train") == trained + 1
    assert json.loads((adapters / "current.json").read_text()) == before
    assert [path.parent.name for path in adapters.glob("*/version.json")] == ["v0001"]

    start(log, *command).finish()
    about = json.loads((adapters / "v0002/version.json").read_text())
    current = json.loads((adapters / "current.json").read_text())["version"]
    assert current == ("v0002" if about["promoted"] else "v0001")
    assert about["parent"] == 1 and about["training"]["resumed_after"]
    assert committed("train") == trained + 1
