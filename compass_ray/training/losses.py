"""Losses of adapter training, on tensors only.

Shapes: B sequences, L tokens, P predicting positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional

from compass_ray.training.data import IGNORED
from compass_ray.training.packing import arrange


def target_positions(labels_BL: Tensor) -> Tensor:
    """Positions [P] whose next token is a target in some row: the only logits worth computing.

    The vocabulary projection is a fifth of a small model's work and prompts need none of it.
    """
    return (labels_BL[:, 1:] != IGNORED).any(dim=0).nonzero().flatten()


def response_loss(logits_BPV: Tensor, labels_BL: Tensor, positions_P: Tensor) -> Tensor:
    """Summed cross-entropy (nats) of the tokens whose label is not ``IGNORED``."""
    return functional.cross_entropy(
        logits_BPV.flatten(0, 1).float(),
        labels_BL[:, positions_P + 1].flatten(),
        ignore_index=IGNORED,
        reduction="sum",
    )


def forward_loss(model: Any, part: Mapping[str, Any]) -> Tensor:
    """Summed response loss of a collated part (``data.collate``), only needed logits computed."""
    labels, inputs = arrange(model, part)
    positions = target_positions(labels)
    if not len(positions):
        positions = positions.new_zeros(1)
    output = model(**inputs, logits_to_keep=positions, use_cache=False)
    return response_loss(output.logits, labels, positions)
