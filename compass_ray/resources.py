"""What the cluster has, and how many of what fit at once.

The arithmetic is pure; only ``cluster`` asks Ray.
"""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass
from typing import Any, Literal

from compass_ray.config import Config, Embedding
from compass_ray.errors import UserError

log = logging.getLogger(__name__)

# By default Ray shows every GPU of a node to a process that has reserved none.
HIDE_GPUS = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"}
# By default Ray tries a task for ever that it ends for lack of memory, whatever its own retries.
FEW_TRIES = {"RAY_task_oom_retries": "3"}
LOCAL_RAY = {
    **HIDE_GPUS,
    **FEW_TRIES,
    # A language needs half a dozen processes that wait; two cores' worth is no limit for them.
    "RAY_worker_maximum_startup_concurrency": "4",
    # By default a worker that no task wants for a second is ended, and the next stage, which comes
    # after encoders or trainers, starts and imports all anew.
    "RAY_idle_worker_killing_time_threshold_ms": "120000",
    # A process a language that looks whether a provider takes nodes back: here there is none.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}


@dataclass(frozen=True)
class Node:
    """What Ray gives away on a node; memory in bytes, about 70 % of what is there."""

    cpus: float
    gpus: float
    memory: float = 0.0


@dataclass(frozen=True)
class Cluster:
    """The live nodes; a worker must fit on one of them whole."""

    nodes: tuple[Node, ...]

    @property
    def cpus(self) -> float:
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> float:
        return sum(node.gpus for node in self.nodes)

    def slots(self, cpus: float, gpus: float) -> int:
        """How many processes of this size fit at once."""
        return sum(min(_fitting(n.cpus, cpus), _fitting_gpus(n.gpus, gpus)) for n in self.nodes)


def _fitting(there: float, each: float) -> int:
    # 1.0 // 0.1 is 9: the last place would be lost to rounding.
    return int(there / each + 1e-9) if each else sys.maxsize


def _fitting_gpus(there: float, each: float) -> int:
    # What is left of two GPUs is no third of a GPU that a process could have.
    return int(there) * _fitting(1, each) if 0 < each < 1 else _fitting(there, each)


@dataclass(frozen=True)
class WorkerShape:
    """What one process of a stage reserves."""

    cpus: float
    gpus: float


def connect() -> None:
    """Join the Ray cluster of ``RAY_ADDRESS``, or start Ray on this machine; once a process.

    Raises ``UserError`` for the address of a dashboard.
    """
    import ray

    if ray.is_initialized():
        return
    # A driver that drowns in its workers' output hides what matters; Ray keeps their logs.
    verbose = log.isEnabledFor(logging.DEBUG)
    if not verbose:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    logging.getLogger("ray").setLevel(logging.INFO if verbose else logging.ERROR)
    level = logging.INFO if verbose else logging.ERROR
    options: dict[str, Any] = {"log_to_driver": verbose, "logging_level": level}
    if address := os.environ.get("RAY_ADDRESS"):
        check_address(address)
        # Read by the process that starts a task.
        for name, value in FEW_TRIES.items():
            os.environ.setdefault(name, value)
        ray.init(runtime_env={"env_vars": {**HIDE_GPUS, **FEW_TRIES}}, **options)
    else:
        start_local(**options)


def check_address(address: str) -> None:
    """Raise ``UserError`` for a dashboard, which takes jobs; nothing else can join it."""
    if address.startswith(("http://", "https://")):
        raise UserError(
            f"RAY_ADDRESS: {address} is a dashboard, where jobs are submitted; put it into "
            "RAY_API_SERVER_ADDRESS, and give the host:port of a cluster or unset RAY_ADDRESS"
        )


def start_local(**options: Any) -> None:
    """Start Ray on this machine for this process alone; options as ``ray.init`` has them."""
    import ray

    for name, value in LOCAL_RAY.items():
        os.environ.setdefault(name, value)
    # Placement groups of Train are cleaned up through the dashboard's state API.
    ray.init(address="local", include_dashboard=True, **options)


def cluster() -> Cluster:
    """The nodes Ray has now."""
    import ray

    connect()
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return Cluster(
        tuple(Node(n.get("CPU", 0.0), n.get("GPU", 0.0), n.get("memory", 0.0)) for n in alive)
    )


def this_node() -> Any:
    """A scheduling strategy: on the node of this process or nowhere, so that both end together."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def worker_shape(config: Config, on: Cluster) -> WorkerShape:
    """A training or evaluation worker: its threads, and a GPU where the cluster has any."""
    gpus = config.resources.gpus_per_worker
    if gpus == "auto":
        gpus = 1.0 if on.gpus else 0.0
    return WorkerShape(float(config.resources.threads_per_worker), gpus)


def check_gpu(shape: WorkerShape) -> None:
    """Raise ``UserError`` in a worker that was given a GPU which PyTorch cannot use."""
    import torch

    if shape.gpus and not torch.cuda.is_available():
        raise UserError(
            f"resources.gpus_per_worker: a worker was given {shape.gpus:g} GPU, but PyTorch "
            f"{torch.__version__} finds none it can use on that node, as with a driver that is "
            "older than its CUDA; compass-ray doctor says more"
        )


def check_attention(config: Config, on: Cluster) -> None:
    """Raise ``UserError`` for a kernel that trains on GPUs only where the workers get none."""
    attention = config.training.attention
    if attention != "auto" and not worker_shape(config, on).gpus:
        raise UserError(
            f"training.attention: {attention} needs a GPU, and the workers have none; use auto"
        )


def parallel_languages(config: Config, on: Cluster) -> int:
    """How many languages train side by side.

    Raises ``UserError`` when not even one language's workers fit at once, which would otherwise
    wait for ever, and when they would meet on one GPU, which NCCL refuses.
    """
    shape = worker_shape(config, on)
    workers = config.training.workers_per_language
    if workers > 1 and 0 < shape.gpus < 1:
        raise UserError(
            f"resources.gpus_per_worker: {shape.gpus:g} is for one worker a language; each of the "
            f"{workers} of training.workers_per_language needs a GPU of its own"
        )
    slots = on.slots(shape.cpus, shape.gpus)
    if slots < workers:
        raise UserError(
            f"training.workers_per_language: {workers} workers of {shape.cpus:g} CPU and "
            f"{shape.gpus:g} GPU asked, the cluster ({on.cpus:g} CPU, {on.gpus:g} GPU) fits {slots}"
        )
    limit = config.resources.max_parallel_languages
    fitting = slots // workers
    wanted = len(config.languages) if limit == "auto" else limit
    return max(1, min(fitting, wanted, len(config.languages)))


def encoder_actors(config: Embedding, on: Cluster, device: Literal["cpu", "cuda"]) -> int:
    """One encoder for every ``embedding.threads`` CPUs, and a GPU where it runs on one.

    Raises ``UserError`` when no node has room for one, which would otherwise wait for ever.
    """
    fitting = on.slots(config.threads, 1 if device == "cuda" else 0)
    if fitting < 1:
        beside = " beside a GPU" if device == "cuda" else ""
        raise UserError(
            f"embedding.threads: {config.threads} CPUs asked for one encoder, "
            f"no node of the cluster ({on.cpus:g} CPU) has them{beside}"
        )
    return fitting if config.actors == "auto" else min(config.actors, fitting)
