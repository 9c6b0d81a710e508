"""What names a scored pass, and which items rows are compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compass_ray import artifacts
from compass_ray.artifacts import Storage
from compass_ray.corpora.stage import Corpus
from compass_ray.evaluation.benchmarks import unchecked_tasks
from compass_ray.evaluation.harness import SCORED_SCHEMA
from compass_ray.evaluation.items import Atlas
from compass_ray.evaluation.stage import ITEMS, STAGE, _fingerprint, evaluate
from compass_ray.loading import build_config


def test_scores_of_the_base_know_whether_it_is_held_in_four_bits() -> None:
    def base(kind: str) -> str:
        config = build_config({"languages": ["de"], "training": {"adapter": {"type": kind}}})
        return _fingerprint(config, "de", "atlas", Atlas("de"), None)

    assert base("lora") == base("dora") != base("qlora")


@pytest.mark.parametrize("precisions", [("float32", "bfloat16"), ("float32",) * 2, ("", "float32")])
def test_scores_of_another_precision_are_told(
    precisions: tuple[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = build_config({"languages": ["de"], "evaluation": {"tasks": ["atlas"]}})
    storage = Storage.open(str(tmp_path))
    adapters = {"de": artifacts.begin(storage, "train", "adapter").commit()}
    for adapter, precision in zip((None, adapters["de"]), precisions, strict=True):
        done = artifacts.begin(
            storage, STAGE, _fingerprint(config, "de", "atlas", Atlas("de"), adapter)
        )
        done.write_table(ITEMS, SCORED_SCHEMA.empty_table())
        done.commit({"precision": precision} if precision else {})
    scored = evaluate(config, storage, Corpus((), {}, {}, 0, 0), adapters)
    assert [told.language for told in scored.comparisons] == ["de"]
    warned = "in float32 by the base and in bfloat16 by the adapter" in caplog.text
    assert warned == (precisions == ("float32", "bfloat16"))


def test_rows_are_compared_with_the_items_of_the_corpora_alone() -> None:
    tasks = ["items", "atlas", "global_mmlu", "oneruler"]
    settings: dict[str, Any] = {"languages": ["de"], "evaluation": {"tasks": tasks}}
    made = build_config({**settings, "corpora": {"evaluation": []}})
    assert unchecked_tasks(made) == ["atlas", "global_mmlu"]
    made = build_config({**settings, "corpora": {"evaluation": [{"path": "atlas"}]}})
    assert unchecked_tasks(made) == ["global_mmlu"]
    hub = {"path": "hf:CohereLabs/Global-MMLU@v1", "subset": "{language}", "split": "test"}
    sets = [hub, {"path": "copies/MMLU-ProX/"}]
    settings["evaluation"] = {"tasks": ["global_mmlu_lite", "mmlu_prox", "mmlu_prox_lite"]}
    made = build_config({**settings, "corpora": {"evaluation": sets}})
    assert unchecked_tasks(made) == []
    made = build_config({**settings, "corpora": {"evaluation": sets[:1]}})
    assert unchecked_tasks(made) == ["mmlu_prox", "mmlu_prox_lite"]
    # Other questions, one language's, and some of them.
    for part in ({"split": "dev"}, {"subset": "en"}, {"rows": 10}, {"languages": ["de"]}):
        made = build_config({**settings, "corpora": {"evaluation": [hub | part, sets[1]]}})
        assert unchecked_tasks(made) == ["global_mmlu_lite"], part
