"""PEFT adapters: build, gather, save, and verify what was saved.

Knows nothing of data, optimisers or Ray.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from compass_ray.config import Adapter

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

WEIGHTS_FILE = "adapter_model.safetensors"


class AdapterError(RuntimeError):
    """A saved adapter is not the one that was trained."""


def add_adapter(base: PreTrainedModel, config: Adapter, base_name: str) -> PeftModel:
    """Wrap ``base`` with a fresh adapter whose weights alone require gradients."""
    from peft import LoraConfig, get_peft_model

    peft_config = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=config.target_modules,
        use_dora=config.type == "dora",
        use_rslora=config.type == "rslora",
    )
    model = get_peft_model(base, peft_config)
    # PEFT writes the folder the base was read from; a name others can resolve travels better.
    model.peft_config["default"].base_model_name_or_path = base_name
    return model


def load_adapter(base: PreTrainedModel, folder: Path, base_name: str) -> PeftModel:
    """Wrap ``base`` with a saved adapter whose weights alone require gradients."""
    from peft import PeftModel

    model = PeftModel.from_pretrained(base, str(folder), is_trainable=True)
    model.peft_config["default"].base_model_name_or_path = base_name
    return model


def gather_adapter(model: PeftModel) -> dict[str, Tensor]:
    """Adapter weights by PEFT's names, float32 on the CPU; call it within ``state.whole``."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: weight.detach().float().cpu().clone() for name, weight in state.items()}


def save_adapter(model: PeftModel, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write ``adapter_config.json`` and safetensors in PEFT's format, then verify them."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = model.peft_config["default"]
    config.inference_mode = True
    config.save_pretrained(str(folder))
    config.inference_mode = False
    save_file(dict(weights), str(folder / WEIGHTS_FILE), metadata={"format": "pt"})
    verify_adapter(folder, weights)


def verify_adapter(folder: Path, expected: Mapping[str, Tensor]) -> None:
    """Read the file back: the same tensors, none empty, and trained (some B weight not zero).

    ZeRO-3 with PEFT has saved empty adapters without a word (peft issue 2892); a run must not end
    well with one. Raises ``AdapterError`` that names the first tensor that is wrong.
    """
    from safetensors.torch import load_file

    saved = load_file(str(folder / WEIGHTS_FILE))
    if not saved:
        raise AdapterError(f"{folder}: the adapter holds no tensors")
    missing = sorted(set(expected) ^ set(saved))
    if missing:
        raise AdapterError(f"{folder}: {missing[0]} is not in both the model and the file")
    for name, weight in saved.items():
        if weight.numel() == 0:
            raise AdapterError(f"{folder}: {name} is empty")
        if not torch.isfinite(weight).all():
            raise AdapterError(f"{folder}: {name} is not finite")
        if not torch.equal(weight, expected[name]):
            raise AdapterError(f"{folder}: {name} differs from what was trained")
    if all(not weight.any() for name, weight in saved.items() if "lora_B" in name):
        raise AdapterError(f"{folder}: every lora_B is zero; nothing was learnt")
