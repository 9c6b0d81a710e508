from __future__ import annotations

from pathlib import Path

import pytest

from compass_ray.artifacts import Storage
from compass_ray.continual.registry import Registry
from compass_ray.report.page import build_report


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    storage = Storage.open(str(tmp_path))
    storage.write_json("runs/r/manifest.json", {"name": "r", "config": {"languages": ["de"]}})
    registry = Registry(storage, "r", "de")
    about = {"kind": "run", "parent": None, "fingerprint": "a"}
    registry.make_current(registry.add({}, about), "made by the run")
    return storage


def test_a_run_that_was_neither_watched_nor_updated_has_no_such_section(storage: Storage) -> None:
    assert "In production" not in build_report(storage, "r")


def test_windows_and_versions_are_on_the_page(storage: Storage) -> None:
    window = {"language": "de", "divergence": 0.1, "threshold": 0.2, "drifted": False}
    moved = {**window, "divergence": 0.5, "drifted": True}
    storage.write_json("runs/r/monitor/state.json", {"windows": [window, moved]})
    about = {"kind": "update", "parent": 1, "fingerprint": "b", "reason": "gains <nothing>"}
    Registry(storage, "r", "de").add({}, about)
    page = build_report(storage, "r")
    assert "Divergence of 2 windows of usage; 1 drifted." in page
    assert "v0001 (current)" in page and "gains &lt;nothing&gt;" in page
