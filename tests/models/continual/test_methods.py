from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from compass_ray.artifacts import Artifact, Storage
from compass_ray.config import UPDATE_METHODS, Config, UpdateMethod
from compass_ray.continual.methods import Parent, merge_adapters, start_of
from compass_ray.loading import build_config
from compass_ray.training.launch import adapter_fingerprint

PARENT = Parent("runs/a/adapters/de/v0001", "trained", 0, "first", pa.table({"prompt": ["a"]}))


def named(method: UpdateMethod, config: Config, parent: Parent) -> str:
    subset = Artifact(Storage.open("."), "sample", "rows", "attempt-1", (), {})
    return adapter_fingerprint(config, "de", subset, start_of(method, config, parent))


@pytest.mark.parametrize(("method", "other"), [("ecda", True), ("ewc", True), ("naive", False)])
def test_other_anchors_make_another_adapter_where_they_are_used(
    method: UpdateMethod, other: bool
) -> None:
    config = build_config({"languages": ["de"]})
    before = named(method, config, PARENT)
    assert (named(method, config, replace(PARENT, anchors="second")) != before) == other
    assert named(method, config, replace(PARENT, folder="runs/b/adapters/de/v0001")) == before


def test_an_adapter_is_that_of_its_rows_whatever_else_a_subset_tells_of_them() -> None:
    config, storage = build_config({"languages": ["de"]}), Storage.open(".")

    def trained_on(subset: str, rows: str) -> str:
        artifact = Artifact(storage, "sample", subset, "attempt-1", (), {"content": rows})
        return adapter_fingerprint(config, "de", artifact)

    assert trained_on("subjects renamed", "rows") == trained_on("as they were", "rows")
    assert trained_on("as they were", "other rows") != trained_on("as they were", "rows")


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("method", UPDATE_METHODS[-4:])
def test_an_adapter_merged_with_itself_keeps_its_scale(
    method: UpdateMethod, dora: bool, tiny_model: Path, tmp_path: Path
) -> None:
    import torch
    from peft import LoraConfig, PeftConfig, get_peft_model
    from safetensors.torch import load_file

    from compass_ray.models import load_base

    torch.manual_seed(0)
    lora = LoraConfig(
        r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False, use_dora=dora
    )
    old, to = tmp_path / "old", tmp_path / "new"
    to.mkdir()
    get_peft_model(load_base(str(tiny_model), torch.float32), lora).save_pretrained(old)
    merge_adapters(method, old, old, to)
    assert PeftConfig.from_pretrained(str(to)).lora_alpha == 8
    before, after = (load_file(at / "adapter_model.safetensors") for at in (old, to))
    assert before.keys() == after.keys()
    magnitudes = [name for name in before if "magnitude" in name]
    assert bool(magnitudes) == dora
    assert all(torch.allclose(after[name], before[name]) for name in magnitudes)
    rest = sorted(set(before) - set(magnitudes))
    expected = torch.cat([before[name].flatten() for name in rest])
    found = torch.cat([after[name].flatten() for name in rest])
    if method == "ties":  # the smaller half is dropped, the larger as it was
        kept = found != 0
        assert 0.45 <= kept.float().mean() <= 0.55
        expected, found = expected[kept], found[kept]
    if method in ("linear", "ties"):
        assert torch.allclose(found, expected)
    else:  # by chance, right on average
        assert float(found @ expected / (expected @ expected)) == pytest.approx(1, abs=0.05)
