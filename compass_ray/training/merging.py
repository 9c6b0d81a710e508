"""An adapter merged into its base model: one folder that any inference server loads.

Servers that take LoRA may not take DoRA (vLLM does not); a merged model is served by all.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from compass_ray.errors import UserError
from compass_ray.models import load_base, load_tokenizer
from compass_ray.training.adapters import AdapterError

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

PROBE_TOKENS = 64
# How far merging may move a logit, as a share of the largest: a few roundings of the weights.
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}


def merge(base: str, adapter: Path, to: Path) -> None:
    """Write base and adapter as one model in transformers' format, in the base's own precision.

    Args:
        base: name or folder of the base model.
        adapter: folder in PEFT's format.
        to: a folder that is not there or empty; it is there whole or not at all.

    Raises:
        UserError: there is something in ``to``.
        AdapterError: the merged model does not compute what base and adapter do.
    """
    import torch
    from peft import PeftModel

    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UserError(f"{to}: not empty; name a folder that is not there yet")
    tokenizer = load_tokenizer(base)
    model = PeftModel.from_pretrained(load_base(base, "auto"), str(adapter)).eval()
    probe = torch.arange(PROBE_TOKENS)[None] % len(tokenizer)
    with torch.no_grad():
        expected = model(input_ids=probe).logits
        merged = model.merge_and_unload()
        found = merged(input_ids=probe).logits
    _check(expected, found, str(merged.dtype).removeprefix("torch."))
    staged = to.with_name(f".{to.name}.part")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    merged.save_pretrained(staged)
    tokenizer.save_pretrained(staged)
    if to.exists():
        to.rmdir()
    staged.rename(to)
    log.info("merged %s into %s: %s", adapter.name, base, to)


def _check(expected: Tensor, found: Tensor, dtype: str) -> None:
    scale = float(expected.abs().max())
    moved = float((found - expected).abs().max()) / scale
    if not moved <= TOLERANCE.get(dtype, 1e-2):
        raise AdapterError(
            f"merging moved a logit by {moved:.1%} of the largest, more than {dtype} explains"
        )
