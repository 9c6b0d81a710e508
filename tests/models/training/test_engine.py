"""What every worker group has to come to, whatever the model, adapter, ZeRO stage and workers.

A start of worker processes costs far more than a run of a tiny model, so one start for each number
of workers does all runs of this module.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from compass_ray.models import load_base
from compass_ray.training.adapters import WEIGHTS_FILE
from compass_ray.training.loop import ADAPTER_FOLDER, PROGRESS_FILE, STATE_FILE
from compass_ray.training.state import STEP

STEPS = 20


@dataclass(frozen=True)
class Run:
    """One training; ``changes`` are to ``settings``, ``resume`` names a checkpoint of another."""

    model: str
    changes: dict[str, Any] = field(default_factory=dict)
    workers: int = 2
    resume: str | None = None


def zero(stage: int, **settings: Any) -> dict[str, Any]:
    return {"deepspeed": {"zero_stage": stage, **settings}}


COMBINATIONS = [
    (model, stage, kind)
    for model in ("qwen2", "llama", "phi3")
    for stage in (0, 2, 3)
    for kind in ("lora", "dora")
] + [("qwen2", stage, "rslora") for stage in (1, 3)]
BUILT = {
    f"{model}-{stage}-{kind}": Run(model, {"adapter": {"type": kind}, **zero(stage)})
    for model, stage, kind in COMBINATIONS
}

ALONE = Run("llama", {"max_steps": STEPS}, workers=1)
TOGETHER = {
    name: Run("llama", {"max_steps": STEPS, **changes})
    for name, changes in {
        "two": {},
        "micro": {"micro_batch_size": 1},
        "recomputed": {"gradient_checkpointing": True},
        "zero3-recomputed": {"gradient_checkpointing": True, **zero(3)},
        "zero1": zero(1),
        "offloaded": zero(2, offload_optimizer=True),
        "zero3-offloaded": zero(3, offload_optimizer=True, offload_parameters=True),
    }.items()
}

# An uneven batch and rank, and more steps than to the one checkpoint that is gone on from.
LONG = {
    "batch_size": 6,
    "max_steps": 12,
    "checkpoint_steps": 5,
    "adapter": {"type": "dora", "r": 3},
}
HALF = {"precision": "bf16"}
WHOLE = {f"whole-{stage}": Run("phi3", LONG | zero(stage)) for stage in (0, 1, 2, 3)} | {
    f"half-{stage}": Run("phi3", LONG | HALF | zero(stage)) for stage in (0, 2, 3)
}


def resumed(origin: str, stage: int, workers: int = 2, **changes: Any) -> Run:
    return Run("phi3", LONG | zero(stage) | changes, workers, resume=origin)


RESUMED = (
    {f"again-{stage}": resumed(f"whole-{stage}", stage) for stage in (0, 1, 2, 3)}
    | {f"half-again-{stage}": resumed(f"half-{stage}", stage, **HALF) for stage in (0, 2, 3)}
    | {"to-3": resumed("whole-1", 3), "to-0": resumed("whole-3", 0)}
    | {
        "fewer": resumed("whole-2", 2, workers=1),
        "more": resumed("whole-3", 3, workers=3, micro_batch_size=2),
    }
)


@pytest.fixture(scope="module")
def trained(
    architectures: dict[str, Path], train_with: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of all runs, by name."""
    root = tmp_path_factory.mktemp("trained")
    runs = {**BUILT, "alone": ALONE, **TOGETHER, **WHOLE, **RESUMED}
    for workers in (2, 1, 3):
        asked = [
            {
                "training": settings(
                    architectures[run.model], workers_per_language=workers, **run.changes
                ),
                "out": str(root / name),
                "resume": run.resume and str(root / run.resume / "step-5"),
            }
            for name, run in runs.items()
            if run.workers == workers
        ]
        train_with(workers, asked)
    return root


def settings(model: Path, **changes: Any) -> dict[str, Any]:
    plain: dict[str, Any] = {
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
    architectures: dict[str, Path], trained: Path
) -> None:
    ids = torch.arange(20)[None]
    for name, stage, kind in COMBINATIONS:
        told = (name, stage, kind)
        out = trained / f"{name}-{stage}-{kind}"
        last = out / "step-4"
        base = load_base(str(architectures[name]), torch.float32)
        untrained = base(input_ids=ids).logits
        model = PeftModel.from_pretrained(base, str(last / ADAPTER_FOLDER))
        assert model.peft_config["default"].use_dora == (kind == "dora"), told
        assert model.peft_config["default"].use_rslora == (kind == "rslora"), told
        with torch.no_grad():
            logits = model(input_ids=ids).logits
        kept = torch.load(out / "logits.pt")
        assert not torch.allclose(logits, untrained, rtol=0, atol=1e-3), told
        torch.testing.assert_close(logits, kept, rtol=0, atol=1e-5, msg=str(told))
        reference = trained / f"{name}-0-{kind}" / "step-4"
        if kind != "rslora":
            assert losses(last) == pytest.approx(losses(reference), rel=1e-4), told
        frozen = [
            key
            for key in load_file(str(last / STATE_FILE))
            if not ("lora_" in key or key == "step")
        ]
        assert frozen == [], told


def test_workers_and_stages_share_a_batch_without_changing_the_loss(trained: Path) -> None:
    """Nor do recomputed activations, offloading, and another cut of the batch."""
    alone = losses(trained / "alone" / f"step-{STEPS}")
    assert len(alone) == STEPS and alone[-1] < alone[0] - 0.2
    for name in TOGETHER:
        together = losses(trained / name / f"step-{STEPS}")
        assert together == pytest.approx(alone, rel=0, abs=1e-4), name


def test_resuming_ends_where_not_stopping_does(trained: Path) -> None:
    """With as many workers or others, under the same ZeRO stage or another.

    Each ends where the run it is of ends; stages by themselves differ by their rounding.
    """
    for name, run in RESUMED.items():
        last = trained / name / "step-12"
        assert progress(last)["summary"]["resumed_after"] == [5]
        assert_same_adapter(last, trained / str(run.resume) / "step-12", 1e-5)
    for name in WHOLE:
        state = load_file(str(trained / name / "step-5" / STATE_FILE))
        assert state[STEP] == 5, name
    for stage in (0, 1, 2, 3):
        state = trained / f"whole-{stage}" / "step-5" / STATE_FILE
        assert state.stat().st_size < 200_000, "no frozen weights in a checkpoint"
