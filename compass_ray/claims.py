"""One worker at a time on one piece of work, across all runs and trials of a Ray cluster.

Whoever is about to compute a cache entry claims it first; a second comer waits and then finds it
done. A claim is a named actor that does nothing: Ray lets one of a name exist, and ends it when
the process that made it dies, so no claim outlives its holder. Neither does a holder outlive its
claim, which is on the holder's node.

Nothing is claimed from runs of another Ray cluster on the same storage, and each local
``compass-ray run`` is a cluster of its own: they may do the same work twice. Results are right all
the same, since entries are committed whole.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from compass_ray import artifacts
from compass_ray.artifacts import Storage
from compass_ray.resources import connect, this_node

log = logging.getLogger(__name__)

NAMESPACE = "compass_ray"
RETRY_S = 0.1


class _Claim:
    async def released(self) -> None:
        """Never returns: the call fails when the claim ends."""
        await asyncio.Event().wait()


def claim_name(storage: Storage, stage: str, fingerprint: str) -> str:
    # Names are shown in Ray's dashboard, and a URI may hold a secret.
    entry = artifacts.fingerprint(storage=storage.uri, stage=stage, entry=fingerprint)
    return f"claim-{stage}-{entry}"


@contextmanager
def claim(storage: Storage, stage: str, fingerprint: str) -> Iterator[None]:
    """Hold the only claim on a cache entry; waits while someone else holds it.

    Look into the cache again once it is held: whoever held it before may have done the work.
    """
    connect()
    name = claim_name(storage, stage, fingerprint)
    holder = _try_to_take(name)
    if holder is None:
        log.info("%s: waiting for another run or trial that is at the same work", stage)
    while holder is None:
        _wait_for_release(name)
        holder = _try_to_take(name)
    try:
        yield
    finally:
        ray.kill(holder)


def _try_to_take(name: str) -> Any | None:
    try:
        return (
            ray.remote(_Claim)
            .options(name=name, namespace=NAMESPACE, num_cpus=0, scheduling_strategy=this_node())
            .remote()
        )
    except ValueError:
        return None


def _wait_for_release(name: str) -> None:
    try:
        ray.get(ray.get_actor(name, namespace=NAMESPACE).released.remote())
    except (ValueError, ray.exceptions.RayActorError):
        # Ray frees the name a moment after the actor is gone.
        time.sleep(RETRY_S)
