"""What keeps an adapter near what it knew: Fisher information, the EWC term, and replay.

Elastic weight consolidation (Kirkpatrick et al., 2017) and its online form (Schwarz et al., 2018),
on adapter weights only. Knows nothing of how workers are launched.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import Module

from compass_ray.training.fisher import FISHER_FILE as FISHER_FILE


@dataclass(frozen=True)
class Start:
    """An adapter to go on from, and what to keep of it.

    Attributes:
        adapter: folder in PEFT's format; Fisher information of earlier updates, if there is any,
            is in it, too.
        prompts: of the anchors; with ``responses``, the rows that stand for all trained on so far.
        responses: of the anchors.
        ewc_lambda: λ, weight of ``Σ F/2 (θ - θ*)²``.
        replay_beta: β, weight of the anchors' loss.
        updates: how many updates the stored Fisher information is the mean of; those that made
            none do not count.
    """

    adapter: Path
    prompts: Sequence[str] = field(default=())
    responses: Sequence[str] = field(default=())
    ewc_lambda: float = 0.0
    replay_beta: float = 0.0
    updates: int = 0


def trained_parameters(model: Module) -> dict[str, Tensor]:
    """The weights that require gradients, by name."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def squared_gradients(
    parameters: Mapping[str, Tensor], losses: Iterable[Tensor]
) -> dict[str, Tensor]:
    """Sum over examples of the squared gradient of each one's loss, float32.

    ``losses`` is read one by one, so that the graph of one example is in memory at a time. With the
    negative log-likelihood of what was observed, this is the diagonal of the empirical Fisher
    information, times the number of examples.
    """
    sums = {
        name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in parameters.items()
    }
    for loss in losses:
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        for total, gradient in zip(sums.values(), gradients, strict=True):
            if gradient is not None:
                total += gradient.float().square()
    return sums


def ewc_penalty(
    parameters: Mapping[str, Tensor], stars: Mapping[str, Tensor], fisher: Mapping[str, Tensor]
) -> Tensor:
    """``Σ F/2 (θ - θ*)²`` over all weights; its gradient is ``F (θ - θ*)``."""
    terms = [
        (fisher[name] * (weight.float() - stars[name]).square()).sum() / 2
        for name, weight in parameters.items()
    ]
    return torch.stack(terms).sum()


def accumulated(
    before: Mapping[str, Tensor] | None, new: Mapping[str, Tensor], updates: int
) -> dict[str, Tensor]:
    """The mean of the Fisher information of all updates that made any.

    A mean and not a sum: λ is to mean the same at the hundredth update as at the first.

    Args:
        before: mean of ``updates`` updates; None where there was none.
        new: of one more, with the same names and shapes.
        updates: how many made ``before``.
    """
    if before is None:
        return dict(new)
    return {
        name: (before[name].to(value.device) * updates + value) / (updates + 1)
        for name, value in new.items()
    }
