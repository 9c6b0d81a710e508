"""A base model, an adapter on it, and DeepSpeed around both, as the configuration asks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from compass_ray.config import Training
from compass_ray.models import load_base
from compass_ray.training.adapters import add_adapter, load_adapter
from compass_ray.training.anchoring import Start
from compass_ray.training.quantisation import quantisation
from compass_ray.training.state import STEP


def build_engine(config: Training, start: Start | None = None) -> Any:
    """A DeepSpeed engine whose adapter is fresh, or the one that training goes on from."""
    import deepspeed

    dtype = precision(config)
    settings = deepspeed_config(config, dtype)
    attention = {} if config.attention == "auto" else {"attn_implementation": config.attention}
    with partitioned(settings):
        base = load_base(config.model, dtype, **attention, **quantisation(config, dtype))
        if config.gradient_checkpointing:
            base.gradient_checkpointing_enable({"use_reentrant": False})
            # Nothing below the first adapter needs a gradient; without one nothing is recomputed.
            base.enable_input_require_grads()
        if start:
            model = load_adapter(base, start.adapter, config.model)
        else:
            model = add_adapter(base, config.adapter, config.model)
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=[p for p in model.parameters() if p.requires_grad],
        config=settings,
    )
    # In bf16 without partitions DeepSpeed has Adam make its moments by a step without gradients,
    # which Adam's bias correction must not count.
    for values in engine.basic_optimizer.state.values():
        values[STEP].zero_()
    return engine


@contextmanager
def partitioned(settings: dict[str, Any]) -> Iterator[None]:
    """Under ZeRO-3, weights of a model loaded inside go to their worker as they are read.

    A model that needs ZeRO-3 is whole in no worker's memory, and PEFT gathers what it looks at.
    """
    if settings["zero_optimization"]["stage"] < 3:
        yield
        return
    from transformers.integrations import HfDeepSpeedConfig

    # transformers keeps only a weak reference to it.
    alive = HfDeepSpeedConfig(settings)
    yield
    del alive


def precision(config: Training) -> torch.dtype:
    if config.precision == "auto":
        return torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return torch.bfloat16 if config.precision == "bf16" else torch.float32


def deepspeed_config(config: Training, dtype: torch.dtype) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": config.deepspeed.zero_stage}
    if config.deepspeed.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if config.deepspeed.offload_parameters:
        zero["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "train_batch_size": config.batch_size,
        "train_micro_batch_size_per_gpu": config.micro_batch,
        "gradient_clipping": config.max_grad_norm,
        "bf16": {"enabled": dtype is torch.bfloat16},
        "zero_optimization": zero,
        "optimizer": {
            "type": "AdamW",
            # The fused kernel is compiled on first use; an adapter has too few weights to gain.
            "params": {
                "lr": config.learning_rate,
                "weight_decay": config.weight_decay,
                "torch_adam": True,
            },
        },
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }
