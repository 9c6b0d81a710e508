from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from compass_ray.artifacts import Artifact, Storage
from compass_ray.config import Config
from compass_ray.continual.methods import METHODS, Method, Parent, merge_adapters, start_of
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


@pytest.mark.parametrize("method", METHODS[-4:])
def test_an_adapter_merged_with_itself_keeps_its_scale(
    method: str, tiny_model: Path, tmp_path: Path
) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file

    from compass_ray.models import load_base

    torch.manual_seed(0)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    old = tmp_path / "old"
    get_peft_model(load_base(str(tiny_model), torch.float32), lora).save_pretrained(old)
    merged = merge_adapters(method, str(tiny_model), old, old, tmp_path / "new")
    before, after = (load_file(at / "adapter_model.safetensors") for at in (old, merged))
    assert before.keys() == after.keys()
    # The scale of 2 is a part of the weights now, half of it on either side.
    expected = torch.cat([weights.flatten() for weights in before.values()]) * 2**0.5
    found = torch.cat([after[name].flatten() for name in before])
    if method == "ties":  # the smaller half is dropped, the larger as it was
        kept = found != 0
        assert 0.45 <= kept.float().mean() <= 0.55
        expected, found = expected[kept], found[kept]
    if method in ("linear", "ties"):
        assert torch.allclose(found, expected)
    else:  # by chance, right on average
        assert float(found @ expected / (expected @ expected)) == pytest.approx(1, abs=0.05)
