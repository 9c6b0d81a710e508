"""Updates on a model that can learn eight answers by heart: a good one and one made worse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from compass_ray import load_config, run
from compass_ray.continual.monitor import DriftMonitor
from compass_ray.continual.runfolder import RunFolder
from compass_ray.continual.update import Updated, update
from compass_ray.errors import UserError
from compass_ray.training.adapters import WEIGHTS_FILE

pytestmark = pytest.mark.ray

MakeConfig = Callable[..., Path]
CAPITALS = ["Paris", "Rome", "Madrid", "Tokyo", "Nairobi", "Lima", "Cairo", "Havana"]
COUNTRIES = ["France", "Italy", "Spain", "Japan", "Kenya", "Peru", "Egypt", "Cuba"]
COLOURS = ["rot", "blau", "lila", "grau", "weiß", "gelb", "grün", "braun"]
CAPITAL = "Wie heißt die Hauptstadt von {}?"
COLOUR = "Farbe Nummer {}: welche ist das?"


def rows(text: str, subjects: list[Any], answers: list[str]) -> list[dict[str, str]]:
    return [
        {"prompt": text.format(subject), "completion": answer, "language": "de"}
        for subject, answer in zip(subjects, answers, strict=True)
    ]


def items(text: str, subjects: list[Any], answers: list[str]) -> list[dict[str, str]]:
    told = []
    for number, row in enumerate(rows(text, subjects, answers)):
        options = [answers[(number + step) % len(answers)] for step in range(4)]
        letters = {f"option_{c}": option for c, option in zip("abcd", options, strict=True)}
        told.append({"question": row["prompt"], "answer": "A", "language": "de", **letters})
    return told


def write(path: Path, told: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in told))
    return str(path)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("updates")


@pytest.fixture
def finished(make_config: MakeConfig, shared: Path) -> RunFolder:
    """A run whose adapter knows eight capitals, built for users who ask for them."""
    known = rows(CAPITAL, COUNTRIES, CAPITALS)
    asked = [{"text": row["prompt"], "language": "de"} for row in known]
    every = items(CAPITAL, COUNTRIES, CAPITALS) + items(COLOUR, list(range(8)), COLOURS)
    config = make_config(
        run={"storage": str(shared / "storage")},
        languages=["de"],
        corpora={
            "train": [{"path": write(shared / "own.jsonl", known)}],
            "usage": [{"path": write(shared / "asked.jsonl", asked * 4)}],
            "evaluation": [{"path": write(shared / "items.jsonl", every)}],
        },
        sampling={"budget": 8},
        training={"max_steps": 200, "packing": False, "checkpoint_steps": 1000},
        continual={"tolerance": 0.6, "replay_fraction": 0.5},
    )
    result = run(load_config(config))
    return RunFolder.open(result.folder)


def test_a_monitor_of_the_run_tells_its_usage_from_another(finished: RunFolder) -> None:
    monitor = DriftMonitor(finished.storage.location("runs/small"), "de")
    same = monitor.check([CAPITAL.format(country) for country in COUNTRIES * 2])
    assert not same.drifted and same.divergence <= same.threshold
    moved = monitor.check([COLOUR.format(number) for number in range(16)])
    assert moved.drifted and moved.divergence > moved.threshold


def test_a_good_update_is_promoted_and_one_made_worse_is_refused(
    finished: RunFolder, tmp_path: Path
) -> None:
    registry = finished.registry("de")
    worse = rows(CAPITAL, COUNTRIES, CAPITALS[3:] + CAPITALS[:3])
    asked = [{"text": row["prompt"], "language": "de"} for row in worse]
    usage = write(tmp_path / "same.jsonl", asked * 2)
    train = write(tmp_path / "worse.jsonl", worse)
    (refused,) = update(finished, usage, overrides=[f"corpora.train=[{{path: {train}}}]"])
    assert not refused.promoted and refused.version == "v0002", refused
    assert "on the old usage" in refused.reason or "gains nothing" in refused.reason
    assert registry.current().name == "v0001"
    assert registry.versions()[1].about["reason"] == refused.reason

    colours = rows(COLOUR, list(range(8)), COLOURS)
    asked = [{"text": row["prompt"], "language": "de"} for row in colours]
    usage = write(tmp_path / "moved.jsonl", asked * 4)
    train = write(tmp_path / "colours.jsonl", colours)
    overrides = [f"corpora.train=[{{path: {train}}}]"]
    (promoted,) = update(finished, usage, overrides=overrides)
    assert promoted == Updated("de", "v0001", "v0003", True, promoted.reason), promoted
    current = registry.current()
    assert current.name == "v0003" and current.about["parent"] == 1
    assert current.about["drift"]["moved"]
    assert current.about["new"]["update"] > current.about["new"]["current"]
    folder = Path(finished.storage.location(current.folder))
    new_rows = pq.read_table(folder / "rows.parquet")
    old_rows = pq.read_table(
        Path(finished.storage.location(registry.versions()[0].folder)) / "rows.parquet"
    )
    assert not set(new_rows["id"].to_pylist()) & set(old_rows["id"].to_pylist())
    anchors = pq.read_table(folder / "anchors.parquet")
    assert anchors.num_rows == round(old_rows.num_rows / 2) + round(new_rows.num_rows / 2)
    assert (folder / "fisher.safetensors").is_file()

    (again,) = update(finished, usage, overrides=overrides)
    assert not again.promoted and "made for this usage" in again.reason
    registry.rollback()
    (still,) = update(finished, usage, overrides=overrides)
    assert still.version == "v0003" and "rolled back" in still.reason
    assert registry.current().name == "v0001"

    merging = [*overrides, "continual.method=linear"]
    (merged,) = update(finished, usage, overrides=merging, prove=False)
    assert merged.version == "v0004" and merged.promoted, merged
    about = registry.versions()[3].about
    assert about["method"] == "linear" and about["parent"] == 1
    before, after = (
        load_file(Path(finished.storage.location(version.folder), WEIGHTS_FILE))
        for version in (registry.versions()[0], registry.versions()[3])
    )
    trained = Path(finished.storage.location("cache/train")).glob(f"*/attempt-*/*/{WEIGHTS_FILE}")
    means = [{n: (before[n] + w) / 2 for n, w in load_file(file).items()} for file in trained]
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert any(all(torch.allclose(mean[n], after[n]) for n in after) for mean in means)

    with pytest.raises(UserError, match="zero_stage"):
        update(finished, usage, overrides=["training.deepspeed.zero_stage=3"])
