"""Encoders, drivers and nodes are killed while a corpus is embedded; nothing is lost or redone."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.conftest import SUM, write_jsonl

from .conftest import start

pytestmark = pytest.mark.ray

MakeConfig = Callable[..., Path]
ROWS, ROWS_PER_PART = 900, 20


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    rows = [
        {"prompt": SUM["en"].format(a=a, b=a % 7), "completion": str(a + a % 7), "language": "en"}
        for a in range(ROWS)
    ]
    return write_jsonl(tmp_path / "sums.jsonl", rows)


@pytest.fixture
def config_of(make_config: MakeConfig, sums: Path, tmp_path: Path) -> Callable[[str], Path]:
    def make(name: str) -> Path:
        auxiliary = [{"path": str(sums)}]
        return make_config(
            f"{name}.yaml",
            run={"storage": str(tmp_path / name)},
            corpora={"auxiliary": auxiliary, "rows_per_part": ROWS_PER_PART},
        )

    return make


def committed(storage: Path) -> set[Path]:
    return set(storage.glob("cache/embed/*/_COMMITTED"))


def vectors(storage: Path) -> dict[str, np.ndarray]:
    return {
        path.parent.name: np.load(next(path.parent.glob("attempt-*/vectors.npy")))
        for path in committed(storage)
    }


def told(storage: Path) -> dict[str, int]:
    return json.loads((storage / "runs/small/manifest.json").read_text())["stages"]["embed"]


def test_a_killed_encoder_and_a_killed_driver_cost_only_the_parts_in_flight(
    config_of: Callable[[str], Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    config, storage, log = config_of("killed"), tmp_path / "killed", tmp_path / "log"
    driver = start(log, "embed", config)
    driver.wait_until(lambda: len(committed(storage)) >= 5)
    victim = driver.children("_Loaded")[0]
    victim.send_signal(signal.SIGKILL)
    gone_at = len(committed(storage))
    driver.wait_until(lambda: len(committed(storage)) >= gone_at + 15)
    assert not victim.is_running() or victim.status() == psutil.STATUS_ZOMBIE
    driver.kill()
    done = committed(storage)

    # The Ray of the first driver went with it; the rest may as well go on with another.
    request.getfixturevalue("cluster")
    start(log, "embed", config).finish()
    whole, uninterrupted = config_of("whole"), tmp_path / "whole"
    start(log, "embed", whole).finish()
    rows = told(uninterrupted)["computed_rows"]
    again = told(storage)
    assert again["reused_rows"] + again["computed_rows"] == rows
    assert again["reused_rows"] >= (len(done) - 2) * ROWS_PER_PART
    assert done <= committed(storage)
    found, expected = vectors(storage), vectors(uninterrupted)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[part], expected[part]) for part in expected)


def test_a_node_that_leaves_takes_no_rows_with_it(
    config_of: Callable[[str], Path], tmp_path: Path, cluster: Any
) -> None:
    config, storage, log = config_of("nodes"), tmp_path / "nodes", tmp_path / "log"
    leaving = cluster.add_node(num_cpus=1)
    driver = start(log, "embed", config)
    driver.wait_until(lambda: len(committed(storage)) >= 10)
    cluster.remove_node(leaving, allow_graceful=False)
    driver.finish()
    rows = sum(len(part) for part in vectors(storage).values())
    assert told(storage)["computed_rows"] == rows > ROWS
    # What was put there to see whether the nodes share the storage is gone.
    assert {path.name for path in storage.iterdir()} == {"cache", "runs"}
