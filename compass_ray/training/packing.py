"""What a model is to read so that documents packed into one row do not see each other.

Shapes: B sequences, L tokens, T tokens of all sequences, D documents.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.masking_utils import create_masks_for_generate

from compass_ray.training.data import Example, collate

# Tokens of one document used to probe whether the model keeps packed documents apart.
PROBE_TOKENS = 32
# The most that the other document may move the logits, as a share of their spread. Rounding stays
# far below it, and what a recurrent layer carries over is far above.
TOLERANCE = 0.05


def arrange(model: Any, part: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """Labels, and what the model is to read so that documents of one row do not see each other."""
    batch = {name: torch.from_numpy(array).to(model.device) for name, array in part.items()}
    if part["documents"].max() <= 1:
        # Causal attention is enough here: padding comes last.
        return batch["labels"], {"input_ids": batch["input_ids"]}
    if _base(model).config._attn_implementation in ("sdpa", "eager"):
        return masked(model, batch)
    return unpadded(batch)


def masked(model: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Any]]:
    """Labels [B, L] and what a model reads, documents kept apart by masks.

    They are those that transformers makes from where positions start again: in the form of the
    attention implementation, and for each kind of layer, such as one with a sliding window.
    """
    inputs = {name: batch[name] for name in ("input_ids", "position_ids")}
    weight = next(model.parameters())
    shape = torch.empty(*inputs["input_ids"].shape, 1, dtype=weight.dtype, device=model.device)
    masks = create_masks_for_generate(
        _base(model).config, shape, None, None, position_ids=inputs["position_ids"]
    )
    return batch["labels"], {**inputs, "attention_mask": masks}


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


def keeps_apart(model: Any, example: Example) -> bool:
    """Whether a document packed behind another is to the model what it would be alone.

    Recurrent layers carry on what they have read, whatever masks and positions say. Found by
    running the model: nothing it makes of a document may change with the one before.
    """
    if "position_ids" not in inspect.signature(_base(model).forward).parameters:
        return False
    document = Example(example.tokens[:PROBE_TOKENS], example.labels[:PROBE_TOKENS])
    length = len(document.tokens)
    positions = torch.arange(length, 2 * length, device=model.device)
    seen = []
    for before in (document, replace(document, tokens=document.tokens[::-1])):
        _, inputs = arrange(model, collate([before, document], [(0, 1)], 0))
        with torch.no_grad():
            seen.append(model(**inputs, logits_to_keep=positions, use_cache=False).logits.float())
    moved, spread = (seen[0] - seen[1]).square().mean(-1), seen[0].var(-1)
    return bool((moved <= TOLERANCE**2 * spread).all())


def _base(model: Any) -> Any:
    """The model itself, out of DeepSpeed's engine and PEFT's wrapper."""
    module = getattr(model, "module", model)
    return module.get_base_model() if hasattr(module, "get_base_model") else module
