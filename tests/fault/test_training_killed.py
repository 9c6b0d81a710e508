"""A node, a worker, the Train controller and the driver are lost while an adapter is trained.

All but the last is mended without help; after the driver, the same command goes on where it was.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from ray.util.state import list_actors, list_placement_groups

from .conftest import INTERVAL, STEPS, TRAINING, Started, start

pytestmark = pytest.mark.ray

MakeConfig = Callable[..., Path]
HOLDER = """
import pathlib, ray, sys, time
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

ray.init()
alive = [node for node in ray.nodes() if node["Alive"]]
(head,) = [node["NodeID"] for node in alive if "doomed" not in node["Resources"]]

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


def told(storage: Path, run: str) -> dict[str, Any]:
    manifest = json.loads((storage / f"runs/{run}/manifest.json").read_text())
    return manifest["stages"]["train"]["languages"]["de"]


def alive(address: str, actor: str) -> set[int]:
    """The processes of actors of that class."""
    actors = list_actors(address=address, filters=[("state", "=", "ALIVE")])
    return {found.pid for found in actors if found.class_name == actor}


def replaced(address: str, workers: set[int]) -> bool:
    """Whether others are in the place of those; the lost ones may live on for a while."""
    now = alive(address, "RayTrainWorker")
    return bool(now) and not now & workers


def test_whatever_is_lost_costs_a_checkpoint_interval(
    make_config: MakeConfig, cluster: Any, sampled: Path, tmp_path: Path
) -> None:
    path = make_config(
        run={"name": "killed", "storage": str(sampled)}, languages=["de"], training=TRAINING
    )
    doomed = cluster.add_node(num_cpus=2, resources={"doomed": 1})
    cluster.wait_for_nodes()
    # What holds the head's cores until training has begun sends the workers to the other node.
    log, holder, held = tmp_path / "log", tmp_path / "holder.py", tmp_path / "held"
    holder.write_text(HOLDER)
    holding = Started(subprocess.Popen([sys.executable, str(holder), str(held)]), log)
    holding.wait_until(held.exists)
    command = start(log, "train", path)
    reached = []
    for lost in ("node", "RayTrainWorker", "TrainController", "driver"):
        goal = committed_step(sampled) + INTERVAL
        command.wait_until(lambda goal=goal: committed_step(sampled) >= goal)
        reached.append(committed_step(sampled))
        workers = alive(cluster.address, "RayTrainWorker")
        if lost == "node":
            holding.kill()
            cluster.remove_node(doomed, allow_graceful=False)
        elif lost == "driver":
            command.kill()
        else:
            os.kill(alive(cluster.address, lost).pop(), signal.SIGKILL)
        if lost != "driver":
            command.wait_until(lambda old=workers: replaced(cluster.address, old), every=1)
    assert "starting again" in log.read_text()

    start(log, "train", path).finish()
    stages = json.loads((sampled / "runs/killed/manifest.json").read_text())["stages"]
    assert stages["records"]["computed"] == stages["embed"]["computed_rows"] == 0
    assert stages["cluster"]["reused"] and stages["sample"]["languages"]["de"]["reused"]
    summary = told(sampled, "killed")
    resumed = summary["resumed_after"]
    assert len(resumed) == len(reached)
    for before, after in zip(reached, resumed, strict=True):
        assert 0 < after < STEPS and after >= before - INTERVAL
    losses = pq.read_table(sampled / "runs/killed/losses/de.parquet")
    assert losses["step"].to_pylist() == list(range(1, STEPS + 1))


def placed(address: str) -> set[str]:
    """Placement groups that have their place."""
    groups = list_placement_groups(address=address, detail=True)
    return {group.placement_group_id for group in groups if group.state == "CREATED"}


def test_a_controller_that_dies_before_its_workers_started_keeps_no_slot(
    make_config: MakeConfig, cluster: Any, sampled: Path, tmp_path: Path
) -> None:
    """What one attempt leaves behind is what the next one needs: the worker takes every core."""
    path = make_config(
        run={"name": "short", "storage": str(sampled)},
        languages=["de"],
        training={**TRAINING, "max_steps": 2, "workers_per_language": 1},
        resources={"threads_per_worker": 2},
    )
    command = start(tmp_path / "log", "train", path)
    # Placed, but the process that is to train has only begun to import.
    command.wait_until(lambda: placed(cluster.address))
    os.kill(alive(cluster.address, "TrainController").pop(), signal.SIGKILL)
    command.finish()
    assert "starting again" in command.log.read_text()
    assert told(sampled, "short")["steps"] == 2
