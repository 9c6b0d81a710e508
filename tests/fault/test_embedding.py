"""Encoders, drivers and nodes are killed while a corpus is embedded; nothing is lost or redone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.conftest import SUM, write_jsonl

pytestmark = pytest.mark.ray

MakeConfig = Callable[..., Path]
ROWS, ROWS_PER_PART = 900, 20
COMMAND = [sys.executable, "-c", "from compass_ray.cli import main; main()", "embed"]


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


def embed(path: Path, **environment: str) -> subprocess.Popen[bytes]:
    log = path.with_suffix(".log").open("ab")
    return subprocess.Popen(
        [*COMMAND, str(path)], stderr=log, start_new_session=True, env=os.environ | environment
    )


def committed(storage: Path) -> set[Path]:
    return set(storage.glob("cache/embed/*/_COMMITTED"))


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[bytes], config: Path) -> None:
    deadline = time.monotonic() + 600
    while not condition():
        assert process.poll() is None, config.with_suffix(".log").read_text()
        assert time.monotonic() < deadline, config.with_suffix(".log").read_text()
        time.sleep(0.05)


def finish(process: subprocess.Popen[bytes], config: Path) -> None:
    assert process.wait(timeout=600) == 0, config.with_suffix(".log").read_text()


def encoders(driver: int) -> list[psutil.Process]:
    """Processes of the embedding actors of the Ray that a driver started."""
    below = psutil.Process(driver).children(recursive=True)
    return [process for process in below if "_Loaded" in " ".join(process.cmdline())]


def vectors(storage: Path) -> dict[str, np.ndarray]:
    return {
        path.parent.name: np.load(next(path.parent.glob("attempt-*/vectors.npy")))
        for path in committed(storage)
    }


def told(storage: Path) -> dict[str, int]:
    return json.loads((storage / "runs/small/manifest.json").read_text())["stages"]["embed"]


def test_a_killed_encoder_and_a_killed_driver_cost_only_the_parts_in_flight(
    config_of: Callable[[str], Path], tmp_path: Path
) -> None:
    config, storage = config_of("killed"), tmp_path / "killed"
    driver = embed(config)
    wait_for(lambda: len(committed(storage)) >= 5, driver, config)
    victim = encoders(driver.pid)[0]
    victim.send_signal(signal.SIGKILL)
    gone_at = len(committed(storage))
    wait_for(lambda: len(committed(storage)) >= gone_at + 15, driver, config)
    assert not victim.is_running() or victim.status() == psutil.STATUS_ZOMBIE
    driver.kill()
    driver.wait()
    done = committed(storage)

    finish(embed(config), config)
    whole, uninterrupted = config_of("whole"), tmp_path / "whole"
    finish(embed(whole), whole)
    rows = told(uninterrupted)["computed_rows"]
    again = told(storage)
    assert again["reused_rows"] + again["computed_rows"] == rows
    assert again["reused_rows"] >= (len(done) - 2) * ROWS_PER_PART
    assert done <= committed(storage)
    found, expected = vectors(storage), vectors(uninterrupted)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[part], expected[part]) for part in expected)


def test_a_node_that_leaves_takes_no_rows_with_it(
    config_of: Callable[[str], Path], tmp_path: Path
) -> None:
    from ray.cluster_utils import Cluster

    config, storage = config_of("nodes"), tmp_path / "nodes"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        leaving = cluster.add_node(num_cpus=1)
        driver = embed(config, RAY_ADDRESS=cluster.address)
        wait_for(lambda: len(committed(storage)) >= 10, driver, config)
        cluster.remove_node(leaving, allow_graceful=False)
        finish(driver, config)
    finally:
        cluster.shutdown()
    rows = sum(len(part) for part in vectors(storage).values())
    assert told(storage)["computed_rows"] == rows > ROWS
