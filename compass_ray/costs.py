"""What training an adapter costs, by arithmetic: parameters, steps, memory and time.

Every formula is an estimate and says in words what it assumes. Knows nothing of corpora, caches or
Ray; a model is built on PyTorch's meta device, where it has shapes and no weights.
"""

from __future__ import annotations

import heapq
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from compass_ray.config import Adapter, Training
from compass_ray.errors import UserError, first_line
from compass_ray.models import resolve_model
from compass_ray.training.data import Example, Plan, sequences_of_epoch

# Bytes a logit takes at the peak: float32 logits, log-probabilities, and a gradient of each.
# Measured on SmolLM2-135M: 16 in float32 as in bfloat16, since the loss is taken in float32.
LOGIT_BYTES = 16
# Values kept for the backward pass, a token and layer, in (hidden, intermediate) sizes, by adapter
# type and whether there is dropout. Fitted to what autograd saves in Llama models of five shapes
# with an adapter on every linear layer; 4 % from the resident memory of SmolLM2-135M.
_KEPT: dict[tuple[str, bool], tuple[int, int]] = {
    ("lora", True): (20, 5),
    ("lora", False): (10, 4),
    ("dora", True): (31, 9),
    ("dora", False): (20, 8),
}
# Beyond what tensors hold. On a CPU malloc kept half as much again as the activations (and nothing
# with MALLOC_MMAP_THRESHOLD_ set); for CUDA's caching allocator a tenth is assumed.
_HEAP_SHARE = {"cpu": 0.5, "cuda": 0.1}
# torch, Ray, DeepSpeed, transformers and PEFT imported: 545 MB resident.
PROCESS_BYTES = 600_000_000

CPU_FLOPS_PER_THREAD = 0.08e12
"""Measured: LoRA steps of a 135M model in float32 at 140 to 180 tokens/s on one thread."""
GPU_UTILISATION = 0.4
"""Share of the peak that training reaches: LoRA on one H100 was measured at 402 of 990 TFLOP/s."""
SLOWDOWN = {"dora": 1.3, "qlora": 1.39}
"""Of a step against LoRA's; QLoRA's as Raschka measured it on Llama-2-7B (2023)."""
# A weight in 4 bits, and its share of the constants that scale each block of 64, quantised too.
_QLORA_BYTES = 0.516
BUNDLED_ROWS_PER_THREAD = 25.0
"""Prompts a second of the bundled encoder: 50 sentences of 12 words on two threads, measured."""
LAUNCH_SECONDS = 20.0
"""Starting the workers of one language and loading the model."""

_SIMULATED_ROWS = 20_000
_SIMULATED_STEPS = 200


@dataclass(frozen=True)
class ModelSize:
    """Parameters of a base model and an adapter on it, and the sizes that memory depends on.

    ``embeddings`` are the parameters of the input and the output embeddings, once where tied.
    """

    parameters: int
    adapter_parameters: int
    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    embeddings: int


@dataclass(frozen=True)
class Steps:
    """A training run, counted on a sample of its rows.

    Attributes:
        tokens_per_row: mean length of a document, prompt and response, cut at ``max_length``.
        tokens_per_epoch: tokens of all documents.
        sequences: sequences of an epoch; packed ones when packing.
        steps: optimiser steps.
        tokens: tokens of all steps, without padding.
        padded_tokens: tokens of all steps, with padding: what the model works on.
        longest: tokens of the longest padded sequence.
    """

    tokens_per_row: float
    tokens_per_epoch: int
    sequences: int
    steps: int
    tokens: int
    padded_tokens: int
    longest: int


@dataclass(frozen=True)
class Memory:
    """Bytes of one training worker at its peak."""

    base: int
    adapter: int
    gradients: int
    optimiser: int
    activations: int
    logits: int
    allocator: int
    process: int
    total: int


def measure_model(name: str, adapter: Adapter) -> ModelSize:
    """Count parameters exactly from the model's configuration; reads no weights.

    Raises ``UserError`` if the model is no causal language model that can be built here, or has
    no layer that ``adapter.target_modules`` names.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from compass_ray.training.adapters import add_adapter

    try:
        config = AutoConfig.from_pretrained(resolve_model(name))
        with torch.device("meta"):
            base = AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"training.model: {name} cannot be built ({first_line(error)})") from None
    parameters = sum(weight.numel() for weight in base.parameters())
    ends = (base.get_input_embeddings(), base.get_output_embeddings())
    embeddings = {end.weight for end in ends if end is not None}
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapted = add_adapter(base, adapter, name)
    except ValueError as error:
        raise UserError(f"training.adapter.target_modules: {first_line(error)}") from None
    text = config.get_text_config()
    return ModelSize(
        parameters=parameters,
        adapter_parameters=sum(p.numel() for p in adapted.parameters() if p.requires_grad),
        layers=int(text.num_hidden_layers),
        hidden=int(text.hidden_size),
        intermediate=int(getattr(text, "intermediate_size", None) or 4 * text.hidden_size),
        vocabulary=int(text.vocab_size),
        embeddings=sum(weight.numel() for weight in embeddings),
    )


def count_steps(
    groups: Sequence[tuple[Sequence[Example], int]], training: Training, seed: int
) -> Steps:
    """Lay out the batches of a run whose rows are like those of a sample.

    The layout is that of ``training.data.Plan``, for documents as long as the sampled ones, each
    repeated as often as needed; above ``_SIMULATED_ROWS`` rows and ``_SIMULATED_STEPS`` steps it is
    extrapolated.

    Args:
        groups: Sampled documents that stand for so many rows; own rows, say, and picked ones.
        training: Batch size, packing, epochs and the like.
        seed: Order of the documents.
    """
    rows = sum(count for _, count in groups)
    share = min(1.0, _SIMULATED_ROWS / rows)
    examples: list[Example] = []
    for sample, count in groups:
        if sample and count:
            simulated = max(1, round(count * share))
            examples += [sample[i * len(sample) // simulated] for i in range(simulated)]
    repeats = rows / len(examples)
    plan = Plan.build(
        examples,
        batch_size=training.batch_size,
        max_length=training.max_length,
        packing=training.packing,
        seed=seed,
        epochs=training.epochs * repeats,
        max_steps=training.max_steps,
    )
    laid_out = tokens = padded = longest = 0
    for batch in islice(plan.batches(), _SIMULATED_STEPS):
        laid_out += 1
        tokens += plan.tokens(batch)
        for first in range(0, len(batch), training.micro_batch):
            held = batch[first : first + training.micro_batch]
            lengths = [plan.tokens([sequence]) for sequence in held]
            padded += max(lengths) * len(lengths)
            longest = max(longest, *lengths)
    epoch = sequences_of_epoch(examples, training.max_length, training.packing, seed, 0)
    length = sum(len(example.tokens) for example in examples)
    return Steps(
        tokens_per_row=length / len(examples),
        tokens_per_epoch=round(length * repeats),
        sequences=round(len(epoch) * repeats),
        steps=plan.total_steps,
        tokens=round(tokens * plan.total_steps / laid_out),
        padded_tokens=round(padded * plan.total_steps / laid_out),
        longest=longest,
    )


def worker_memory(
    size: ModelSize,
    training: Training,
    *,
    longest: int,
    on_gpu: bool,
    bf16: bool,
    micro_batch: int | None = None,
) -> Memory:
    """Bytes of one worker at its peak; ``memory_assumptions`` says how.

    Args:
        size: The model.
        training: Adapter, ZeRO stage and workers.
        longest: Tokens of the longest sequence.
        on_gpu: Which allocator is reckoned with.
        bf16: Weights and activations in bfloat16 rather than float32.
        micro_batch: Sequences held at once, if not those of ``training``.
    """
    stage, workers = training.deepspeed.zero_stage, training.workers_per_language
    width = 2 if bf16 else 4
    split = workers if stage == 3 else 1
    tokens = (micro_batch or training.micro_batch) * longest
    by_hidden, by_intermediate = _kept(training)
    kept = by_hidden * size.hidden + by_intermediate * size.intermediate
    activations = size.layers * tokens * kept * width
    if training.gradient_checkpointing:
        activations = tokens * (size.layers * size.hidden + kept) * width
    moments_and_master = 12 if bf16 else 8
    base = base_bytes(size, training, bf16=bf16) // split
    if on_gpu and training.deepspeed.offload_parameters:
        base //= size.layers
    optimiser = size.adapter_parameters * moments_and_master // (workers if stage >= 1 else 1)
    if on_gpu and training.deepspeed.offload_optimizer:
        optimiser = 0
    parts = {
        "base": base,
        "adapter": size.adapter_parameters * width // split,
        "gradients": size.adapter_parameters * 4 // (workers if stage >= 2 else 1),
        "optimiser": optimiser,
        "activations": activations,
        "logits": size.vocabulary * tokens * LOGIT_BYTES,
        "allocator": int(activations * _HEAP_SHARE["cuda" if on_gpu else "cpu"]),
        "process": PROCESS_BYTES,
    }
    return Memory(**parts, total=sum(parts.values()))


def base_bytes(size: ModelSize, training: Training, *, bf16: bool) -> int:
    """Bytes of the whole base; for QLoRA, bitsandbytes leaves the embeddings as they are."""
    width = 2 if bf16 else 4
    if training.adapter.type != "qlora":
        return size.parameters * width
    return int((size.parameters - size.embeddings) * _QLORA_BYTES) + size.embeddings * width


def scoring_memory(size: ModelSize, training: Training, *, bf16: bool) -> int:
    """Bytes below which no base is scored: its weights, whole on one worker, and the process."""
    return base_bytes(size, training, bf16=bf16) + PROCESS_BYTES


def memory_assumptions(training: Training, *, on_gpu: bool, bf16: bool) -> dict[str, str]:
    """What each part of ``worker_memory`` is reckoned from, in words."""
    stage, workers = training.deepspeed.zero_stage, training.workers_per_language
    dtype, width = ("bfloat16", 2) if bf16 else ("float32", 4)
    by_hidden, by_intermediate = _kept(training)
    weights = f"parameters x {width} bytes ({dtype}){{}}"
    if training.adapter.type == "qlora":
        weights = (
            f"parameters x {_QLORA_BYTES} bytes (4 bits and scales), embeddings in {dtype}{{}}"
        )
    if on_gpu and training.deepspeed.offload_parameters:
        weights += ", one layer at a time, the rest in CPU memory"
    offloaded = on_gpu and training.deepspeed.offload_optimizer
    recomputed = training.gradient_checkpointing

    def shared(from_stage: int) -> str:
        split = workers > 1 and stage >= from_stage
        return f", shared by {workers} workers (ZeRO-{stage})" if split else ""

    return {
        "base": weights.format(shared(3)),
        "adapter": f"adapter parameters x {width} bytes{shared(3)}",
        "gradients": f"adapter parameters x 4 bytes{shared(2)}",
        "optimiser": "in CPU memory"
        if offloaded
        else (
            f"adapter parameters x {12 if bf16 else 8} bytes: two moments of Adam"
            f"{' and a float32 copy' if bf16 else ''}{shared(1)}"
        ),
        "activations": (
            f"tokens x (layers x hidden + {by_hidden} hidden + {by_intermediate} intermediate) x "
            f"{width} bytes, all but a layer's input computed again"
        )
        if recomputed
        else (
            f"layers x tokens x ({by_hidden} hidden + {by_intermediate} intermediate) x {width} "
            "bytes, nothing recomputed"
        ),
        "logits": (
            f"vocabulary x tokens x {LOGIT_BYTES} bytes: 4 float32 copies; an upper bound, for "
            "prompts have none"
        ),
        "allocator": (
            f"{_HEAP_SHARE['cuda' if on_gpu else 'cpu']:.0%} of the activations, held but not used"
        ),
        "process": "libraries" + (" and CUDA context" if on_gpu else ""),
    }


def _kept(training: Training) -> tuple[int, int]:
    kind = "dora" if training.adapter.type == "dora" else "lora"
    return _KEPT[kind, training.adapter.dropout > 0]


def largest_micro_batch(
    size: ModelSize,
    training: Training,
    *,
    longest: int,
    on_gpu: bool,
    bf16: bool,
    available: int,
) -> int | None:
    """The largest micro-batch that divides a worker's share of the batch and fits; None if none."""
    share = training.batch_size // training.workers_per_language
    for count in range(share, 0, -1):
        if share % count == 0:
            needed = worker_memory(
                size, training, longest=longest, on_gpu=on_gpu, bf16=bf16, micro_batch=count
            )
            if needed.total <= available:
                return count
    return None


def training_flops(size: ModelSize, training: Training, padded_tokens: int) -> float:
    """4·N·T floating-point operations: 2 forward and 2 for the gradient of the activations.

    With gradient checkpointing 6·N·T, since the forward pass is done twice.

    The frozen weights get no gradient, which is the other 2 of the usual 6·N·T; the adapter's own
    share is left out, and every parameter is taken to work on every token. With it and
    ``GPU_UTILISATION``, Llama-3-8B on one H100 comes to 12,300 tokens/s; measured: 12,473.
    """
    slowdown = SLOWDOWN.get(training.adapter.type, 1.0)
    passes = 6.0 if training.gradient_checkpointing else 4.0
    return passes * size.parameters * padded_tokens * slowdown


def time_assumption(training: Training, gpu: str | None, *, on_gpu: bool) -> str:
    """How times are reckoned, in words."""
    rate = f"{GPU_UTILISATION:.0%} of the bfloat16 peak of {gpu or 'a GPU of unknown kind'}"
    if not on_gpu:
        rate = f"{CPU_FLOPS_PER_THREAD / 1e12:.3g} TFLOP/s a thread"
    kind = training.adapter.type
    slower = f" x {SLOWDOWN[kind]} for {kind}" if kind in SLOWDOWN else ""
    passes = "4 x parameters x tokens (forward, and backward to the activations)"
    if training.gradient_checkpointing:
        passes = "6 x parameters x tokens (forward twice, and backward to the activations)"
    return f"{passes}{slower} at {rate}; {LAUNCH_SECONDS:.0f} s to start a language"


def side_by_side(seconds: Iterable[float], places: int) -> float:
    """Wall time of jobs on so many places, the longest started first as the launcher does."""
    free = [0.0] * places
    for duration in sorted(seconds, reverse=True):
        heapq.heappush(free, heapq.heappop(free) + duration)
    return max(free)
