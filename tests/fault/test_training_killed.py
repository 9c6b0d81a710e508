"""Workers, the Train controller, a node and the driver are killed while an adapter is trained.

All but the last is mended without help; after the driver, the same command goes on where it was.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from ray.util.state import list_actors, list_placement_groups

pytestmark = pytest.mark.ray

MakeConfig = Callable[..., Path]
# More steps than workers take in the seconds that they outlive their driver.
STEPS, INTERVAL = 300, 10
TRAINING = {
    "max_steps": STEPS,
    "epochs": 1,
    "checkpoint_steps": INTERVAL,
    "learning_rate": 0.003,
    "workers_per_language": 2,
    "max_failures": 2,
}
COMMAND = [sys.executable, "-c", "from compass_ray.cli import main; main()", "train"]
PATIENCE_S = 600
HOLDER = """
import pathlib, ray, sys, time
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

ray.init()
(head,) = [node["NodeID"] for node in ray.nodes() if "doomed" not in node["Resources"]]

@ray.remote(num_cpus=2, scheduling_strategy=NodeAffinitySchedulingStrategy(head, soft=False))
def hold(held):
    pathlib.Path(held).touch()
    time.sleep(3600)

ray.get(hold.remote(sys.argv[1]))
"""


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


def wait_until(reached: Callable[[], Any], process: subprocess.Popen[bytes], log: Path) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while not (found := reached()):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, f"not within {PATIENCE_S} s"
        time.sleep(0.2)
    return found


def children(process: subprocess.Popen[bytes], name: str) -> list[psutil.Process]:
    """Ray processes of that name that belong to the Ray the process started."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if name in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


def told(storage: Path) -> dict[str, Any]:
    manifest = json.loads((storage / "runs/small/manifest.json").read_text())
    return manifest["stages"]["train"]["languages"]["de"]


def test_whatever_is_killed_costs_a_checkpoint_interval(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    path = make_config(languages=["de"], training=TRAINING)
    storage, log = tmp_path / "storage", tmp_path / "log"

    def start() -> subprocess.Popen[bytes]:
        with log.open("ab") as file:
            return subprocess.Popen([*COMMAND, str(path)], stderr=file, start_new_session=True)

    process = start()
    reached = []
    for victim in ("RayTrainWorker", "TrainController", "driver"):
        goal = committed_step(storage) + INTERVAL
        wait_until(lambda goal=goal: committed_step(storage) >= goal, process, log)
        reached.append(committed_step(storage))
        pid = process.pid if victim == "driver" else children(process, victim)[0].pid
        os.kill(pid, signal.SIGKILL)
    process.wait()
    assert "starting again" in log.read_text()

    assert start().wait(timeout=PATIENCE_S) == 0, log.read_text()
    stages = json.loads((storage / "runs/small/manifest.json").read_text())["stages"]
    assert stages["records"]["computed"] == stages["embed"]["computed_rows"] == 0
    assert stages["cluster"]["reused"] and stages["sample"]["languages"]["de"]["reused"]
    summary = told(storage)
    resumed = summary["resumed_after"]
    assert len(resumed) == 3
    for before, after in zip(reached, resumed, strict=True):
        assert 0 < after < STEPS and after >= before - INTERVAL
    losses = pq.read_table(storage / "runs/small/losses/de.parquet")
    assert losses["step"].to_pylist() == list(range(1, STEPS + 1))


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A cluster of its own, with a dashboard, that a command reaches by ``RAY_ADDRESS``."""
    from ray.cluster_utils import Cluster

    # The Ray of other tests may have the port that a dashboard takes by default.
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    head = {"num_cpus": 2, "include_dashboard": True, "dashboard_port": port}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    yield cluster
    cluster.shutdown()


def test_a_lost_node_moves_its_workers_to_another(
    make_config: MakeConfig, tmp_path: Path, two_nodes: Any
) -> None:
    doomed = two_nodes.add_node(num_cpus=2, resources={"doomed": 1})
    two_nodes.wait_for_nodes()
    path = make_config(
        languages=["de"],
        training={**TRAINING, "workers_per_language": 1},
        resources={"threads_per_worker": 2},
    )
    storage, log = tmp_path / "storage", tmp_path / "log"
    prepare = [*COMMAND[:-1], "sample", str(path)]
    assert subprocess.run(prepare, capture_output=True).returncode == 0
    # What holds the head's cores until training has begun sends its worker to the other node.
    holder, held = tmp_path / "holder.py", tmp_path / "held"
    holder.write_text(HOLDER)
    holding = subprocess.Popen([sys.executable, str(holder), str(held)])
    with log.open("wb") as file:
        wait_until(held.exists, holding, log)
        process = subprocess.Popen([*COMMAND, str(path)], stderr=file, start_new_session=True)
    wait_until(lambda: committed_step(storage) >= INTERVAL, process, log)
    holding.terminate()
    holding.wait()
    reached = committed_step(storage)
    two_nodes.remove_node(doomed, allow_graceful=False)
    assert process.wait(timeout=PATIENCE_S) == 0, log.read_text()
    summary = told(storage)
    assert summary["steps"] == STEPS
    (resumed,) = summary["resumed_after"]
    assert reached - INTERVAL <= resumed < STEPS


def placed(address: str) -> set[str]:
    """Placement groups that have their place."""
    groups = list_placement_groups(address=address, detail=True)
    return {group.placement_group_id for group in groups if group.state == "CREATED"}


def test_a_controller_that_dies_before_its_workers_started_keeps_no_slot(
    make_config: MakeConfig, two_nodes: Any, tmp_path: Path
) -> None:
    """What one attempt leaves behind is what the next one needs: the worker takes every core."""
    address, log = two_nodes.address, tmp_path / "log"
    training = {**TRAINING, "max_steps": 2, "workers_per_language": 1}
    path = make_config(languages=["de"], training=training, resources={"threads_per_worker": 2})
    with log.open("wb") as file:
        process = subprocess.Popen([*COMMAND, str(path)], stderr=file, start_new_session=True)
    # Placed, but the process that is to train has only begun to import.
    wait_until(lambda: placed(address), process, log)
    (controller,) = [
        actor.pid
        for actor in list_actors(address=address)
        if actor.class_name == "TrainController" and actor.state == "ALIVE"
    ]
    os.kill(controller, signal.SIGKILL)
    assert process.wait(timeout=PATIENCE_S) == 0, log.read_text()
    assert "starting again" in log.read_text()
    assert told(tmp_path / "storage")["steps"] == 2
