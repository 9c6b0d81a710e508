"""The process group of a training, as each of its workers joins it."""

from __future__ import annotations

from typing import Any

from compass_ray.imports import load_deepspeed


def join_group(on_gpu: bool, **options: Any) -> None:
    """Join the group that the environment describes (``RANK``, ``WORLD_SIZE``, ``MASTER_ADDR``).

    Args:
        on_gpu: NCCL instead of Gloo.
        options: of ``deepspeed.init_distributed``.
    """
    load_deepspeed()
    import deepspeed

    # A shared-memory all-reduce for CPUs that DeepSpeed compiles on first use: 40 s and a C++
    # compiler, to speed up gradients of a few megabytes.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="nccl" if on_gpu else "gloo", **options)
