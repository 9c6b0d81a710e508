"""Many languages at once, one of which cannot be trained."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from compass_ray import cli

pytestmark = pytest.mark.ray

MakeConfig = Callable[..., Path]
LANGUAGES = {"de": "Wien", "es": "Quito", "fr": "Lyon", "pl": "Łódź"}
BROKEN = "fr"


@pytest.fixture
def poisoned(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model, with an embedding that is not a number for a token of French rows alone."""
    from safetensors.torch import load_file, save_file
    from transformers import AutoTokenizer

    folder = tmp_path / "poisoned"
    shutil.copytree(tiny_model, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    (token,) = tokenizer("§", add_special_tokens=False)["input_ids"][-1:]
    weights = load_file(str(folder / "model.safetensors"))
    weights["model.embed_tokens.weight"][token] = float("nan")
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
    return folder


def write(path: Path, rows: list[dict[str, str]]) -> list[dict[str, str]]:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return [{"path": str(path)}]


def rows_of(language: str, sign: str, count: int = 12) -> list[dict[str, str]]:
    name = LANGUAGES.get(language, "Oslo")
    return [
        {"prompt": f"{name} {number} {sign}", "completion": f"{number}", "language": language}
        for number in range(count)
    ]


def test_three_adapters_one_clear_failure_and_nothing_left_behind(
    make_config: MakeConfig,
    poisoned: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    import ray

    own = [row for code in LANGUAGES for row in rows_of(code, "§" if code == BROKEN else "+")]
    usage = [{"text": row["prompt"], "language": row["language"]} for row in own]
    path = make_config(
        languages=list(LANGUAGES),
        corpora={
            "auxiliary": write(tmp_path / "pool.jsonl", rows_of("sv", "+", 40)),
            "train": write(tmp_path / "own.jsonl", own),
            "usage": write(tmp_path / "usage.jsonl", usage),
            "evaluation": [],
        },
        sampling={"budget": 10},
        training={"model": os.path.relpath(poisoned), "max_steps": 3, "packing": False},
    )
    monkeypatch.setattr(sys, "argv", ["compass-ray", "train", str(path)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    said = capfd.readouterr().err
    logging.getLogger("compass_ray").handlers.clear()
    assert stop.value.code == 1
    assert "4 languages, 2 side by side" in said, "a slot each"
    assert "compass-ray: fr failed: loss is nan at step 1" in said.splitlines()
    assert "starting again" not in said, "what cannot be mended is not tried again"
    run = tmp_path / "storage/runs/small"
    assert sorted(p.name for p in (run / "adapters").iterdir()) == sorted(set(LANGUAGES) - {BROKEN})
    told = json.loads((run / "manifest.json").read_text())["stages"]["train"]
    assert told["failures"] == {BROKEN: "loss is nan at step 1"}
    deadline = time.monotonic() + 60
    while groups := [
        group for group in ray.util.placement_group_table().values() if group["state"] != "REMOVED"
    ]:
        assert time.monotonic() < deadline, groups
        time.sleep(0.5)
