"""The training loop of one adapter, as each worker runs it: DeepSpeed around a PEFT model.

Knows nothing of how workers are launched. What it needs from outside (a checkpoint to resume
from, a place to report to) comes through ``Reporter``. Shapes: B sequences, L tokens.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist

from compass_ray.config import Training
from compass_ray.models import load_base, load_tokenizer
from compass_ray.training.adapters import (
    add_adapter,
    gather_adapter,
    load_adapter,
    save_adapter,
)
from compass_ray.training.anchoring import Start
from compass_ray.training.data import Plan, collate, tokenise
from compass_ray.training.keeper import Keeper
from compass_ray.training.losses import forward_loss

PROGRESS_FILE = "progress.json"
ADAPTER_FOLDER = "adapter"


class TrainingError(RuntimeError):
    """Training cannot go on: the cause is in the data or the settings, and retrying won't help."""


@dataclass(frozen=True)
class Step:
    """One optimiser step; ``loss`` is the mean over target tokens, in nats, of all workers."""

    step: int
    loss: float
    learning_rate: float
    tokens: int
    targets: int
    seconds: float


@dataclass(frozen=True)
class Summary:
    """What a finished run did, over all its attempts.

    Attributes:
        steps: optimiser steps.
        rows: documents trained on.
        tokens: tokens of all steps, prompts included, padding not.
        seconds: time of all steps, without start and checkpoints.
        truncated: rows cut at ``training.max_length``.
        without_response: rows left out since nothing of their response was within it.
        resumed_after: the step after which each attempt but the first went on.
    """

    steps: int
    rows: int
    tokens: int
    seconds: float
    truncated: int
    without_response: int
    resumed_after: list[int]


class Reporter(Protocol):
    """How the loop talks to whoever launched it."""

    def resume_from(self) -> Path | None:
        """Folder of the newest checkpoint, if there is one."""

    def on_step(self, step: Step, total: int) -> None:
        """Called after every step on rank 0."""

    def save(self, folder: Path, metrics: Mapping[str, Any]) -> None:
        """Keep a checkpoint; called by every rank with the files of that rank."""


def train(
    config: Training,
    prompts: Sequence[str],
    responses: Sequence[str],
    seed: int,
    reporter: Reporter,
    start: Start | None = None,
) -> None:
    """Train one adapter to the end; the last checkpoint holds it in ``adapter/``.

    With ``start`` training goes on from that adapter, held near it as ``Start`` says. The process
    group exists already. Every source of randomness is a function of seed and step,
    so a resumed run takes the steps an uninterrupted one would have taken.
    """
    import deepspeed

    rank, world = dist.get_rank(), dist.get_world_size()
    tokenizer = load_tokenizer(config.model)
    data = tokenise(prompts, responses, tokenizer, config.max_length, config.system_prompt)
    if not data.examples:
        raise TrainingError("no row has a response within training.max_length")
    plan = Plan.build(
        data.examples,
        batch_size=config.batch_size,
        max_length=config.max_length,
        packing=config.packing,
        seed=seed,
        epochs=config.epochs,
        max_steps=config.max_steps,
    )
    dtype = _dtype(config)
    torch.manual_seed(seed)
    base = load_base(config.model, dtype)
    if start:
        model = load_adapter(base, start.adapter, config.model)
    else:
        model = add_adapter(base, config.adapter, config.model)
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=[p for p in model.parameters() if p.requires_grad],
        config=deepspeed_config(config, world, dtype),
    )
    keeper = Keeper.build(engine, tokenizer, config, plan, start)
    history, resumed_after = _resume(engine, reporter.resume_from())
    micro_batch = engine.train_micro_batch_size_per_gpu()
    accumulation = engine.gradient_accumulation_steps()
    for number, batch in enumerate(plan.batches(start=len(history)), start=len(history)):
        started = time.monotonic()
        rate = learning_rate(number, plan.total_steps, config)
        for group in engine.optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(seed * 1_000_003 + number * 1_009 + rank)
        targets, tokens = plan.targets(batch), plan.tokens(batch)
        if keeper:
            tokens += keeper.begin_step(number)
        total = torch.zeros((), device=engine.device)
        engine.train()
        for index in range(accumulation):
            first = (index * world + rank) * micro_batch
            part = collate(plan.examples, batch[first : first + micro_batch], _pad(tokenizer))
            loss = forward_loss(engine, part)
            # DeepSpeed averages over workers and micro-batches; this makes it the mean over
            # the target tokens of the whole batch, however they are spread.
            objective = loss * (world * accumulation / targets)
            if keeper:
                objective = objective + keeper.term(index)
            engine.backward(objective)
            engine.step()
            total += loss.detach()
        dist.all_reduce(total)
        mean = total.item() / targets
        if not math.isfinite(mean):
            raise TrainingError(f"loss is {mean} at step {number + 1}")
        seconds = time.monotonic() - started
        history.append(Step(number + 1, mean, rate, tokens, targets, seconds))
        if rank == 0:
            reporter.on_step(history[-1], plan.total_steps)
        if (number + 1) % config.checkpoint_steps == 0 and number + 1 < plan.total_steps:
            with tempfile.TemporaryDirectory() as name:
                _save_state(engine, Path(name), history, resumed_after, None)
                reporter.save(Path(name), asdict(history[-1]))
    weights = gather_adapter(engine.module, config.deepspeed.zero_stage)
    summary = Summary(
        steps=len(history),
        rows=len(data.examples),
        tokens=sum(step.tokens for step in history),
        seconds=sum(step.seconds for step in history),
        truncated=data.truncated,
        without_response=data.without_response,
        resumed_after=resumed_after,
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if rank == 0:
            save_adapter(engine.module, weights, folder / ADAPTER_FOLDER)
            if keeper:
                keeper.save(folder / ADAPTER_FOLDER)
        _save_state(engine, folder, history, resumed_after, summary)
        reporter.save(folder, asdict(history[-1]))


def learning_rate(step: int, total: int, config: Training) -> float:
    """Linear warm-up, then cosine down to a tenth of the peak at the last step."""
    warmup = max(1, round(config.warmup_ratio * total))
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return config.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))


def deepspeed_config(config: Training, world: int, dtype: torch.dtype) -> dict[str, Any]:
    micro_batch = config.micro_batch_size or max(1, config.batch_size // world)
    return {
        "train_batch_size": config.batch_size,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_clipping": config.max_grad_norm,
        "bf16": {"enabled": dtype is torch.bfloat16},
        "zero_optimization": {"stage": config.deepspeed.zero_stage},
        "optimizer": {
            "type": "AdamW",
            # The fused kernel is compiled on first use; an adapter has too few weights to gain.
            "params": {
                "lr": config.learning_rate,
                "weight_decay": config.weight_decay,
                "torch_adam": True,
            },
        },
        "steps_per_print": 2**31,
    }


def _dtype(config: Training) -> torch.dtype:
    if config.precision == "auto":
        return torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return torch.bfloat16 if config.precision == "bf16" else torch.float32


def _pad(tokenizer: Any) -> int:
    return int(tokenizer.pad_token_id or 0)


def _save_state(
    engine: Any,
    folder: Path,
    history: Sequence[Step],
    resumed_after: Sequence[int],
    summary: Summary | None,
) -> None:
    engine.save_checkpoint(str(folder), tag="state", exclude_frozen_parameters=True)
    if dist.get_rank() == 0:
        progress = {
            "history": [asdict(step) for step in history],
            "resumed_after": list(resumed_after),
            "summary": asdict(summary) if summary else None,
        }
        Path(folder, PROGRESS_FILE).write_text(json.dumps(progress))


def _resume(engine: Any, checkpoint: Path | None) -> tuple[list[Step], list[int]]:
    if checkpoint is None:
        return [], []
    engine.load_checkpoint(str(checkpoint), tag="state", load_module_strict=False)
    progress = json.loads(Path(checkpoint, PROGRESS_FILE).read_text())
    history = [Step(**step) for step in progress["history"]]
    return history, [*progress["resumed_after"], len(history)]
