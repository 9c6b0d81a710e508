from __future__ import annotations

from pathlib import Path

import pytest

from compass_ray import reach
from compass_ray.artifacts import Storage
from compass_ray.errors import UserError
from compass_ray.reach import check_reach, is_in_job, other_node


def node(name: str, alive: bool = True, **resources: float) -> dict[str, object]:
    return {"NodeID": name, "Alive": alive, "Resources": resources}


def test_the_largest_other_node_that_works_is_asked() -> None:
    here, small, large = node("here", CPU=64), node("small", CPU=2), node("large", CPU=8)
    idle = [node("head", memory=1e9), node("gone", alive=False, CPU=128)]
    assert other_node([here, small, large, *idle], "here") == "large"
    assert other_node([here, *idle], "here") is None


def test_a_folder_that_other_nodes_lack_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Storage] = []
    monkeypatch.setattr(reach, "_seen_elsewhere", lambda storage: bool(asked.append(storage)))
    storage = Storage.open(str(tmp_path))
    for alone in ("", "local"):
        monkeypatch.setenv("RAY_ADDRESS", alone)
        check_reach(storage)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    check_reach(Storage.open("s3://bucket/compass?region=eu-west-1"))
    assert asked == []
    with pytest.raises(UserError, match=f"run.storage: {tmp_path} is not there on other nodes"):
        check_reach(storage)
    assert asked == [storage]
    monkeypatch.setattr(reach, "_seen_elsewhere", lambda storage: True)
    check_reach(storage)


def test_a_folder_in_the_files_of_a_job_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    unpacked = "/tmp/ray/session_1/runtime_resources/working_dir_files/_ray_pkg_0a1b"
    assert is_in_job(f"{unpacked}/outputs") and not is_in_job("/mnt/compass")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(reach, "_seen_elsewhere", lambda storage: True)
    check_reach(Storage.open(f"{unpacked}/outputs"))
    assert "outputs lies in the files that Ray unpacked" in caplog.text
