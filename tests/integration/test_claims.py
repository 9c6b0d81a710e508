from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import ray

from compass_ray import artifacts
from compass_ray.artifacts import Storage
from compass_ray.claims import claim

pytestmark = pytest.mark.ray


@ray.remote(num_cpus=0, max_retries=0)
def make_once(storage: Storage) -> str:
    """As the stages do it: look, claim, look again, work."""
    with claim(storage, "stage", "key"):
        if artifacts.find(storage, "stage", "key"):
            return "found"
        draft = artifacts.begin(storage, "stage", "key")
        draft.write_json("result.json", 1)
        draft.commit()
        return "made"


@ray.remote(num_cpus=0)
class Holder:
    def hold(self, storage: Storage) -> int:
        self._held = claim(storage, "stage", "key")
        self._held.__enter__()
        return os.getpid()


def test_of_many_at_the_same_work_one_does_it(tmp_path: Path) -> None:
    storage = Storage.open(str(tmp_path))
    done = ray.get([make_once.remote(storage) for _ in range(4)], timeout=120)
    assert sorted(done) == ["found", "found", "found", "made"]


def test_a_claim_ends_with_its_holder(tmp_path: Path) -> None:
    storage = Storage.open(str(tmp_path))
    holder = Holder.remote()
    process = ray.get(holder.hold.remote(storage))
    waiting = make_once.remote(storage)
    assert ray.wait([waiting], timeout=1)[0] == []
    os.kill(process, signal.SIGKILL)
    assert ray.get(waiting, timeout=120) == "made"
