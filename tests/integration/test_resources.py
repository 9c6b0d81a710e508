from __future__ import annotations

import os

import pytest
import ray

pytestmark = pytest.mark.ray


def test_who_reserved_no_gpu_sees_none() -> None:
    seen = ray.remote(num_cpus=1)(os.getenv).remote("CUDA_VISIBLE_DEVICES")
    assert ray.get(seen) == ""
