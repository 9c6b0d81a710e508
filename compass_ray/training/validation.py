"""Rows held out of training: their loss at intervals, the best adapter so far, and when to stop.

Knows nothing of Ray. The decisions are functions of the losses so far, so a resumed run decides
as an uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from compass_ray.training.data import Example, collate, sequences_of_epoch
from compass_ray.training.losses import forward_loss


def hold_out(
    examples: Sequence[Example], fraction: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """Split into documents to train on and documents to look at, in their order.

    Of both there is at least one, unless there is only one document or ``fraction`` is 0.
    """
    if fraction == 0 or len(examples) < 2:
        return list(examples), []
    count = min(max(1, round(fraction * len(examples))), len(examples) - 1)
    held = set(np.random.default_rng([seed, 1]).permutation(len(examples))[:count].tolist())
    kept = [example for index, example in enumerate(examples) if index not in held]
    return kept, [examples[index] for index in sorted(held)]


def validation_loss(
    engine: Any, examples: Sequence[Example], *, max_length: int, packing: bool, pad: int
) -> float:
    """Mean loss over the documents' target tokens, in nats; every worker takes its share."""
    rank, world = dist.get_rank(), dist.get_world_size()
    size = engine.train_micro_batch_size_per_gpu()
    sequences = sequences_of_epoch(examples, max_length, packing, 0, 0)
    parts = [sequences[first : first + size] for first in range(0, len(sequences), size)]
    total = torch.zeros((), device=engine.device)
    engine.eval()
    with torch.no_grad():
        for turn in range(math.ceil(len(parts) / world)):
            index = turn * world + rank
            # Under ZeRO-3 a forward pass needs every worker, also one with nothing left to do.
            loss = forward_loss(engine, collate(examples, parts[min(index, len(parts) - 1)], pad))
            total += loss * (index < len(parts))
    engine.train()
    dist.all_reduce(total)
    return total.item() / sum(example.targets for example in examples)


def is_best(losses: Sequence[float]) -> bool:
    """Whether the last of these validation losses is lower than all before."""
    return len(losses) == 1 or losses[-1] < min(losses[:-1])


def exhausted(losses: Sequence[float], patience: int | None) -> bool:
    """Whether the last ``patience`` validation losses are none of them lower than those before."""
    if patience is None or len(losses) <= patience:
        return False
    return min(losses[-patience:]) >= min(losses[:-patience])
