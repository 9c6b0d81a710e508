"""The two terms of an update's loss beside the task: EWC and replay, inside DeepSpeed's loop."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor

from compass_ray.config import Training
from compass_ray.training.anchoring import (
    FISHER_FILE,
    Start,
    accumulated,
    ewc_penalty,
    squared_gradients,
    trained_parameters,
)
from compass_ray.training.data import Example, Plan, collate, tokenise
from compass_ray.training.losses import forward_loss


class Keeper:
    """Gives each micro-batch its share of ``λ Σ F/2 (θ - θ*)² + β L_replay``.

    θ* are the weights when it is built. Every worker replays one sequence of anchors with each of
    its micro-batches.
    """

    def __init__(
        self,
        engine: Any,
        start: Start,
        fisher: Mapping[str, Tensor] | None,
        replay: Plan | None,
        pad: int,
    ) -> None:
        self._engine, self._start, self._pad = engine, start, pad
        self._rank, self._world = dist.get_rank(), dist.get_world_size()
        self._accumulation = engine.gradient_accumulation_steps()
        self._parameters = trained_parameters(engine.module)
        self._stars = {n: w.detach().float().clone() for n, w in self._parameters.items()}
        self._fisher, self._replay = fisher, replay
        self._batches: Iterator[list[tuple[int, ...]]] | None = None
        self._batch: list[tuple[int, ...]] = []

    @classmethod
    def build(
        cls, engine: Any, tokenizer: Any, config: Training, plan: Plan, start: Start | None
    ) -> Self | None:
        """None where there is nothing to keep: no start, no anchors, or both weights 0."""
        if start is None or not (start.ewc_lambda or start.replay_beta):
            return None
        anchors = tokenise(
            start.prompts, start.responses, tokenizer, config.max_length, config.system_prompt
        ).examples
        if not anchors:
            return None
        pad = int(tokenizer.pad_token_id or 0)
        fisher = replay = None
        if start.ewc_lambda:
            fisher = _fisher(engine.module, anchors, start, pad)
        if start.replay_beta:
            sequences = dist.get_world_size() * engine.gradient_accumulation_steps()
            replay = Plan.build(
                anchors,
                batch_size=sequences,
                max_length=config.max_length,
                packing=config.packing,
                seed=plan.seed,
                epochs=1,
                max_steps=plan.total_steps,
            )
        return cls(engine, start, fisher, replay, pad)

    def begin_step(self, number: int) -> int:
        """Take the anchors that step ``number`` replays, steps in order; returns their tokens."""
        if self._replay is None:
            return 0
        if self._batches is None:
            self._batches = self._replay.batches(start=number)
        self._batch = next(self._batches)
        return self._replay.tokens(self._batch)

    def term(self, index: int) -> Tensor:
        """What micro-batch ``index`` of the step adds to the loss; DeepSpeed averages over all."""
        total = torch.zeros((), device=self._engine.device)
        if self._fisher is not None:
            penalty = ewc_penalty(self._parameters, self._stars, self._fisher)
            total = total + self._start.ewc_lambda * penalty
        if self._replay is not None:
            sequence = self._batch[index * self._world + self._rank]
            part = collate(self._replay.examples, [sequence], self._pad)
            share = self._world * self._accumulation / self._replay.targets(self._batch)
            loss = forward_loss(self._engine.module, part)
            total = total + self._start.replay_beta * share * loss
        return total

    def save(self, folder: Path) -> None:
        """Write the Fisher information beside the adapter, where the next update looks for it."""
        if self._fisher is None:
            return
        from safetensors.torch import save_file

        tensors = {name: value.cpu().contiguous() for name, value in self._fisher.items()}
        save_file(tensors, str(folder / FISHER_FILE))


def _fisher(model: Any, anchors: Sequence[Example], start: Start, pad: int) -> dict[str, Tensor]:
    """Mean squared gradient of the anchors, a target token, and of earlier updates' anchors.

    Of the response's summed loss, example by example, over the number of target tokens: the
    curvature of the mean loss a token, which is the unit of the task's loss. Workers share the
    anchors out.
    """
    model.eval()  # dropout would be noise in every square
    mine = anchors[dist.get_rank() :: dist.get_world_size()]
    losses = (forward_loss(model, collate([anchor], [(0,)], pad)) for anchor in mine)
    fisher = squared_gradients(trained_parameters(model), losses)
    targets = sum(anchor.targets for anchor in anchors)
    for value in fisher.values():
        dist.all_reduce(value)
        value /= targets
        if not math.isfinite(float(value.sum())):
            raise FloatingPointError("the anchors' gradients are not finite")
    return accumulated(_stored(start.adapter), fisher, start.updates)


def _stored(folder: Path) -> dict[str, Tensor] | None:
    from safetensors.torch import load_file

    path = folder / FISHER_FILE
    return load_file(str(path)) if path.is_file() else None
