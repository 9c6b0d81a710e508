"""The training loop against a bare PyTorch + PEFT loop, and packing against padding.

``python benchmarks/training.py`` prints two tables and writes ``benchmarks/results/training.json``.
Same model, rows, batches, precision (bf16 on a GPU, else fp32) and threads on both sides; steps of
a comparison take turns, and the median of each counts. Lengths are like Aya's: log-normal, a median
of 40 tokens, a tail that is cut at 1,024.

On a GPU the model has the layers of Llama-3.2-1B and random weights, batches are larger, and a
third table follows: throughput by adapter, ZeRO stage and attention, with the memory each took
beside what ``compass-ray plan`` reckons. ``--shape 8b`` is that table for Llama-3.1-8B. Results are
kept in ``training_gpu.json``, those of other shapes in ``training_gpu_SHAPE.json``.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from embedding import make_tokenizer
from record import RESULTS, record

from compass_ray.config import Training
from compass_ray.costs import measure_model, worker_memory
from compass_ray.models import load_base, load_tokenizer
from compass_ray.training.adapters import add_adapter
from compass_ray.training.data import Example, Plan, collate, tokenise
from compass_ray.training.engine import build_engine, precision
from compass_ray.training.group import join_group
from compass_ray.training.loop import take_step

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
MEDIAN, SIGMA, LONGEST = 40, 1.0, 1024
WORDS = ("river", "stone", "market", "letter", "window", "garden", "winter", "bridge")
WARM_UP = 1
ON_GPU = torch.cuda.is_available()
# Rows of a batch that is not packed, and packed sequences of one.
ROWS, SEQUENCES = (16, 4) if ON_GPU else (4, 1)
SHAPES: dict[str, dict[str, Any]] = {
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "tie_word_embeddings": True,
    },
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "tie_word_embeddings": False,
    },
}
VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {},
    "lora, flex_attention": {"attention": "flex_attention"},
    "lora, recomputed": {"gradient_checkpointing": True},
    "dora": {"adapter": {"type": "dora"}},
    "qlora": {"adapter": {"type": "qlora"}},
    "lora, ZeRO-2": {"deepspeed": {"zero_stage": 2}},
    "lora, ZeRO-3": {"deepspeed": {"zero_stage": 3}},
    "lora, ZeRO-2, Adam on the CPU": {"deepspeed": {"zero_stage": 2, "offload_optimizer": True}},
}


def make_model(folder: Path, shape: str) -> str:
    """A Llama of that shape with random weights, and a tokenizer that knows the words here."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    make_tokenizer([f"say it {word} {word}" for word in WORDS] * 100).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=128_256, num_key_value_heads=8, max_position_embeddings=8192, **SHAPES[shape]
    )
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    return str(folder)


def make_rows(count: int, tokenizer: Any) -> tuple[list[str], list[str]]:
    """Prompts of a few words and responses that bring the whole to a length like Aya's."""
    chance = np.random.default_rng(0)
    prompts, responses = [], []
    empty = len(tokenise(["say it"], [""], tokenizer, LONGEST).examples[0].tokens)
    for length in chance.lognormal(np.log(MEDIAN), SIGMA, count):
        wanted = max(1, min(LONGEST, round(length)) - empty)
        prompts.append("say it")
        responses.append(" ".join(random.Random(len(prompts)).choices(WORDS, k=wanted)))
    return prompts, responses


def bare_steps(config: Training, plan: Plan, pad: int) -> Iterator[tuple[int, float]]:
    """Tokens and seconds of each step of what one would write without this project."""
    torch.manual_seed(0)
    device = "cuda" if ON_GPU else "cpu"
    model = add_adapter(load_base(config.model, precision(config)), config.adapter, config.model)
    model.to(device).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=0.0)
    for batch in plan.batches():
        started = time.perf_counter()
        part = collate(plan.examples, batch, pad)
        ids = torch.from_numpy(part["input_ids"]).to(device)
        labels = torch.from_numpy(part["labels"]).to(device)
        mask = torch.from_numpy((part["documents"] > 0).astype(np.int64)).to(device)
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        wait()
        yield plan.tokens(batch), time.perf_counter() - started


def our_steps(config: Training, plan: Plan, pad: int) -> Iterator[tuple[int, float]]:
    torch.manual_seed(0)
    engine = build_engine(config)
    for number, batch in enumerate(plan.batches()):
        started = time.perf_counter()
        step = take_step(engine, plan, config, None, 0, number, batch, pad)
        wait()
        yield step.tokens, time.perf_counter() - started


def wait() -> None:
    if ON_GPU:
        torch.cuda.synchronize()


def rates_in_turn(sides: Mapping[str, Iterator[tuple[int, float]]]) -> dict[str, float]:
    """Median tokens a second of each side, after warming up, a step of one and one of the next."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for turn in zip(*sides.values(), strict=True):
        for name, (tokens, seconds) in zip(sides, turn, strict=True):
            rates[name].append(tokens / seconds)
    return {name: statistics.median(found[WARM_UP:]) for name, found in rates.items()}


def over_all(steps: Iterator[tuple[int, float]]) -> float:
    """Tokens a second of all steps together, the first left out."""
    found = list(steps)[WARM_UP:]
    return sum(tokens for tokens, _ in found) / sum(seconds for _, seconds in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000 if ON_GPU else 160)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--shape", choices=SHAPES, default="1b", help="Of the model on a GPU")
    parser.add_argument("--results", default=str(RESULTS), help="Folder of what is kept")
    arguments = parser.parse_args()
    start_group()
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(Path(folder), arguments.shape) if ON_GPU else MODEL
        tokenizer = load_tokenizer(model)
        pad = int(tokenizer.pad_token_id)
        examples = tokenise(*make_rows(arguments.rows, tokenizer), tokenizer, LONGEST).examples
        lengths = sorted(len(example.tokens) for example in examples)
        print(f"{len(lengths)} rows, median {lengths[len(lengths) // 2]} tokens, to {lengths[-1]}")
        result: dict[str, Any] = {
            "model": f"Llama, {arguments.shape}" if ON_GPU else MODEL,
            "precision": str(precision(settings(model))),
        }
        name = "training_gpu" if ON_GPU else "training"
        if arguments.shape == "1b":
            result |= compared(model, examples, pad, arguments.steps)
        else:
            name += f"_{arguments.shape}"
        if ON_GPU:
            record(name, result, Path(arguments.results))
            result["variants"] = variants(model, examples, pad, arguments.steps)
        record(name, result, Path(arguments.results))


def compared(model: str, examples: list[Example], pad: int, steps: int) -> dict[str, Any]:
    loops = against_bare_loop(model, examples, pad, steps)
    ratio = loops["compass_ray"] / loops["bare loop"]
    print(f"\n{'loop':<14} {'tokens/s':>9}")
    for name, rate in loops.items():
        print(f"{name:<14} {rate:>9.1f}")
    print(f"compass_ray to the bare loop: {ratio:.2f}", flush=True)

    layouts = packed_and_padded(model, examples, pad)
    gain = layouts["packed"] / layouts["padded"]
    print(f"\n{'batches':<14} {'tokens/s':>9}")
    for name, rate in layouts.items():
        print(f"{name:<14} {rate:>9.1f}")
    print(f"packed to padded: {gain:.2f}", flush=True)
    return {"tokens_per_second": loops | layouts, "loop_ratio": ratio, "packing_ratio": gain}


def start_group() -> None:
    """The process group of one worker."""
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29591", **alone})
    join_group(ON_GPU, auto_mpi_discovery=False)


def settings(model: str, **changes: Any) -> Training:
    plain = {
        "model": model,
        "precision": "auto",
        "max_length": LONGEST,
        "deepspeed": {"zero_stage": 0},
        "learning_rate": 1e-4,
    }
    return Training(**(plain | changes))


def laid_out(config: Training, examples: list[Example], steps: int | None) -> Plan:
    return Plan.build(
        examples,
        batch_size=config.batch_size,
        max_length=config.max_length,
        packing=config.packing,
        seed=0,
        epochs=1,
        max_steps=steps,
    )


def against_bare_loop(
    model: str, examples: list[Example], pad: int, steps: int
) -> dict[str, float]:
    config = settings(model, batch_size=ROWS, packing=False)
    plan = laid_out(config, examples, steps)
    return rates_in_turn(
        {"bare loop": bare_steps(config, plan, pad), "compass_ray": our_steps(config, plan, pad)}
    )


def packed_and_padded(model: str, examples: list[Example], pad: int) -> dict[str, float]:
    """One epoch each; a packed sequence and a padded batch hold about as many tokens."""
    mean = sum(len(example.tokens) for example in examples) / len(examples)
    configs = {
        "padded": settings(model, batch_size=round(SEQUENCES * LONGEST / mean), packing=False),
        "packed": settings(model, batch_size=SEQUENCES, packing=True),
    }
    return {
        name: over_all(our_steps(config, laid_out(config, examples, None), pad))
        for name, config in configs.items()
    }


def variants(
    model: str, examples: list[Example], pad: int, steps: int
) -> dict[str, dict[str, float | str]]:
    """Packed steps of every variant: tokens a second, and gigabytes of GPU memory at the peak."""
    found: dict[str, dict[str, float | str]] = {}
    print(f"\n{'variant':<30} {'tokens/s':>9} {'GB':>6} {'reckoned':>9}")
    for name, changes in VARIANTS.items():
        config = settings(model, batch_size=SEQUENCES, **changes)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        try:
            rate = over_all(our_steps(config, laid_out(config, examples, steps), pad))
        except Exception as error:  # a package that is not there, a model that does not fit
            found[name] = {"failed": f"{type(error).__name__}: {error}"[:300]}
            print(f"{name:<30} {found[name]['failed']}", flush=True)
            continue
        finally:
            gc.collect()
        peak = torch.cuda.max_memory_reserved()
        size = measure_model(model, config.adapter)
        reckoned = worker_memory(size, config, longest=LONGEST, on_gpu=True, bf16=True)
        found[name] = {
            "tokens_per_second": rate,
            "peak_bytes": peak,
            "allocated_bytes": torch.cuda.max_memory_allocated(),
            "reckoned_bytes": reckoned.total - reckoned.process,
        }
        print(
            f"{name:<30} {rate:>9.0f} {peak / 1e9:>6.1f} "
            f"{(reckoned.total - reckoned.process) / 1e9:>9.1f}",
            flush=True,
        )
    return found


if __name__ == "__main__":
    main()
