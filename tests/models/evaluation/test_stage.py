"""What names a scored pass."""

from __future__ import annotations

from compass_ray.evaluation.items import Atlas
from compass_ray.evaluation.stage import _fingerprint
from compass_ray.loading import build_config


def test_scores_of_the_base_know_whether_it_is_held_in_four_bits() -> None:
    def base(kind: str) -> str:
        config = build_config({"languages": ["de"], "training": {"adapter": {"type": kind}}})
        return _fingerprint(config, "de", "atlas", Atlas("de"), None)

    assert base("lora") == base("dora") != base("qlora")
