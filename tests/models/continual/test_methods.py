from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from compass_ray.artifacts import Artifact, Storage
from compass_ray.config import Config
from compass_ray.continual.methods import Method, Parent, merge, start_of
from compass_ray.loading import build_config
from compass_ray.training.launch import adapter_fingerprint

PARENT = Parent("runs/a/adapters/de/v0001", "trained", 0, "first", pa.table({"prompt": ["a"]}))


def named(method: Method, config: Config, parent: Parent) -> str:
    subset = Artifact(Storage.open("."), "sample", "rows", "attempt-1", (), {})
    return adapter_fingerprint(config, "de", subset, start_of(method, config, parent))


@pytest.mark.parametrize(("method", "other"), [("ecda", True), ("ewc", True), ("naive", False)])
def test_other_anchors_make_another_adapter_where_they_are_used(
    method: Method, other: bool
) -> None:
    config = build_config({"languages": ["de"]})
    before = named(method, config, PARENT)
    assert (named(method, config, replace(PARENT, anchors="second")) != before) == other
    assert named(method, config, replace(PARENT, folder="runs/b/adapters/de/v0001")) == before


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_an_adapter_merged_with_itself_keeps_its_scale(
    method: str, tiny_model: Path, tmp_path: Path
) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file

    from compass_ray.models import load_base

    lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(load_base(str(tiny_model), torch.float32), lora)
    model.save_pretrained(tmp_path / "old")
    folder = merge(method, str(tiny_model), tmp_path / "old", tmp_path / "old", tmp_path / "new")
    before, after = (
        load_file(at / "adapter_model.safetensors") for at in (tmp_path / "old", folder)
    )
    assert before.keys() == after.keys()
    for name, weights in after.items():
        kept = weights != 0  # TIES drops the smaller half
        assert kept.float().mean() >= 0.45
        # The scale of 2 is a part of the weights now, half of it on either side.
        assert torch.allclose(weights[kept], 2**0.5 * before[name][kept])
