"""Placement groups that a Train controller left behind.

Train has a group freed after its controller only once the group's workers have started. A
controller that dies before, or is stopped with its trial, leaves the group for as long as the Ray
job lasts, and whatever is trained next waits behind it. So each group carries a mark of the claim
it was made under: a little memory in its bundles, since Train gives its groups no name.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING
from zlib import crc32

import ray
from ray.util import list_named_actors
from ray.util.placement_group import (
    PlacementGroup,
    placement_group_table,
    remove_placement_group,
)

from compass_ray.claims import NAMESPACE
from compass_ray.resources import cluster

if TYPE_CHECKING:
    from compass_ray.training.launch import Job

log = logging.getLogger(__name__)

# Bytes, so that a mark reserves next to nothing; no group of anyone else reserves as little.
_MARKS = 1 << 24
_UNPLACED = ("PENDING", "RESCHEDULING")


def mark(claim: str) -> int:
    """Memory in bytes, 1 to 2**24, that says under which claim a group was made."""
    return 1 + crc32(claim.encode()) % _MARKS


def free(claim: str) -> None:
    """Remove what was made under a claim; for its holder, between two controllers."""
    _remove(group for group, found, _ in _marked() if found == mark(claim))


def free_abandoned() -> None:
    """Remove every marked group whose claim nobody holds any more."""
    marked = list(_marked())
    # Read after the groups: a claim is taken before its group is made, so none looks abandoned.
    actors = list_named_actors(all_namespaces=True)
    held = {mark(actor["name"]) for actor in actors if actor["namespace"] == NAMESPACE}
    _remove(group for group, found, _ in marked if found not in held)


class Places:
    """Says which trainings wait for a place, and why; once for each."""

    def __init__(self) -> None:
        self._told: set[str] = set()
        self._waiting: set[int] = set()

    def warn(self, jobs: Iterable[Job]) -> None:
        """Look at trainings that have been started; to be called again and again."""
        waiting = {found for _, found, state in _marked() if state in _UNPLACED}
        on = cluster()
        for job in jobs:
            slots = on.slots(job.shape.cpus, job.shape.gpus)
            if job.language in self._told:
                continue
            if slots < job.workers:
                why = f"the cluster has room for {slots} until more nodes join"
            elif mark(job.claim) in waiting & self._waiting:
                why = "others have the room"
            else:
                continue
            self._told.add(job.language)
            workers = f"{job.workers} of {job.shape.cpus:g} CPU and {job.shape.gpus:g} GPU"
            log.warning("train %s: its workers (%s) wait: %s", job.language, workers, why)
        self._waiting = waiting


def _remove(groups: Iterable[PlacementGroup]) -> None:
    for group in groups:
        log.debug("train: removing placement group %s, its controller is gone", group.id.hex())
        remove_placement_group(group)


def _marked() -> Iterator[tuple[PlacementGroup, int, str]]:
    """Groups that carry a mark, the mark, and the state of each."""
    for name, told in placement_group_table().items():
        marks = {int(bundle.get("memory", 0)) for bundle in told["bundles"].values()}
        if told["state"] != "REMOVED" and len(marks) == 1 and 0 < (found := marks.pop()) <= _MARKS:
            group = PlacementGroup(ray.PlacementGroupID(bytes.fromhex(name)))
            yield group, found, told["state"]
