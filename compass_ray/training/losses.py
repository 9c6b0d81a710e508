"""Losses of adapter training, on tensors only.

Shapes: B sequences, L tokens, P predicting positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from compass_ray.training.data import IGNORED


def document_mask(documents_BL: Tensor) -> Tensor:
    """Attention mask [B, 1, L, L], True where a token may look: back, within its own document.

    Padding looks at itself, since a row without any True turns softmax into NaN.
    """
    length = documents_BL.shape[1]
    same = documents_BL[:, :, None] == documents_BL[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool, device=documents_BL.device).tril()
    return (same & causal)[:, None]


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
    batch = {name: torch.from_numpy(array).to(model.device) for name, array in part.items()}
    positions = target_positions(batch["labels"])
    if not len(positions):
        positions = positions.new_zeros(1)
    output = model(
        input_ids=batch["input_ids"],
        attention_mask=document_mask(batch["documents"]),
        position_ids=batch["position_ids"],
        logits_to_keep=positions,
        use_cache=False,
    )
    return response_loss(output.logits, batch["labels"], positions)
