"""What this machine, or the cluster that ``RAY_ADDRESS`` names, is made of.

Never starts Ray here: without ``RAY_ADDRESS`` the machine describes itself, and Ray is not even
imported.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

from compass_ray.errors import UserError
from compass_ray.planning.gpus import gpu_bytes, gpu_flops
from compass_ray.resources import Cluster, Node, check_address, cluster

CONNECT_SECONDS = 5.0

_ACCELERATOR = "accelerator_type:"


@dataclass(frozen=True)
class Hardware:
    """Nodes, and what a worker finds on one.

    Attributes:
        where: ``this machine``, or the address of the cluster.
        nodes: number of nodes.
        cpus: cores of all nodes.
        gpus: GPUs of all nodes.
        gpu: name of the slowest kind of GPU; None where there is none or it is not known.
        gpu_bytes: memory of one of them; None where it is not known.
        node_bytes: memory of the smallest node; None where it is not known.
    """

    where: str
    nodes: int
    cpus: float
    gpus: float
    gpu: str | None
    gpu_bytes: int | None
    node_bytes: int | None


def look() -> tuple[Cluster, Hardware]:
    """The nodes as ``resources`` reckons with them, and what they are.

    Raises ``UserError`` if nothing that can be joined answers at ``RAY_ADDRESS``.
    """
    address = os.environ.get("RAY_ADDRESS")
    return _remote(address) if address and address != "local" else _here()


def memory_bytes() -> int | None:
    """Memory of this machine; the limit of its container where there is one."""
    try:
        installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
    limits = [installed]
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(file) as stream:
                limits.append(int(stream.read()))
        except (OSError, ValueError):
            continue
    return min(limits)


def _here() -> tuple[Cluster, Hardware]:
    import torch

    cpus, gpus = float(os.cpu_count() or 1), float(torch.cuda.device_count())
    cards = [torch.cuda.get_device_properties(i) for i in range(int(gpus))]
    slowest = min(cards, key=lambda card: gpu_flops(card.name), default=None)
    hardware = Hardware(
        where="this machine",
        nodes=1,
        cpus=cpus,
        gpus=gpus,
        gpu=slowest.name if slowest else None,
        gpu_bytes=min((int(card.total_memory) for card in cards), default=None),
        node_bytes=memory_bytes(),
    )
    return Cluster((Node(cpus, gpus),)), hardware


def _remote(address: str) -> tuple[Cluster, Hardware]:
    import ray

    check_address(address)
    _check_listening(address)
    try:
        nodes = cluster()
    except ConnectionError:
        raise UserError(
            f"RAY_ADDRESS: no Ray cluster lets us in at {address}; a cluster with a token wants it "
            "in RAY_AUTH_TOKEN, with RAY_AUTH_MODE=token"
        ) from None
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    names = {
        name.removeprefix(_ACCELERATOR)
        for offered in resources
        for name in offered
        if name.startswith(_ACCELERATOR)
    }
    slowest = min(names, key=gpu_flops, default=None)
    memory = [int(offered["memory"]) for offered in resources if "memory" in offered]
    hardware = Hardware(
        where=address,
        nodes=len(nodes.nodes),
        cpus=nodes.cpus,
        gpus=nodes.gpus,
        gpu=slowest,
        gpu_bytes=gpu_bytes(slowest) if slowest else None,
        node_bytes=min(memory, default=None),
    )
    return nodes, hardware


def _check_listening(address: str) -> None:
    """Ray itself tries for minutes before it gives up on an address where nothing listens."""
    host, _, port = address.rpartition("://")[2].partition("/")[0].rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise UserError(
            f"RAY_ADDRESS: nothing answers at {address} ({error.strerror or error})"
        ) from None
