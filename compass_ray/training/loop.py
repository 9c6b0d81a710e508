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
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from compass_ray.config import Training
from compass_ray.models import load_tokenizer
from compass_ray.training.adapters import gather_adapter, save_adapter
from compass_ray.training.anchoring import Start
from compass_ray.training.data import IGNORED, Example, Plan, Tokenised, collate, tokenise
from compass_ray.training.engine import build_engine
from compass_ray.training.keeper import Keeper
from compass_ray.training.losses import forward_loss
from compass_ray.training.packing import keeps_apart
from compass_ray.training.state import gather_state, restore_state, whole
from compass_ray.training.validation import exhausted, hold_out, is_best, validation_loss

PROGRESS_FILE = "progress.json"
STATE_FILE = "state.safetensors"
BEST_FILE = "best.safetensors"
ADAPTER_FOLDER = "adapter"


class TrainingError(RuntimeError):
    """Training cannot go on: the cause is in the data or the settings, and retrying won't help."""


@dataclass(frozen=True)
class Step:
    """One optimiser step.

    Attributes:
        step: counted from 1.
        loss: mean over the target tokens of all workers, in nats.
        learning_rate: of this step.
        tokens: trained on, prompts included, padding not.
        targets: of them, those predicted.
        seconds: without validation and checkpoints.
        validation_loss: after this step, where it was looked at.
    """

    step: int
    loss: float
    learning_rate: float
    tokens: int
    targets: int
    seconds: float
    validation_loss: float | None = None


@dataclass(frozen=True)
class Summary:
    """What a finished run did, over all its attempts.

    Attributes:
        steps: optimiser steps.
        rows: documents trained on.
        tokens: tokens of all steps, prompts included, padding not.
        seconds: time of all steps, without start and checkpoints.
        packed: whether rows shared sequences, which the model has to allow (``keeps_apart``).
        truncated: rows cut at ``training.max_length``.
        without_response: rows left out since nothing of their response was within it.
        resumed_after: the step after which each attempt but the first went on.
        validation_rows: documents held out.
        validation_loss: of the adapter that is kept; None if nothing was held out.
        best_step: the step after which it was as it is.
        stopped_early: whether steps were left when validation had stopped improving.
    """

    steps: int
    rows: int
    tokens: int
    seconds: float
    packed: bool
    truncated: int
    without_response: int
    resumed_after: list[int]
    validation_rows: int
    validation_loss: float | None
    best_step: int
    stopped_early: bool


class Reporter(Protocol):
    """How the loop talks to whoever launched it."""

    def resume_from(self) -> Path | None:
        """Folder of the newest checkpoint, if there is one."""

    def on_step(self, step: Step, total: int) -> None:
        """Called after every step on rank 0."""

    def save(self, folder: Path | None, metrics: Mapping[str, Any]) -> None:
        """Keep a checkpoint; every rank calls, and rank 0 alone has the files."""


@dataclass
class Progress:
    """How far a run is; with the engine's state, all that a resumed run needs.

    Attributes:
        history: every step.
        resumed_after: see ``Summary``.
        best: the adapter of the lowest validation loss so far; None if nothing is held out.
    """

    history: list[Step] = field(default_factory=list)
    resumed_after: list[int] = field(default_factory=list)
    best: dict[str, Tensor] | None = None

    def validations(self) -> list[Step]:
        return [step for step in self.history if step.validation_loss is not None]

    def validation_losses(self) -> list[float]:
        return [s.validation_loss for s in self.history if s.validation_loss is not None]


def train(
    config: Training,
    prompts: Sequence[str],
    responses: Sequence[str],
    seed: int,
    reporter: Reporter,
    start: Start | None = None,
) -> Any:
    """Train one adapter to the end; the last checkpoint holds it in ``adapter/``.

    Returns the DeepSpeed engine, as it was after the last step.

    With ``start`` training goes on from that adapter, held near it as ``Start`` says. The process
    group exists already. Every source of randomness is a function of seed and step,
    so a resumed run takes the steps an uninterrupted one would have taken.
    """
    tokenizer = load_tokenizer(config.model)
    pad = int(tokenizer.pad_token_id or 0)
    data = tokenise(prompts, responses, tokenizer, config.max_length, config.system_prompt)
    if not data.examples:
        raise TrainingError("no row has a response within training.max_length")
    examples, held_out = hold_out(data.examples, config.validation_fraction, seed)
    torch.manual_seed(seed)
    engine = build_engine(config, start)
    if config.packing:
        engine.eval()
        packing = keeps_apart(engine, max(examples, key=lambda e: len(e.tokens)))
        config = config.model_copy(update={"packing": packing})
    plan = Plan.build(
        examples,
        batch_size=config.batch_size,
        max_length=config.max_length,
        packing=config.packing,
        seed=seed,
        epochs=config.epochs,
        max_steps=config.max_steps,
    )
    keeper = Keeper.build(engine, tokenizer, config, plan, start)
    progress = _resume(engine, reporter.resume_from(), pad)
    done = len(progress.history)
    for number, batch in enumerate(plan.batches(start=done), start=done):
        if exhausted(progress.validation_losses(), config.early_stopping):
            break
        step = take_step(engine, plan, config, keeper, seed, number, batch, pad)
        if held_out and (step.step % config.validation_steps == 0 or step.step == plan.total_steps):
            loss = validation_loss(
                engine, held_out, max_length=config.max_length, packing=config.packing, pad=pad
            )
            step = replace(step, validation_loss=loss)
        progress.history.append(step)
        if step.validation_loss is not None and is_best(progress.validation_losses()):
            with whole(engine):
                progress.best = gather_adapter(engine.module)
        if dist.get_rank() == 0:
            reporter.on_step(step, plan.total_steps)
        if step.step % config.checkpoint_steps == 0 and step.step < plan.total_steps:
            _checkpoint(engine, progress, reporter)
    _finish(engine, progress, plan, data, len(held_out), keeper, reporter)
    return engine


def take_step(
    engine: Any,
    plan: Plan,
    config: Training,
    keeper: Keeper | None,
    seed: int,
    number: int,
    batch: Sequence[tuple[int, ...]],
    pad: int,
) -> Step:
    """Optimiser step ``number``, counted from 0, on this worker's share of the batch."""
    started = time.monotonic()
    rank, world = dist.get_rank(), dist.get_world_size()
    micro_batch = engine.train_micro_batch_size_per_gpu()
    accumulation = engine.gradient_accumulation_steps()
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
        part = collate(plan.examples, batch[first : first + micro_batch], pad)
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
    return Step(number + 1, mean, rate, tokens, targets, time.monotonic() - started)


def learning_rate(step: int, total: int, config: Training) -> float:
    """Linear warm-up, then cosine down to a tenth of the peak at the last step."""
    warmup = max(1, round(config.warmup_ratio * total))
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return config.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))


def _checkpoint(engine: Any, progress: Progress, reporter: Reporter) -> None:
    with tempfile.TemporaryDirectory() as name:
        _write_state(engine, progress, None, Path(name))
        reporter.save(_on_first_rank(Path(name)), asdict(progress.history[-1]))


def _finish(
    engine: Any,
    progress: Progress,
    plan: Plan,
    data: Tokenised,
    held_out: int,
    keeper: Keeper | None,
    reporter: Reporter,
) -> None:
    history = progress.history
    best = min(progress.validations(), key=lambda s: s.validation_loss or 0.0, default=history[-1])
    summary = Summary(
        steps=len(history),
        rows=len(plan.examples),
        tokens=sum(step.tokens for step in history),
        seconds=sum(step.seconds for step in history),
        packed=plan.packing,
        truncated=data.truncated,
        without_response=data.without_response,
        resumed_after=progress.resumed_after,
        validation_rows=held_out,
        validation_loss=best.validation_loss,
        best_step=best.step,
        stopped_early=len(history) < plan.total_steps,
    )
    with whole(engine):
        last = gather_adapter(engine.module)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_state(engine, progress, summary, folder)
        if dist.get_rank() == 0:
            save_adapter(engine.module, progress.best or last, folder / ADAPTER_FOLDER)
            if keeper:
                keeper.save(folder / ADAPTER_FOLDER)
        reporter.save(_on_first_rank(folder), asdict(history[-1]))


def _on_first_rank(folder: Path) -> Path | None:
    return folder if dist.get_rank() == 0 else None


def _write_state(engine: Any, progress: Progress, summary: Summary | None, folder: Path) -> None:
    from safetensors.torch import save_file

    state = gather_state(engine)
    if dist.get_rank():
        return
    save_file(state, str(folder / STATE_FILE))
    if progress.best:
        save_file(progress.best, str(folder / BEST_FILE))
    told = {
        "history": [asdict(step) for step in progress.history],
        "resumed_after": progress.resumed_after,
        "summary": asdict(summary) if summary else None,
    }
    (folder / PROGRESS_FILE).write_text(json.dumps(told))


def _resume(engine: Any, checkpoint: Path | None, pad: int) -> Progress:
    if checkpoint is None:
        return Progress()
    from safetensors.torch import load_file

    told = json.loads((checkpoint / PROGRESS_FILE).read_text())
    history = [Step(**step) for step in told["history"]]

    def idle_step() -> None:
        part = collate([Example((pad, pad), (IGNORED, pad))], [(0,)], pad)
        for _ in range(engine.gradient_accumulation_steps()):
            engine.backward(forward_loss(engine, part) * 0)
            engine.step()

    restore_state(engine, load_file(str(checkpoint / STATE_FILE)), idle_step)
    best = checkpoint / BEST_FILE
    return Progress(
        history,
        [*told["resumed_after"], len(history)],
        load_file(str(best)) if best.is_file() else None,
    )
