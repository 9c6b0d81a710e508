from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray.util.state import list_actors, list_placement_groups

from compass_ray import load_config, run
from compass_ray.search.driver import SearchResult, search
from compass_ray.search.results import Trial

pytestmark = pytest.mark.ray

MakeConfig = Callable[..., Path]
# A rate of nothing learns nothing: every such trial is the worse one at the first rung.
SPACE = {
    "training.learning_rate": [0.03, 1e-9],
    "clustering.k": [4, 8],
}


# Ray Data starts these once a cluster and keeps them.
RAYS_OWN = {"_StatsActor", "_AutoscalingCoordinatorActor", "ActorLocationTracker"}


def alive() -> set[tuple[str, str]]:
    """Placement groups and actors that Ray still has."""
    # Named, since a second Ray on the machine would make the search for it ambiguous.
    address = ray.get_runtime_context().gcs_address
    groups = {
        ("group", group.placement_group_id)
        for group in list_placement_groups(address=address, limit=1000)
        if group.state != "REMOVED"
    }
    actors = {
        (actor.class_name, actor.actor_id)
        for actor in list_actors(address=address, limit=1000)
        if actor.state != "DEAD" and actor.class_name not in RAYS_OWN
    }
    return groups | actors


def wait_until_gone(before: set[tuple[str, str]]) -> set[tuple[str, str]]:
    deadline = time.monotonic() + 180
    while (left := alive() - before) and time.monotonic() < deadline:
        time.sleep(0.5)
    return left


def by_status(trials: tuple[Trial, ...], status: str) -> list[Trial]:
    return [trial for trial in trials if trial.status == status]


def kill_a_trial(killed: list[int]) -> None:
    """What a node of theirs takes along when it is lost: a trial, and who holds the samplers."""
    address = ray.get_runtime_context().gcs_address
    ready = [("state", "=", "ALIVE")]
    for name in ("Samplers", "ResourceTrainable"):
        found: list[int] = []
        while not found:
            actors = list_actors(address=address, filters=ready)
            found = [actor.pid for actor in actors if actor.class_name.endswith(name)]
        os.kill(found[0], signal.SIGKILL)
        killed += found


@pytest.fixture(scope="module")
def shared_storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("searches") / "storage"


def test_trials_share_the_cache_and_stopped_ones_leave_nothing(
    make_config: MakeConfig, shared_storage: Path
) -> None:
    before = alive()
    path = make_config(
        run={"storage": str(shared_storage)},
        languages=["de"],
        training={"max_steps": 120, "checkpoint_steps": 1000, "learning_rate": 0.03},
        evaluation={"limit": 4},
        search={
            "space": SPACE,
            "metric": ["accuracy", "tokens"],
            "asha": {"grace_steps": 40, "reduction_factor": 2},
            "max_parallel_trials": 2,
        },
    )
    result = search(load_config(path))
    finished, stopped = by_status(result.trials, "finished"), by_status(result.trials, "stopped")
    assert len(finished) + len(stopped) == 4
    assert finished and stopped, result.trials
    # Whatever comes first to a rung goes on; the last one that learns nothing is stopped.
    assert 1e-9 in {trial.values["training.learning_rate"] for trial in stopped}
    assert wait_until_gone(before) == set()

    entries = list((shared_storage / "cache/cluster").iterdir())
    assert len(entries) == 2
    assert all(len(list(entry.glob("attempt-*"))) == 1 for entry in entries)
    assert sum(trial.embedded_rows for trial in result.trials) == 0, "the driver embeds once"

    again = search(load_config(path))
    assert {trial.key: trial for trial in again.trials} == {t.key: t for t in result.trials}
    assert Path(str(result.report)).read_text().count("<td>stopped") == len(stopped)

    best = run(load_config(Path(str(result.best_config))))
    assert best.failures == {}
    written = yaml.safe_load(Path(str(result.best_config)).read_text())
    assert written["clustering"]["k"] == result.best.values["clustering.k"]
    manifest = yaml.safe_load(Path(best.folder, "manifest.json").read_text())["stages"]
    assert all(told["reused"] for told in manifest["train"]["languages"].values())


def test_optuna_goes_on_from_the_trials_that_are_over(
    make_config: MakeConfig,
    shared_storage: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def searched(**settings: Any) -> SearchResult:
        space = {"sampling.temperature": {"from": 0.05, "to": 1.0, "log": True}}
        path = make_config(
            run={"name": "proposed", "storage": str(shared_storage)},
            languages=["de"],
            training={"max_steps": 2},
            search={"space": space, **settings},
        )
        return search(load_config(path))

    killed: list[int] = []
    watching = threading.Thread(target=kill_a_trial, args=(killed,), daemon=True)
    watching.start()
    first = searched(num_samples=1)
    assert len(killed) == 2, "it was tried again, without samplers that stay"
    assert [trial.status for trial in first.trials] == ["finished"]
    # What becomes of a job's directory where several nodes share it.
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    second = searched(num_samples=2, metric=["accuracy", "loss"])
    assert len(second.trials) == 2
    assert first.trials[0] in second.trials
    values = [trial.values["sampling.temperature"] for trial in second.trials]
    assert len(set(values)) == 2 and all(0.05 <= value <= 1 for value in values)
