"""DeepSpeed and its process group, as every process of a training loads and joins it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def join_group(on_gpu: bool, **options: Any) -> None:
    """Join the group that the environment describes (``RANK``, ``WORLD_SIZE``, ``MASTER_ADDR``).

    Args:
        on_gpu: NCCL instead of Gloo.
        options: of ``deepspeed.init_distributed``.
    """
    # DeepSpeed's autotuner, which nothing here uses, imports MLflow where it is installed: a third
    # of the time that a worker takes to start.
    with _not_importable("mlflow"):
        import deepspeed
    # A shared-memory all-reduce for CPUs that DeepSpeed compiles on first use: 40 s and a C++
    # compiler, to speed up gradients of a few megabytes.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="nccl" if on_gpu else "gloo", **options)


@contextmanager
def _not_importable(name: str) -> Iterator[None]:
    loaded = sys.modules.get(name)
    sys.modules[name] = loaded  # type: ignore[assignment] # None is an ImportError
    try:
        yield
    finally:
        if loaded is None:
            del sys.modules[name]
