"""The state of a training run, whole and apart from how many workers hold it.

DeepSpeed's own checkpoints are cut into the partitions of the workers that wrote them. An adapter
is small enough to gather instead: what is saved here is resumed by any number of workers, under
any ZeRO stage. Every function is called by all workers together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from compass_ray.training.anchoring import trained_parameters

MOMENTS = ("exp_avg", "exp_avg_sq")
WEIGHT = "weight"
STEP = "step"


@contextmanager
def whole(engine: Any, modified: bool = False) -> Iterator[None]:
    """Trained weights are whole inside, also under ZeRO-3; ``modified`` keeps what is written."""
    if engine.zero_optimization_stage() < 3:
        yield
        return
    import deepspeed

    parameters = list(trained_parameters(engine.module).values())
    with deepspeed.zero.GatheredParameters(parameters, modifier_rank=0 if modified else None):
        yield


def gather_state(engine: Any) -> dict[str, Tensor]:
    """Float32 weights and Adam's moments by ``<parameter>/<part>``, and Adam's own count of steps.

    On the CPU of every worker.
    """
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    state = {STEP: next(v[STEP] for v in engine.basic_optimizer.state.values()).float().cpu()}
    for name, parameter in trained_parameters(engine.module).items():
        parts = {WEIGHT: safe_get_full_fp32_param(parameter)}
        for moment in MOMENTS:
            parts[moment] = safe_get_full_optimizer_state(parameter, moment)
        if parts[WEIGHT] is None:  # nothing is partitioned
            stepped = _stepped(engine, parameter)
            parts = {WEIGHT: stepped, **_moments_of(engine, stepped)}
        for part, value in parts.items():
            state[f"{name}/{part}"] = (
                value.detach().float().cpu().reshape(_shape(parameter)).clone()
            )
    return state


def restore_state(engine: Any, state: Mapping[str, Tensor], idle_step: Callable[[], None]) -> None:
    """Put gathered state into a fresh engine.

    ``idle_step`` takes one optimiser step of no effect: the optimiser makes its moments at the
    first, and only what is there can be written to.
    """
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    idle_step()
    for values in engine.basic_optimizer.state.values():
        values[STEP].copy_(state[STEP])
    parameters = trained_parameters(engine.module)
    with whole(engine, modified=True):
        for name, parameter in parameters.items():
            parameter.data.copy_(state[f"{name}/{WEIGHT}"])
    for name, parameter in parameters.items():
        parts = {part: state[f"{name}/{part}"].to(engine.device) for part in (WEIGHT, *MOMENTS)}
        if hasattr(parameter, "ds_id"):
            _set_partition(parameter, parts)
        elif hasattr(parameter, "_hp_mapping"):
            safe_set_full_fp32_param(parameter, parts[WEIGHT])
            for moment in MOMENTS:
                safe_set_full_optimizer_state(parameter, parts[moment], moment)
        else:
            stepped = _stepped(engine, parameter)
            stepped.data.copy_(parts[WEIGHT])
            for moment, value in _moments_of(engine, stepped).items():
                value.copy_(parts[moment])


def _stepped(engine: Any, parameter: Tensor) -> Tensor:
    """What the optimiser steps on where nothing is partitioned: in bf16, a copy in float32."""
    held = getattr(engine.optimizer, "fp16_groups", [])
    copies = getattr(engine.optimizer, "fp32_groups", [])
    for group, copied in zip(held, copies, strict=True):
        for weight, copy in zip(group, copied, strict=True):
            if weight is parameter:
                return copy  # type: ignore[no-any-return]
    return parameter


def _moments_of(engine: Any, stepped: Tensor) -> dict[str, Tensor]:
    values = engine.basic_optimizer.state[stepped]
    return {moment: values[moment] for moment in MOMENTS}


def _shape(parameter: Tensor) -> torch.Size:
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape


def _set_partition(parameter: Tensor, parts: Mapping[str, Tensor]) -> None:
    """This worker's share under ZeRO-3; DeepSpeed's own setter fails where shares are uneven."""
    from deepspeed.utils import (
        safe_get_local_fp32_param,
        safe_get_local_optimizer_state,
        safe_set_local_fp32_param,
        safe_set_local_optimizer_state,
    )

    def share(value: Tensor, held: Tensor) -> Tensor:
        padded = functional.pad(value.flatten(), (0, held.numel() * dist.get_world_size()))
        return padded.narrow(0, held.numel() * dist.get_rank(), held.numel()).view_as(held)

    held = safe_get_local_fp32_param(parameter)
    safe_set_local_fp32_param(parameter, share(parts[WEIGHT], held))
    for moment in MOMENTS:
        held = safe_get_local_optimizer_state(parameter, moment)
        safe_set_local_optimizer_state(parameter, share(parts[moment], held), moment)
