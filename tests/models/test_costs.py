from __future__ import annotations

from typing import Any

import pytest

from compass_ray import costs
from compass_ray.config import Training
from compass_ray.costs import ModelSize
from compass_ray.planning.gpus import gpu_bytes, gpu_flops
from compass_ray.training.data import Example

SIZE = ModelSize(
    parameters=1_000_000,
    adapter_parameters=10_000,
    layers=2,
    hidden=32,
    intermediate=64,
    vocabulary=100,
    embeddings=2 * 100 * 32,
)
LLAMA_8B = ModelSize(8_030_000_000, 42_000_000, 32, 4096, 14336, 128256, 2 * 128256 * 4096)


def training(**settings: object) -> Training:
    defaults = {"batch_size": 4, "max_length": 18, "packing": False, "deepspeed": {"zero_stage": 0}}
    return Training.model_validate({**defaults, **settings})


def documents(length: int, count: int = 5) -> list[Example]:
    return [Example(tuple(range(length)), tuple(range(length)))] * count


def test_without_packing_a_row_is_a_sequence() -> None:
    steps = costs.count_steps([(documents(6), 20), (documents(9), 30)], training(), seed=0)
    assert steps.sequences == 50
    assert steps.steps == 13
    assert steps.tokens_per_epoch == 20 * 6 + 30 * 9
    assert steps.tokens_per_row == pytest.approx(390 / 50)
    assert steps.longest == 9


def test_packing_fills_sequences_to_the_maximum_length() -> None:
    steps = costs.count_steps([(documents(6), 50)], training(packing=True), seed=0)
    assert steps.sequences == 17
    assert steps.steps == 5
    assert steps.longest == 18


def test_epochs_and_a_limit_of_steps_decide_the_steps() -> None:
    groups = [(documents(6), 50)]
    assert costs.count_steps(groups, training(epochs=2), seed=0).steps == 25
    assert costs.count_steps(groups, training(max_steps=3), seed=0).steps == 3


def test_padding_counts_as_work() -> None:
    groups = [(documents(6), 2), (documents(9), 2)]
    steps = costs.count_steps(groups, training(), seed=0)
    assert (steps.steps, steps.tokens, steps.padded_tokens) == (1, 30, 36)


def test_many_rows_are_extrapolated() -> None:
    steps = costs.count_steps([(documents(6), 1_000_000)], training(), seed=0)
    assert steps.steps == 250_000
    assert steps.tokens_per_epoch == 6_000_000
    assert steps.tokens == 6_000_000


def test_the_memory_of_a_worker_adds_up() -> None:
    memory = costs.worker_memory(SIZE, training(), longest=10, on_gpu=False, bf16=False)
    assert memory.base == 4_000_000
    assert memory.adapter == 40_000
    assert memory.gradients == 40_000
    assert memory.optimiser == 80_000
    assert memory.activations == 2 * (4 * 10) * (20 * 32 + 5 * 64) * 4
    assert memory.logits == 100 * (4 * 10) * 16
    assert memory.allocator == memory.activations // 2
    assert memory.total == 4_160_000 + 1.5 * 307_200 + 64_000 + costs.PROCESS_BYTES


def test_zero_stages_share_more_and_more_between_workers() -> None:
    def split(stage: int) -> tuple[int, int, int, int]:
        settings = training(workers_per_language=2, deepspeed={"zero_stage": stage})
        memory = costs.worker_memory(SIZE, settings, longest=10, on_gpu=True, bf16=True)
        return memory.optimiser, memory.gradients, memory.base, memory.adapter

    assert split(0) == (120_000, 40_000, 2_000_000, 20_000)
    assert split(1) == (60_000, 40_000, 2_000_000, 20_000)
    assert split(2) == (60_000, 20_000, 2_000_000, 20_000)
    assert split(3) == (60_000, 20_000, 1_000_000, 10_000)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gradient_checkpointing": True},
        {"adapter": {"type": "qlora"}},
        {"deepspeed": {"zero_stage": 3, "offload_optimizer": True, "offload_parameters": True}},
    ],
)
def test_every_part_of_the_memory_is_explained(changes: dict[str, Any]) -> None:
    settings = training(**changes)
    explained = costs.memory_assumptions(settings, on_gpu=True, bf16=True)
    memory = costs.worker_memory(SIZE, settings, longest=10, on_gpu=True, bf16=True)
    assert sum(getattr(memory, name) for name in explained) == memory.total
    assert all("{" not in text for text in explained.values())


def test_what_saves_memory_takes_less_of_its_part() -> None:
    def memory(**changes: Any) -> costs.Memory:
        settings = training(**changes)
        return costs.worker_memory(SIZE, settings, longest=10, on_gpu=True, bf16=True)

    plain = memory()
    assert memory(gradient_checkpointing=True).activations == 40 * (2 * 32 + 20 * 32 + 5 * 64) * 2
    assert memory(gradient_checkpointing=True).activations < plain.activations
    assert plain.base / 4 < memory(adapter={"type": "qlora"}).base < plain.base / 3
    # bitsandbytes quantises neither the input nor the output embeddings.
    quantised = costs.base_bytes(LLAMA_8B, training(adapter={"type": "qlora"}), bf16=True)
    assert quantised == pytest.approx(5.70e9, rel=0.002)
    offloaded = memory(deepspeed={"zero_stage": 3, "offload_optimizer": True})
    assert offloaded.optimiser == 0


def test_recomputing_costs_half_as_much_again() -> None:
    plain = costs.training_flops(SIZE, training(), 1000)
    assert plain == 4e9
    assert costs.training_flops(SIZE, training(gradient_checkpointing=True), 1000) == 1.5 * plain
    slower = costs.training_flops(SIZE, training(adapter={"type": "qlora"}), 1000)
    assert slower == pytest.approx(1.39 * plain)


def test_the_largest_micro_batch_divides_the_batch_and_fits() -> None:
    settings = training(batch_size=12)
    sizes = {
        count: costs.worker_memory(
            SIZE, settings, longest=10, on_gpu=True, bf16=True, micro_batch=count
        ).total
        for count in (1, 4, 5)
    }

    def largest(available: int) -> int | None:
        return costs.largest_micro_batch(
            SIZE, settings, longest=10, on_gpu=True, bf16=True, available=available
        )

    assert largest(sizes[5]) == 4
    assert largest(sizes[4] - 1) == 3
    assert largest(sizes[1] - 1) is None


def test_the_rate_agrees_with_what_was_measured_on_an_h100() -> None:
    seconds = costs.training_flops(LLAMA_8B, training(), 1_000_000) / gpu_flops("H100")
    assert 1_000_000 / seconds == pytest.approx(12_473, rel=0.05)


def test_dora_is_slower_and_larger_than_lora() -> None:
    dora = training(adapter={"type": "dora"})
    assert costs.training_flops(SIZE, dora, 100) == pytest.approx(1.3 * 4 * 1_000_000 * 100)
    lora_memory = costs.worker_memory(SIZE, training(), longest=10, on_gpu=True, bf16=True)
    dora_memory = costs.worker_memory(SIZE, dora, longest=10, on_gpu=True, bf16=True)
    assert dora_memory.activations > lora_memory.activations


@pytest.mark.parametrize(
    ("name", "gigabytes"),
    [
        ("NVIDIA A100-SXM4-80GB", 80),
        ("A100-40G", 40),
        ("A10G", 24),
        ("NVIDIA GeForce RTX 4090", 24),
        ("NVIDIA H100 80GB HBM3", 80),
        ("Tesla T4", None),
    ],
)
def test_the_memory_of_a_gpu_is_read_from_its_name(name: str, gigabytes: int | None) -> None:
    assert gpu_bytes(name) == (gigabytes and gigabytes * 10**9)


def test_languages_side_by_side_start_longest_first() -> None:
    assert costs.side_by_side([1, 2, 2, 3], places=2) == 4
    assert costs.side_by_side([1, 2, 2, 3], places=1) == 8
    assert costs.side_by_side([], places=2) == 0
