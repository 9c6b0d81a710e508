"""Losses of adapter training, on tensors only.

Shapes: B sequences, L tokens, T tokens of all sequences, D documents, P predicting positions,
V vocabulary.
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
    arrange = masked if _takes_masks(model) else unpadded
    labels, inputs = arrange(batch)
    positions = target_positions(labels)
    if not len(positions):
        positions = positions.new_zeros(1)
    output = model(**inputs, logits_to_keep=positions, use_cache=False)
    return response_loss(output.logits, labels, positions)


def masked(batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Any]]:
    """Labels [B, L] and what a model reads, documents kept apart by a mask."""
    inputs = {name: batch[name] for name in ("input_ids", "position_ids")}
    return batch["labels"], {**inputs, "attention_mask": document_mask(batch["documents"])}


def unpadded(batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Any]]:
    """Labels [1, T] and what a model reads, documents kept apart by where they start.

    One row without padding, as transformers' flash attention has it (``cu_seq_lens``: the D starts
    and the end). Other kernels see from the positions that one document has ended.
    """
    real = batch["documents"] != 0
    row = {name: batch[name][real][None] for name in ("input_ids", "position_ids", "labels")}
    starts = (row["position_ids"][0] == 0).nonzero().flatten()
    bounds = functional.pad(starts, (0, 1), value=int(real.sum())).to(torch.int32)
    longest = int(row["position_ids"].max()) + 1
    ends = {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds}
    return row.pop("labels"), {**row, **ends, "max_length_q": longest, "max_length_k": longest}


def _takes_masks(model: Any) -> bool:
    # Within DeepSpeed's engine, whose own ``config`` is another.
    config = getattr(model, "module", model).config
    return config._attn_implementation in ("sdpa", "eager")
