"""Whether the nodes of a cluster share a storage."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compass_ray.artifacts import Storage
from compass_ray.errors import UserError
from compass_ray.resources import connect

log = logging.getLogger(__name__)

# Where Ray unpacks what a job brings along.
_JOB_FOLDER = "/runtime_resources/working_dir_files/"


def check_reach(storage: Storage) -> None:
    """Raise ``UserError`` for a folder that the other nodes of ``RAY_ADDRESS`` do not see.

    One that goes with a job is told: on one node it works, and is lost when files change.
    Takes one task on one of them; object stores and this machine alone take none.
    """
    if not storage.is_local or (os.environ.get("RAY_ADDRESS") or "local") == "local":
        return
    if is_in_job(storage.uri):
        log.warning(
            "run.storage: %s lies in the files that Ray unpacked for this job, and one submitted "
            "after a change begins anew; give a URI or an absolute path, such as "
            "--set run.storage=s3://bucket/compass",
            storage.uri,
        )
    if not _seen_elsewhere(storage):
        raise UserError(
            f"run.storage: {storage.uri} is not there on other nodes of the cluster; give a place "
            "that every node can read and write, such as s3://bucket/compass or a shared folder"
        )


def is_in_job(path: str) -> bool:
    """Whether a folder is in a job's working directory, of which a changed file makes another."""
    return _JOB_FOLDER in path


def other_node(nodes: Sequence[Mapping[str, Any]], here: str) -> str | None:
    """The id of the largest live node but this one; None where no other offers a CPU.

    ``nodes`` are as ``ray.nodes()`` lists them.
    """
    others = [
        (node["Resources"]["CPU"], node["NodeID"])
        for node in nodes
        if node["Alive"] and node["NodeID"] != here and node["Resources"].get("CPU")
    ]
    return max(others)[1] if others else None


def _seen_elsewhere(storage: Storage) -> bool:
    """Whether another node finds a file that is written here; true where there is none to ask."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    connect()
    node = other_node(ray.nodes(), ray.get_runtime_context().get_node_id())
    if node is None:
        return True
    probe = f"probe-{secrets.token_hex(8)}"
    storage.write_bytes(probe, b"")
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    look = ray.remote(num_cpus=0, scheduling_strategy=there)(_exists)
    try:
        return bool(ray.get(look.remote(storage, probe)))
    except ray.exceptions.TaskUnschedulableError:  # the node has left
        return True
    finally:
        Path(storage.path(probe)).unlink()


def _exists(storage: Storage, path: str) -> bool:
    return storage.exists(path)
