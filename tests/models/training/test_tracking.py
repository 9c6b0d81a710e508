from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from compass_ray.artifacts import Storage
from compass_ray.config import Config
from compass_ray.training import tracking
from compass_ray.training.tracking import Trackers

IDENTITY = "0123456789abcdef0123"
STEPS = [
    {"step": n, "loss": 3.0 / n, "learning_rate": 1e-4, "tokens": 10 * n, "seconds": 0.5}
    | {"targets": 3, "validation_loss": 2.5 if n == 2 else None}
    for n in (1, 2, 3)
]


def trackers(name: str, storage: Path, *others: str) -> Trackers:
    config = Config.model_validate(
        {"languages": ["sw"], "run": {"name": "night", "trackers": [name, *others]}}
    )
    return Trackers(config, Storage.open(str(storage)), {"sw": IDENTITY})


def follow(name: str, storage: Path, failed: bool = False) -> None:
    """Two steps; then, as after a crash, the second again and the third."""
    first = trackers(name, storage)
    first.log("sw", STEPS[:2])
    first.log("sw", STEPS[1:2])
    first.close("sw", failed=True)
    again = trackers(name, storage)
    again.log("sw", STEPS[2:])
    again.close("sw", failed)


def events(file: Path) -> Iterator[Any]:
    from tensorboardX.proto.event_pb2 import Event

    data = file.read_bytes()
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        yield Event.FromString(data[12 : 12 + length])
        data = data[length + 16 :]


def records(file: Path) -> Iterator[Any]:
    """What W&B wrote of a run, in LevelDB's log format behind a header; one block is enough."""
    from wandb.proto.wandb_internal_pb2 import Record

    data = file.read_bytes()[7:32768]
    while len(data) > 7:
        _, length, whole = struct.unpack("<IHB", data[:7])
        assert whole == 1
        yield Record.FromString(data[7 : 7 + length])
        data = data[7 + length :]


def on_tensorboard(storage: Path) -> dict[tuple[str, int], float]:
    """Values by tag and step."""
    return {
        (value.tag, event.step): value.simple_value
        for file in (storage / f"runs/night/tensorboard/sw/{IDENTITY}").iterdir()
        for event in events(file)
        for value in event.summary.value
    }


def losses_of(found: dict[tuple[str, int], float]) -> dict[int, float]:
    return {step: value for (tag, step), value in found.items() if tag == "train/loss"}


def test_a_tracker_that_fails_is_told_once_and_takes_nothing_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Down:
        def __init__(self, *_: Any) -> None:
            pass

        def log(self, step: int, scalars: Any) -> None:
            if step == 2:
                raise ConnectionError("http://me:secret@host does not answer\nmore")

        def close(self, failed: bool) -> None:
            raise AssertionError("a curve that failed is used again")

    def no_login(*_: Any) -> None:
        raise RuntimeError("No API key configured")

    said: list[str] = []
    monkeypatch.setattr(tracking, "_MLflow", Down)
    monkeypatch.setattr(tracking, "_WandB", no_login)
    monkeypatch.setattr(tracking.log, "warning", lambda text, *told: said.append(text % told))
    failing = trackers("wandb", tmp_path, "mlflow", "tensorboard")
    failing.log("sw", STEPS[:2])
    failing.log("sw", STEPS[2:])
    failing.close("sw")
    assert said == [
        "train sw: no curve in wandb any more: No API key configured",
        "train sw: no curve in mlflow any more: http://host does not answer",
    ]
    assert losses_of(on_tensorboard(tmp_path)) == pytest.approx({1: 3.0, 2: 1.5, 3: 1.0})


def test_tensorboard_has_both_curves(tmp_path: Path) -> None:
    follow("tensorboard", tmp_path)
    found = on_tensorboard(tmp_path)
    assert losses_of(found) == pytest.approx({1: 3.0, 2: 1.5, 3: 1.0})
    assert found["validation/loss", 2] == 2.5
    assert ("validation/loss", 3) not in found


def test_mlflow_goes_on_in_the_run_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    from mlflow import MlflowClient

    follow("mlflow", tmp_path)
    client = MlflowClient()
    experiment = client.get_experiment_by_name("compass_ray")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "night sw" and run.info.status == "FINISHED"
    assert run.data.params["adapter.type"] == "lora"
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(1, 3.0), (2, 1.5), (3, 1.0)]


def test_wandb_keeps_curves_offline_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MODE": "offline", "DIR": str(tmp_path), "SILENT": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    import wandb

    follow("wandb", tmp_path)
    wandb.teardown()  # its service writes on after a run is finished
    losses = {}
    for record in (r for f in tmp_path.glob("wandb/offline-run-*/*.wandb") for r in records(f)):
        assert not record.HasField("run") or record.run.run_group == "night"
        items = {
            item.key or ".".join(item.nested_key): json.loads(item.value_json)
            for item in record.history.item
        }
        if "train/loss" in items:
            losses[items["_step"]] = items["train/loss"]
    assert losses == {1: 3.0, 2: 1.5, 3: 1.0}
