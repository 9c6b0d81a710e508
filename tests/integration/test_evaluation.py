"""Named tasks from local copies, through the whole line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray
from ray.util.state import list_actors

from compass_ray import load_config, run
from tests.conftest import write_jsonl

pytestmark = pytest.mark.ray


def kill_a_worker(address: str, killed: list[int]) -> None:
    """Kill the first worker that is ready to score."""
    ready = [("class_name", "=", "_Worker"), ("state", "=", "ALIVE")]
    while not (found := list_actors(address=address, filters=ready)):
        time.sleep(0.1)
    os.kill(found[0].pid, signal.SIGKILL)
    killed.append(found[0].pid)


def test_benchmarks_from_local_copies_though_a_worker_is_killed_and_a_task_fails(
    make_config: Callable[..., Path], tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "global-mmlu" / "nl"
    folder.mkdir(parents=True)
    for split in ("test", "dev"):
        rows = [
            {
                "sample_id": f"{split}/{number}",
                "subject": "anatomy",
                "question": f"Hoeveel is {number} plus {number}?",
                **{f"option_{letter}": str(number * 2 + i) for i, letter in enumerate("abcd")},
                "answer": "ABCD"[number % 4],
            }
            for number in range(6)
        ]
        write_jsonl(folder / f"{split}.jsonl", rows)
    model = shutil.copytree(tiny_model, tmp_path / "model")
    settings = json.loads((model / "config.json").read_text())
    settings["max_position_embeddings"] = 1024
    (model / "config.json").write_text(json.dumps(settings))
    needles = tmp_path / "oneruler" / "nl" / "512"
    needles.mkdir(parents=True)
    broken = {"index": 0, "input": "Welk nummer?", "outputs": 5, "length": 512}
    write_jsonl(needles / "niah_single.jsonl", [broken])
    config = load_config(
        make_config(
            languages=["nl"],
            corpora={"usage": [{"path": "atlas"}], "evaluation": [{"path": "atlas"}]},
            training={"model": str(model), "max_steps": 2},
            evaluation={
                "tasks": ["items", "global_mmlu", "mmlu_prox", "oneruler", "atlas"],
                "data": {"global_mmlu": str(folder.parent), "oneruler": str(tmp_path / "oneruler")},
                "oneruler": {"lengths": [512]},
                "limit": 5,
            },
        )
    )
    killed: list[int] = []
    address = ray.get_runtime_context().gcs_address
    threading.Thread(target=kill_a_worker, args=(address, killed), daemon=True).start()
    result = run(config)
    assert killed
    rows = {
        row["task"]: row for row in pq.read_table(f"{result.folder}/scores.parquet").to_pylist()
    }
    assert {task: row["n"] for task, row in rows.items()} == {
        "items": 5,
        "global_mmlu": 5,
        "atlas": 5,
        "mmlu_prox": 0,
        "oneruler": 0,
    }
    assert rows["mmlu_prox"]["note"] == "not in mmlu_prox"
    items = pq.read_table(f"{result.folder}/items/nl.parquet").to_pylist()
    mine = [row for row in items if row["task"] == "global_mmlu"]
    assert [row["id"] for row in mine] == [f"test/{number}" for number in range(5)]
    assert all(len(row["adapter_loglikelihoods"]) == 4 for row in mine)
    page = Path(str(result.report)).read_text()
    assert "mmlu_prox was not scored" in page
    # What cannot be scored fails alone.
    assert result.failures == {"nl": "oneruler: TypeError: 'int' object is not iterable"}
    assert rows["oneruler"]["note"] == "failed: TypeError: 'int' object is not iterable"
    assert "<strong>Dutch</strong>, in the stage “evaluate”: oneruler: TypeError" in page
    kept = list(Path(config.run.storage).glob("cache/evaluate/*/_COMMITTED"))
    assert len(kept) == 6
