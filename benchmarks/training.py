"""The training loop against a bare PyTorch + PEFT loop, and packing against padding.

``python benchmarks/training.py`` prints two tables and writes ``benchmarks/results/training.json``,
on a GPU ``training_gpu.json``. Same model, rows, batches, precision (bf16 on a GPU, else fp32) and
threads on both sides; steps of a comparison take turns, and the median of each counts. Lengths are
like Aya's: log-normal, a median of 40 tokens, a tail that is cut at 1,024.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from record import record

from compass_ray.config import Training
from compass_ray.models import load_base, load_tokenizer
from compass_ray.training.adapters import add_adapter
from compass_ray.training.data import Example, Plan, collate, tokenise
from compass_ray.training.engine import build_engine, precision
from compass_ray.training.loop import take_step

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
MEDIAN, SIGMA, LONGEST = 40, 1.0, 1024
WARM_UP = 1
ON_GPU = torch.cuda.is_available()


def make_rows(count: int, tokenizer: Any) -> tuple[list[str], list[str]]:
    """Prompts of a few words and responses that bring the whole to a length like Aya's."""
    chance = np.random.default_rng(0)
    words = ("river", "stone", "market", "letter", "window", "garden", "winter", "bridge")
    prompts, responses = [], []
    empty = len(tokenise(["say it"], [""], tokenizer, LONGEST).examples[0].tokens)
    for length in chance.lognormal(np.log(MEDIAN), SIGMA, count):
        wanted = max(1, min(LONGEST, round(length)) - empty)
        prompts.append("say it")
        responses.append(" ".join(random.Random(len(prompts)).choices(words, k=wanted)))
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


def in_turn(sides: Mapping[str, Iterator[tuple[int, float]]]) -> dict[str, float]:
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
    parser.add_argument("--rows", type=int, default=160)
    parser.add_argument("--steps", type=int, default=12)
    arguments = parser.parse_args()
    start_group()
    tokenizer = load_tokenizer(MODEL)
    pad = int(tokenizer.pad_token_id)
    examples = tokenise(*make_rows(arguments.rows, tokenizer), tokenizer, LONGEST).examples
    lengths = sorted(len(example.tokens) for example in examples)
    print(f"{len(lengths)} rows, median {lengths[len(lengths) // 2]} tokens, longest {lengths[-1]}")

    loops = against_bare_loop(examples, pad, arguments.steps)
    ratio = loops["compass_ray"] / loops["bare loop"]
    print(f"\n{'loop':<14} {'tokens/s':>9}")
    for name, rate in loops.items():
        print(f"{name:<14} {rate:>9.1f}")
    print(f"compass_ray to the bare loop: {ratio:.2f}", flush=True)

    layouts = packed_and_padded(examples, pad)
    gain = layouts["packed"] / layouts["padded"]
    print(f"\n{'batches':<14} {'tokens/s':>9}")
    for name, rate in layouts.items():
        print(f"{name:<14} {rate:>9.1f}")
    print(f"packed to padded: {gain:.2f}")

    result = {
        "model": MODEL,
        "precision": str(precision(settings())),
        "tokens_per_second": loops | layouts,
        "loop_ratio": ratio,
        "packing_ratio": gain,
    }
    record("training_gpu" if ON_GPU else "training", result)


def start_group() -> None:
    """The process group of one worker."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29591", **alone})
    deepspeed.init_distributed("nccl" if ON_GPU else "gloo", auto_mpi_discovery=False)


def settings(**changes: Any) -> Training:
    plain = {
        "model": MODEL,
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


def against_bare_loop(examples: list[Example], pad: int, steps: int) -> dict[str, float]:
    config = settings(batch_size=4, packing=False)
    plan = laid_out(config, examples, steps)
    return in_turn(
        {"bare loop": bare_steps(config, plan, pad), "compass_ray": our_steps(config, plan, pad)}
    )


def packed_and_padded(examples: list[Example], pad: int) -> dict[str, float]:
    """One epoch each; a packed sequence and a padded batch hold about as many tokens."""
    mean = sum(len(example.tokens) for example in examples) / len(examples)
    configs = {
        "padded": settings(batch_size=round(LONGEST / mean), packing=False),
        "packed": settings(batch_size=1, packing=True),
    }
    return {
        name: over_all(our_steps(config, laid_out(config, examples, None), pad))
        for name, config in configs.items()
    }


if __name__ == "__main__":
    main()
