from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from compass_ray.config import Adapter, DeepSpeed, Training
from compass_ray.models import load_base
from compass_ray.training.adapters import (
    WEIGHTS_FILE,
    AdapterError,
    add_adapter,
    gather_adapter,
    save_adapter,
    verify_adapter,
)
from compass_ray.training.engine import deepspeed_config, partitioned


def trained(tiny_model: Path, kind: str) -> PeftModel:
    base = load_base(str(tiny_model), torch.float32)
    model = add_adapter(base, Adapter(type=kind, r=4, alpha=8, dropout=0.0), "owner/base")
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    return model.eval()


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_saved_adapter_loads_with_peft_and_gives_the_same_logits(
    tiny_model: Path, tmp_path: Path, kind: str
) -> None:
    model = trained(tiny_model, kind)
    save_adapter(model, gather_adapter(model), tmp_path)
    again = PeftModel.from_pretrained(load_base(str(tiny_model), torch.float32), str(tmp_path))
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(
            again(input_ids=ids).logits, model(input_ids=ids).logits, rtol=0, atol=1e-5
        )
    assert again.peft_config["default"].base_model_name_or_path == "owner/base"
    assert again.peft_config["default"].use_dora == (kind == "dora")


def test_an_untrained_adapter_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    model = add_adapter(load_base(str(tiny_model), torch.float32), Adapter(r=4), "b")
    with pytest.raises(AdapterError, match="every lora_B is zero"):
        save_adapter(model, gather_adapter(model), tmp_path)


@pytest.mark.parametrize(
    ("damage", "cause"),
    [
        (lambda w: {k: v[:0] for k, v in w.items()}, "is empty"),
        (lambda w: dict(list(w.items())[1:]), "is not in both"),
        (lambda w: {k: v * 2 for k, v in w.items()}, "differs from what was trained"),
        (lambda w: {k: v * float("nan") for k, v in w.items()}, "is not finite"),
    ],
)
def test_a_damaged_file_is_refused(
    tiny_model: Path, tmp_path: Path, damage: object, cause: str
) -> None:
    model = trained(tiny_model, "lora")
    weights = gather_adapter(model)
    save_adapter(model, weights, tmp_path)
    file = tmp_path / WEIGHTS_FILE
    save_file(damage(load_file(str(file))), str(file))  # type: ignore[operator]
    with pytest.raises(AdapterError, match=cause):
        verify_adapter(tmp_path, weights)


def test_under_zero_3_a_model_is_cut_up_as_it_is_read(world: None, tiny_model: Path) -> None:
    training = Training(model=str(tiny_model), deepspeed=DeepSpeed(zero_stage=3))
    with partitioned(deepspeed_config(training, torch.float32)):
        base = load_base(str(tiny_model), torch.float32)
    whole = load_base(str(tiny_model), torch.float32)
    assert all(weight.numel() == 0 for weight in base.parameters())
    assert sum(weight.ds_numel for weight in base.parameters()) == whole.num_parameters() > 0
