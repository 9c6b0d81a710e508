from __future__ import annotations

from typing import Any

import yaml

from compass_ray.config import Config
from compass_ray.continual.registry import Version
from compass_ray.report.card import model_card

SUBSET = {"own": 100, "picked": 1250, "strategy": "compass", "js_before": 0.5, "js_after": 0.125}
TRAINED = {
    "steps": 1200,
    "tokens": 56_000,
    "validation_loss": 1.25,
    "validation_rows": 12,
    "best_step": 1000,
}
ABOUT = {"kind": "run", "parent": None, "fingerprint": "f00d"}


def card(about: dict[str, Any] = ABOUT, scores: list[dict[str, Any]] | None = None) -> str:
    settings = {"model": "owner/base", "adapter": {"type": "dora"}, "learning_rate": 3e-4}
    config = Config.model_validate({"languages": ["sw"], "training": settings})
    manifest = {
        "name": "night",
        "config": config.model_dump(mode="json", by_alias=True),
        "versions": {"peft": "0.21"},
        "stages": {
            "cluster": {"k": 40},
            "sample": {"languages": {"sw": SUBSET}},
            "train": {"languages": {"sw": TRAINED}},
        },
    }
    picked = ["en"] * 1000 + ["zu"] * 250
    return model_card(manifest, "sw", Version(1, "somewhere", about), picked, scores or [])


def test_the_hub_can_read_its_head() -> None:
    _, head, body = card().split("---\n", 2)
    told = yaml.safe_load(head)
    assert told["base_model"] == "owner/base" and told["library_name"] == "peft"
    assert told["language"] == ["sw"] and "dora" in told["tags"]
    assert body.lstrip().startswith("# Swahili adapter of night, v0001")


def test_it_tells_of_data_training_and_scores() -> None:
    row = {"task": "atlas", "n": 100, "base": 0.3, "adapter": 0.5}
    row |= {"gain": 0.2, "gain_low": 0.1, "gain_high": 0.3}
    text = card(scores=[row])
    for expected in (
        "1,250 rows from other languages, chosen by `compass`",
        "over 40 clusters",
        "0.500 before, 0.125 after",
        "from en 1,000, zu 250",
        "`dora`, rank 16",
        "1,200 steps, 56,000 tokens",
        "validation loss 1.2500",
        "| atlas | 100 | 0.300 | 0.500 | +0.200 [+0.100, +0.300] |",
    ):
        assert expected in text


def test_a_base_without_a_score_leaves_a_dash() -> None:
    row = {"task": "mine", "n": 9, "base": None, "adapter": 0.5, "gain": None}
    assert "| mine | 9 | - | 0.500 | - |" in card(scores=[row])


def test_an_update_tells_of_its_own_rows() -> None:
    update = {"kind": "update", "parent": 1, "usage": {"prompts": 300}, "fingerprint": "beef"}
    text = card(ABOUT | update | {"subset": SUBSET | {"picked": 7}, "training": TRAINED})
    assert "- 7 rows from other languages" in text
    assert "Trained on from v0001" in text and "300 prompts" in text
