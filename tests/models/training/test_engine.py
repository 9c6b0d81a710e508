"""What every worker group has to come to, whatever the model, adapter, ZeRO stage and workers.

A start of worker processes costs far more than a run of a tiny model, so each start does many.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from compass_ray.models import load_base
from compass_ray.training.adapters import WEIGHTS_FILE
from compass_ray.training.loop import ADAPTER_FOLDER, PROGRESS_FILE, STATE_FILE

STEPS = 20


def settings(model: Path, **changes: Any) -> dict[str, Any]:
    plain = {
        "model": str(model),
        "adapter": {"r": 4, "alpha": 8, "dropout": 0.0},
        "deepspeed": {"zero_stage": 0},
        "batch_size": 8,
        "max_steps": 4,
        "max_length": 48,
        "learning_rate": 0.01,
        "checkpoint_steps": 100,
        "precision": "fp32",
    }
    merged = {k: {**plain[k], **v} if isinstance(v, dict) else v for k, v in changes.items()}
    return plain | merged


def progress(checkpoint: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((checkpoint / PROGRESS_FILE).read_text())
    return told


def losses(checkpoint: Path) -> list[float]:
    return [step["loss"] for step in progress(checkpoint)["history"]]


def adapter(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(str(checkpoint / ADAPTER_FOLDER / WEIGHTS_FILE))


def assert_same_adapter(one: Path, other: Path, tolerance: float) -> None:
    left, right = adapter(one), adapter(other)
    assert set(left) == set(right)
    for name, weight in left.items():
        torch.testing.assert_close(weight, right[name], rtol=0, atol=tolerance, msg=name)


def test_every_architecture_adapter_and_stage_saves_what_it_trained(
    architectures: dict[str, Path], train_with: Any, tmp_path: Path
) -> None:
    combinations = {
        (name, stage, kind): tmp_path / f"{name}-{stage}-{kind}"
        for name in architectures
        for stage in (0, 2, 3)
        for kind in ("lora", "dora")
    } | {("qwen2", stage, "rslora"): tmp_path / f"rs-{stage}" for stage in (1, 3)}
    runs = [
        {
            "training": settings(
                architectures[name], adapter={"type": kind}, deepspeed={"zero_stage": stage}
            ),
            "out": str(out),
        }
        for (name, stage, kind), out in combinations.items()
    ]
    train_with(2, runs)
    ids = torch.arange(20)[None]
    for (name, stage, kind), out in combinations.items():
        told = (name, stage, kind)
        last = out / "step-4"
        base = load_base(str(architectures[name]), torch.float32)
        untrained = base(input_ids=ids).logits
        model = PeftModel.from_pretrained(base, str(last / ADAPTER_FOLDER))
        assert model.peft_config["default"].use_dora == (kind == "dora"), told
        assert model.peft_config["default"].use_rslora == (kind == "rslora"), told
        with torch.no_grad():
            logits = model(input_ids=ids).logits
        trained = torch.load(out / "logits.pt")
        assert not torch.allclose(logits, untrained, rtol=0, atol=1e-3), told
        torch.testing.assert_close(logits, trained, rtol=0, atol=1e-5, msg=str(told))
        reference = tmp_path / f"{name}-0-{kind}" / "step-4"
        if reference.is_dir():
            assert losses(last) == pytest.approx(losses(reference), rel=1e-4), told
        frozen = [
            key
            for key in load_file(str(last / STATE_FILE))
            if not ("lora_" in key or key == "step")
        ]
        assert frozen == [], told


def test_workers_and_stages_share_a_batch_without_changing_the_loss(
    architectures: dict[str, Path], train_with: Any, tmp_path: Path
) -> None:
    """Nor do recomputed activations, offloading, and another cut of the batch."""
    model = architectures["llama"]
    plain = settings(model, max_steps=STEPS)
    train_with(1, [{"training": plain, "out": str(tmp_path / "one")}])
    variants: dict[str, dict[str, Any]] = {
        "two": {},
        "micro": {"micro_batch_size": 1},
        "recomputed": {"gradient_checkpointing": True},
        "zero3-recomputed": {"gradient_checkpointing": True, "deepspeed": {"zero_stage": 3}},
        "zero1": {"deepspeed": {"zero_stage": 1}},
        "offloaded": {"deepspeed": {"zero_stage": 2, "offload_optimizer": True}},
        "zero3-offloaded": {
            "deepspeed": {"zero_stage": 3, "offload_optimizer": True, "offload_parameters": True}
        },
    }
    train_with(
        2,
        [
            {
                "training": settings(model, max_steps=STEPS, workers_per_language=2, **changes),
                "out": str(tmp_path / name),
            }
            for name, changes in variants.items()
        ],
    )
    alone = losses(tmp_path / "one" / f"step-{STEPS}")
    assert len(alone) == STEPS and alone[-1] < alone[0] - 0.2
    for name in variants:
        together = losses(tmp_path / name / f"step-{STEPS}")
        assert together == pytest.approx(alone, rel=0, abs=1e-4), name


def test_resuming_ends_where_not_stopping_does(
    architectures: dict[str, Path], train_with: Any, tmp_path: Path
) -> None:
    """With as many workers or others, under the same ZeRO stage or another."""

    def run(name: str, resume: str | None = None, **changes: Any) -> dict[str, Any]:
        shape = {
            "batch_size": 6,
            "max_steps": 12,
            "checkpoint_steps": 5,
            "adapter": {"type": "dora", "r": 3},
        }
        return {
            "training": settings(architectures["phi3"], **(shape | changes)),
            "out": str(tmp_path / name),
            "resume": resume and str(tmp_path / resume),
        }

    stages = {stage: {"deepspeed": {"zero_stage": stage}} for stage in (0, 1, 2, 3)}
    whole = [run(f"whole-{stage}", **changes) for stage, changes in stages.items()]
    again = [
        run(f"again-{stage}", f"whole-{stage}/step-5", **changes)
        for stage, changes in stages.items()
    ]
    moved = [run("to-3", "whole-1/step-5", **stages[3]), run("to-0", "whole-3/step-5", **stages[0])]
    half = {"precision": "bf16"}
    rounded = [run(f"half-{stage}", **half, **stages[stage]) for stage in (0, 2)] + [
        run(f"half-again-{stage}", f"half-{stage}/step-5", **half, **stages[stage])
        for stage in (0, 2)
    ]
    train_with(2, [*whole, *again, *moved, *rounded])
    train_with(1, [run("fewer", "whole-2/step-5", **stages[2])])
    train_with(3, [run("more", "whole-3/step-5", **stages[3], micro_batch_size=2)])
    # Each ends where the run it is of ends; stages by themselves differ by their rounding.
    origins = {f"again-{stage}": f"whole-{stage}" for stage in stages}
    origins |= {"to-3": "whole-1", "to-0": "whole-3", "fewer": "whole-2", "more": "whole-3"}
    origins |= {f"half-again-{stage}": f"half-{stage}" for stage in (0, 2)}
    for name, origin in origins.items():
        assert progress(tmp_path / name / "step-12")["summary"]["resumed_after"] == [5]
        assert_same_adapter(tmp_path / name / "step-12", tmp_path / origin / "step-12", 1e-5)
    for stage in stages:
        state = tmp_path / f"whole-{stage}" / "step-5" / STATE_FILE
        assert state.stat().st_size < 200_000, "no frozen weights in a checkpoint"
