"""The frozen base as its adapters are trained on it: whole, or in 4 bits for QLoRA.

Knows nothing of DeepSpeed, so that scoring loads the same weights as training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from compass_ray.config import Training
from compass_ray.models import load_base

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def quantisation(config: Training, dtype: torch.dtype) -> dict[str, Any]:
    """Options of ``load_base`` for QLoRA (Dettmers et al., 2023): 4-bit normal floats; else none.

    With them the model is loaded onto the GPU, where there is one, and must stay where it is.
    """
    if config.adapter.type != "qlora":
        return {}
    from transformers import BitsAndBytesConfig

    quantisation = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    device = f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"
    return {"quantization_config": quantisation, "device_map": {"": device}}


def load_trained_on(config: Training) -> PreTrainedModel:
    """The base in evaluation mode: in bfloat16 on the GPU, or in float32 on the CPU without one."""
    on_gpu = torch.cuda.is_available()
    dtype = torch.bfloat16 if on_gpu else torch.float32
    options = quantisation(config, dtype)
    base = load_base(config.model, dtype, **options).eval()
    return base if options else base.to("cuda" if on_gpu else "cpu")
