from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def local_ray() -> Iterator[None]:
    """One Ray for the session of two slots."""
    import ray

    from compass_ray.resources import start_local

    start_local(num_cpus=2, log_to_driver=False)
    yield
    ray.shutdown()
