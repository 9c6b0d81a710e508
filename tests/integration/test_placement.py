from __future__ import annotations

from pathlib import Path

import pytest
from ray.util import placement_group
from ray.util.placement_group import (
    PlacementGroup,
    placement_group_table,
    remove_placement_group,
)

from compass_ray.artifacts import Storage
from compass_ray.claims import claim, claim_name
from compass_ray.training.placement import free, free_abandoned, mark

pytestmark = pytest.mark.ray


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
