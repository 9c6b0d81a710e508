"""What names a scored pass, and which items rows are compared with."""

from __future__ import annotations

from compass_ray.evaluation.benchmarks import unchecked_tasks
from compass_ray.evaluation.items import Atlas
from compass_ray.evaluation.stage import _fingerprint
from compass_ray.loading import build_config


def test_scores_of_the_base_know_whether_it_is_held_in_four_bits() -> None:
    def base(kind: str) -> str:
        config = build_config({"languages": ["de"], "training": {"adapter": {"type": kind}}})
        return _fingerprint(config, "de", "atlas", Atlas("de"), None)

    assert base("lora") == base("dora") != base("qlora")


def test_rows_are_compared_with_the_items_of_the_corpora_alone() -> None:
    tasks = ["items", "atlas", "global_mmlu", "oneruler"]
    settings = {"languages": ["de"], "evaluation": {"tasks": tasks}}
    made = build_config({**settings, "corpora": {"evaluation": []}})
    assert unchecked_tasks(made) == ["atlas", "global_mmlu"]
    made = build_config({**settings, "corpora": {"evaluation": [{"path": "atlas"}]}})
    assert unchecked_tasks(made) == ["global_mmlu"]
