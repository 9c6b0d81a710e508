"""What training takes: rows and steps of each language, memory of a worker, time of all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from compass_ray import costs
from compass_ray.config import Config, Role
from compass_ray.corpora.preview import Preview, sample_of
from compass_ray.costs import Memory, ModelSize, Steps
from compass_ray.embedding.encoders import Device
from compass_ray.planning.gpus import gpu_flops
from compass_ray.planning.hardware import Hardware
from compass_ray.planning.reuse import Found
from compass_ray.resources import WorkerShape
from compass_ray.sampling.subset import SUBSET
from compass_ray.training.data import Example, tokenise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAMPLED_ROWS = 100
"""Rows of each kind, own and from other languages, whose tokens are counted for a language."""


@dataclass(frozen=True)
class LanguageTraining:
    """The training of one language.

    Attributes:
        own: rows of the language itself; None where it is not known.
        picked: rows from other languages.
        certain: whether ``own`` and ``picked`` are counted, not estimated.
        reused: the adapter is there already.
        steps: None where no row could be looked at.
        seconds: time from its start to its adapter.
    """

    language: str
    own: int | None
    picked: int
    certain: bool
    reused: bool
    steps: Steps | None
    seconds: float | None


@dataclass(frozen=True)
class WorkerMemory:
    """Peak of one training worker.

    Attributes:
        bytes: by what takes it.
        assumptions: how each was reckoned.
        micro_batch: sequences held at once.
        tokens: tokens of the longest of them.
        available: bytes a worker may take; None where it is not known.
        fits: None where ``available`` is.
        largest_micro_batch: the largest that would fit; None if none does or it is not known.
        scoring: least bytes of a worker of the evaluation.
    """

    bytes: Memory
    assumptions: dict[str, str]
    micro_batch: int
    tokens: int
    available: int | None
    fits: bool | None
    largest_micro_batch: int | None
    scoring: int


@dataclass(frozen=True)
class Training:
    """All adapters: where they are trained, and how long it takes.

    Attributes:
        model: name of the base model.
        size: its parameters.
        languages: one entry a language.
        workers: workers of a language.
        batch: sequences of a step, over all workers.
        device: of a worker.
        parallel: languages side by side.
        memory: of a worker.
        flops_per_second: what a worker is taken to reach.
        device_hours: over all languages still to train; GPU-hours on GPUs, core-hours on CPUs.
        wall_seconds: of them, with ``parallel`` side by side.
        assumption: how times were reckoned.
    """

    model: str
    size: ModelSize
    languages: tuple[LanguageTraining, ...]
    workers: int
    batch: int
    device: Device
    parallel: int
    memory: WorkerMemory
    flops_per_second: float
    device_hours: float | None
    wall_seconds: float | None
    assumption: str


def plan_training(
    config: Config,
    machine: Hardware,
    shape: WorkerShape,
    parallel: int,
    tokenizer: PreTrainedTokenizerBase,
    found: Found,
    previews: Mapping[Role, Preview],
) -> Training:
    """Plan the training of every language on workers of this shape."""
    settings = config.training
    on_gpu = shape.gpus > 0
    bf16 = settings.precision == "bf16" or (settings.precision == "auto" and on_gpu)
    size = costs.measure_model(settings.model, settings.adapter)
    # A worker's process uses one GPU, or the part of one that it reserves.
    share = min(1.0, shape.gpus) if on_gpu else 1.0
    rate = (
        gpu_flops(machine.gpu or "") * share if on_gpu else costs.CPU_FLOPS_PER_THREAD * shape.cpus
    )
    languages = tuple(
        _language(config, language, found, previews, tokenizer, size, rate)
        for language in config.languages
    )
    available = None
    if on_gpu and machine.gpu_bytes:
        available = int(machine.gpu_bytes * share)
    elif not on_gpu and machine.node_bytes:
        workers = parallel * settings.workers_per_language
        available = machine.node_bytes // math.ceil(workers / machine.nodes)
    waiting = [language.seconds for language in languages if not language.reused]
    seconds = [second for second in waiting if second is not None]
    known = len(seconds) == len(waiting)
    devices = settings.workers_per_language * (shape.gpus if on_gpu else shape.cpus)
    return Training(
        model=settings.model,
        size=size,
        languages=languages,
        workers=settings.workers_per_language,
        batch=settings.batch_size,
        device="cuda" if on_gpu else "cpu",
        parallel=parallel,
        memory=_memory(config, size, languages, on_gpu, bf16, available),
        flops_per_second=rate,
        device_hours=sum(seconds) * devices / 3600 if known else None,
        wall_seconds=costs.side_by_side(seconds, parallel) if known else None,
        assumption=costs.time_assumption(settings, machine.gpu if on_gpu else None, on_gpu=on_gpu),
    )


def _language(
    config: Config,
    language: str,
    found: Found,
    previews: Mapping[Role, Preview],
    tokenizer: PreTrainedTokenizerBase,
    size: ModelSize,
    rate: float,
) -> LanguageTraining:
    """Rows as the subset has them, or as the budget and the pool allow; steps from a sample."""
    settings = config.training

    def documents(rows: pa.Table, count: int) -> tuple[list[Example], int]:
        sample = sample_of(rows, SAMPLED_ROWS)
        prompts, responses = sample["prompt"].to_pylist(), sample["response"].to_pylist()
        examples = tokenise(
            prompts, responses, tokenizer, settings.max_length, settings.system_prompt
        ).examples
        # Rows that teach nothing are left out in training too.
        return examples, round(count * len(examples) / len(prompts)) if prompts else count

    own: int | None
    if language in found.subsets:
        subset = found.subsets[language]
        own, picked, certain = subset.summary["own"], subset.summary["picked"], True
        rows = subset.read_table(SUBSET, ["language", "prompt", "response"])
        mine = pc.equal(rows["language"], language)
        groups = [
            documents(rows.filter(mine), own),
            documents(rows.filter(pc.invert(mine)), picked),
        ]
    else:
        own, picked, certain = _row_counts(config, language, previews)
        train, pool = previews["train"].sample, previews["auxiliary"].sample
        groups = [
            documents(train.filter(pc.equal(train["language"], language)), own or 0),
            documents(pool.filter(pc.not_equal(pool["language"], language)), picked),
        ]
    # Rows of which none could be looked at are taken to be like the others.
    every = [example for examples, _ in groups for example in examples]
    groups = [(examples or every, count) for examples, count in groups]
    steps = seconds = None
    if every and any(count for _, count in groups):
        steps = costs.count_steps(groups, settings, config.run.seed)
        work = costs.training_flops(size, settings, steps.padded_tokens)
        seconds = costs.LAUNCH_SECONDS + work / (rate * settings.workers_per_language)
    reused = language in found.adapters
    return LanguageTraining(language, own, picked, certain, reused, steps, seconds)


def _row_counts(
    config: Config, language: str, previews: Mapping[Role, Preview]
) -> tuple[int | None, int, bool]:
    """Own rows, rows to be picked, and whether both are counted and not estimated."""
    train, pool = previews["train"], previews["auxiliary"]
    own = train.languages.get(language, 0)
    others = sum(count for name, count in pool.languages.items() if name != language)
    complete = pool.certainty in ("exact", "estimated")
    budget = config.sampling.budget
    picked = min(budget, others) if complete else budget
    if config.sampling.strategy == "all":
        picked = others
    elif config.sampling.strategy == "target_only":
        picked = 0
    certain = train.languages_certain and (pool.languages_certain or picked < others)
    return (own if train.certainty != "unknown" else None), picked, certain


def _memory(
    config: Config,
    size: ModelSize,
    languages: Sequence[LanguageTraining],
    on_gpu: bool,
    bf16: bool,
    available: int | None,
) -> WorkerMemory:
    settings = config.training
    longest = max(
        (told.steps.longest for told in languages if told.steps), default=settings.max_length
    )
    needed = costs.worker_memory(size, settings, longest=longest, on_gpu=on_gpu, bf16=bf16)
    largest = available and costs.largest_micro_batch(
        size, settings, longest=longest, on_gpu=on_gpu, bf16=bf16, available=available
    )
    return WorkerMemory(
        bytes=needed,
        assumptions=costs.memory_assumptions(settings, on_gpu=on_gpu, bf16=bf16),
        micro_batch=settings.micro_batch,
        tokens=longest,
        available=available,
        fits=None if available is None else needed.total <= available,
        largest_micro_batch=largest,
        # The evaluation takes its precision from the device, not from training.precision.
        scoring=costs.scoring_memory(size, settings, bf16=on_gpu),
    )
