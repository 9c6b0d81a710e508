from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pytest

from compass_ray.artifacts import Artifact, Storage
from compass_ray.config import Config
from compass_ray.continual.methods import Method, Parent, start_of
from compass_ray.loading import build_config
from compass_ray.training.launch import adapter_fingerprint

PARENT = Parent("runs/a/adapters/de/v0001", "trained", 0, "first", pa.table({"prompt": ["a"]}))


def named(method: Method, config: Config, parent: Parent) -> str:
    subset = Artifact(Storage.open("."), "sample", "rows", "attempt-1", (), {})
    return adapter_fingerprint(config, "de", subset, start_of(method, config, parent))


@pytest.mark.parametrize(("method", "other"), [("ecda", True), ("ewc", True), ("naive", False)])
def test_other_anchors_make_another_adapter_where_they_are_used(
    method: Method, other: bool
) -> None:
    config = build_config({"languages": ["de"]})
    before = named(method, config, PARENT)
    assert (named(method, config, replace(PARENT, anchors="second")) != before) == other
    assert named(method, config, replace(PARENT, folder="runs/b/adapters/de/v0001")) == before
