from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
from ray.util import placement_group
from ray.util.placement_group import (
    PlacementGroup,
    placement_group_table,
    remove_placement_group,
)

from compass_ray.artifacts import Storage
from compass_ray.claims import claim, claim_name
from compass_ray.resources import WorkerShape
from compass_ray.training import placement
from compass_ray.training.placement import Places, free, free_abandoned, mark

pytestmark = pytest.mark.ray


class Waiting(NamedTuple):
    """What is looked at of a training that has been started."""

    language: str
    claim: str
    workers: int
    shape: WorkerShape


def made_under(name: str) -> PlacementGroup:
    group = placement_group([{"CPU": 0.25, "memory": mark(name)}] * 2)
    assert group.wait(60)
    return group


def state(group: PlacementGroup) -> str:
    told: str = placement_group_table(group)["state"]
    return told


def test_groups_of_nobodys_claim_go_and_others_stay(tmp_path: Path) -> None:
    storage = Storage.open(str(tmp_path))
    with claim(storage, "train", "held"):
        held = made_under(claim_name(storage, "train", "held"))
        abandoned = made_under(claim_name(storage, "train", "abandoned"))
        foreign = placement_group([{"CPU": 0.25}])
        assert foreign.wait(60)
        free_abandoned()
        assert [state(g) for g in (held, abandoned, foreign)] == ["CREATED", "REMOVED", "CREATED"]
        free(claim_name(storage, "train", "held"))
        assert [state(g) for g in (held, foreign)] == ["REMOVED", "CREATED"]
    free_abandoned()
    assert state(foreign) == "CREATED"
    remove_placement_group(foreign)


def test_a_training_without_a_place_says_so_once_and_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(placement.log, "warning", lambda text, *told: said.append(text % told))
    shape, large = WorkerShape(2, 0), WorkerShape(3, 0)
    jobs = [
        Waiting("de", "a", 1, shape),
        Waiting("sw", "b", 1, shape),
        Waiting("nl", "c", 1, large),
    ]
    first = placement_group([{"CPU": 2, "memory": mark("a")}])
    assert first.wait(60)
    behind = placement_group([{"CPU": 2, "memory": mark("b")}])
    places = Places()
    for _ in range(3):
        places.warn(jobs)
    for group in (first, behind):
        remove_placement_group(group)
    wait = "its workers (1 of {} CPU and 0 GPU) wait:"
    assert said == [
        f"train nl: {wait.format(3)} the cluster has room for 0 until more nodes join",
        f"train sw: {wait.format(2)} others have the room",
    ]
