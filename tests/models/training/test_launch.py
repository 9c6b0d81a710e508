from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.train import TrainingFailedError
from ray.train.v2._internal import constants

from compass_ray import artifacts
from compass_ray.artifacts import Artifact, Storage
from compass_ray.resources import LOCAL_RAY
from compass_ray.training import launch
from compass_ray.training.launch import LOOK_ENV, LOOK_S


def test_settings_of_train_are_such_that_it_has_and_takes_to_its_controllers() -> None:
    """Train ignores a setting that it does not know: a name it no longer has would go unnoticed."""
    ours = {LOOK_ENV, *(name for name in LOCAL_RAY if name.startswith("RAY_TRAIN_"))}
    assert ours <= constants.ENV_VARS_TO_PROPAGATE
    assert float(LOOK_S) < constants.DEFAULT_HEALTH_CHECK_INTERVAL_S


class Training:
    """A language's training, of which every attempt but the last is lost."""

    def __init__(self, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
        self.storage, self.restarts = storage, 0
        self._patch = monkeypatch
        monkeypatch.setattr(launch, "free", lambda claim: None)
        monkeypatch.setattr(launch, "back_off", lambda failures: 0)

    def commit(self) -> Artifact:
        return artifacts.begin(self.storage, launch.STAGE, "f00").commit()

    def run(self, attempt: Callable[..., Artifact], steps: tuple[int, ...]) -> Artifact:
        """``steps`` is what the newest checkpoint has after each loss."""
        left = iter(steps)
        self._patch.setattr(launch, "_fit_once", attempt)
        self._patch.setattr(launch, "_committed_step", lambda *run: next(left))
        job: Any = SimpleNamespace(
            subset=SimpleNamespace(storage=self.storage),
            training=SimpleNamespace(max_failures=1),
            language="de",
            fingerprint="f00",
            claim="claim",
        )
        board = SimpleNamespace(on_restart=SimpleNamespace(remote=self._on_restart))
        return launch._train(job, board)

    def _on_restart(self, language: str, cause: str) -> None:
        self.restarts += 1

    def lost_at(self, *steps: int) -> Artifact:
        losses = len(steps)

        def attempt(*given: Any) -> Artifact:
            nonlocal losses
            losses -= 1
            if losses < 0:
                return self.commit()
            raise TrainingFailedError("a node was lost")

        return self.run(attempt, steps)


@pytest.fixture
def training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Training:
    return Training(Storage.open(str(tmp_path)), monkeypatch)


def test_losses_are_counted_since_training_last_got_on(training: Training) -> None:
    with pytest.raises(TrainingFailedError):
        training.lost_at(10, 20, 20, 30)
    assert training.restarts == 2
    assert training.lost_at(10, 20, 30, 40).fingerprint == "f00"
    assert training.restarts == 2 + 4


def test_what_another_cluster_has_trained_meanwhile_is_taken(training: Training) -> None:
    runs = f"{artifacts.entry_path(launch.STAGE, 'f00')}/runs"

    def overtaken(*given: Any) -> Artifact:
        training.commit()
        training.storage.write_bytes(f"{runs}/adapter/left", b"")
        raise TrainingFailedError("Unable to set up cluster storage")

    assert training.run(overtaken, ()).fingerprint == "f00"
    assert training.restarts == 0
    assert not training.storage.exists(runs)
