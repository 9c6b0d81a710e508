from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import binary_cross_entropy_with_logits

from compass_ray.config import Adapter, Training
from compass_ray.models import load_base
from compass_ray.training.adapters import WEIGHTS_FILE, add_adapter
from compass_ray.training.anchoring import (
    FISHER_FILE,
    Start,
    accumulated,
    ewc_penalty,
    squared_gradients,
    trained_parameters,
)
from compass_ray.training.loop import ADAPTER_FOLDER, PROGRESS_FILE, Step, train

PROMPTS = [f"What is {a} plus {a + 1}?" for a in range(12)]
RESPONSES = [str(2 * a + 1) for a in range(12)]
OTHERS = [f"What is the capital of country {a}?" for a in range(12)]
CITIES = [f"City {a}" for a in range(12)]


def test_fisher_of_a_logistic_model_is_the_closed_form() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(50, 4), (torch.rand(50) < 0.5).float()
    weight = torch.randn(4, requires_grad=True)
    losses = (binary_cross_entropy_with_logits(x[i] @ weight, y[i]) for i in range(50))
    found = squared_gradients({"weight": weight}, losses)["weight"] / 50
    residual = torch.sigmoid(x @ weight.detach()) - y
    expected = (residual.square()[:, None] * x.square()).mean(dim=0)
    assert torch.allclose(found, expected, atol=1e-4)


def test_gradient_of_the_ewc_term_is_the_analytic_one(tiny_model: Path) -> None:
    model = add_adapter(load_base(str(tiny_model), torch.float32), Adapter(r=4), "tiny")
    parameters = trained_parameters(model)
    generator = torch.Generator().manual_seed(1)
    stars = {n: torch.randn(w.shape, generator=generator) for n, w in parameters.items()}
    fisher = {n: torch.rand(w.shape, generator=generator) for n, w in parameters.items()}
    ewc_penalty(parameters, stars, fisher).backward()
    for name, weight in parameters.items():
        assert weight.grad is not None
        expected = fisher[name] * (weight.detach() - stars[name])
        assert torch.allclose(weight.grad, expected, atol=1e-6)
    frozen = [w for w in model.parameters() if not w.requires_grad]
    assert all(weight.grad is None for weight in frozen)


def test_accumulated_fisher_is_the_mean_of_all_updates() -> None:
    values = [{"w": torch.tensor([float(v)])} for v in (3, 5, 10)]
    fisher = None
    for updates, value in enumerate(values):
        fisher = accumulated(fisher, value, updates)
    assert fisher is not None and fisher["w"].item() == pytest.approx(6)


class Kept:
    """A reporter that keeps the last checkpoint in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.steps: list[Step] = []

    def resume_from(self) -> Path | None:
        return None

    def on_step(self, step: Step, total: int) -> None:
        self.steps.append(step)

    def save(self, folder: Path | None, metrics: Mapping[str, Any]) -> None:
        assert folder
        for file in (folder / ADAPTER_FOLDER).iterdir():
            self.folder.mkdir(exist_ok=True)
            (self.folder / file.name).write_bytes(file.read_bytes())
        assert json.loads((folder / PROGRESS_FILE).read_text())["summary"]

    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(str(self.folder / WEIGHTS_FILE))


@pytest.fixture
def settings(tiny_model: Path) -> Training:
    return Training(
        model=str(tiny_model),
        batch_size=4,
        micro_batch_size=2,
        max_steps=6,
        max_length=64,
        packing=False,
        learning_rate=0.01,
        checkpoint_steps=100,
        deepspeed={"zero_stage": 0},
    )


@pytest.fixture
def parent(world: None, settings: Training, tmp_path: Path) -> Kept:
    kept = Kept(tmp_path / "parent")
    train(settings, PROMPTS, RESPONSES, 0, kept)
    return kept


def update(settings: Training, parent: Kept, name: str, **weights: Any) -> Kept:
    kept = Kept(parent.folder.with_name(name))
    start = replace(Start(parent.folder, PROMPTS[:4], RESPONSES[:4]), **weights)
    train(settings, OTHERS, CITIES, 0, kept, start)
    return kept


def moved(kept: Kept, parent: Kept, fisher: dict[str, torch.Tensor]) -> float:
    """How far the weights went, as far as they matter to what was known."""
    before, after = parent.weights(), kept.weights()
    matter = {name.replace(".default", ""): value for name, value in fisher.items()}
    assert set(matter) == set(before)
    return sum(float((matter[n] * (w - before[n]).square()).sum()) for n, w in after.items())


def test_with_both_weights_0_an_update_is_naive_training_exactly(
    settings: Training, parent: Kept
) -> None:
    nothing = update(settings, parent, "nothing", prompts=(), responses=())
    zero = update(settings, parent, "zero", ewc_lambda=0.0, replay_beta=0.0)
    assert [step.loss for step in zero.steps] == [step.loss for step in nothing.steps]
    for name, weight in zero.weights().items():
        assert torch.equal(weight, nothing.weights()[name])


@pytest.mark.parametrize("zero_stage", [0, 2])
def test_ewc_holds_weights_back_and_keeps_its_fisher_for_the_next(
    settings: Training, parent: Kept, zero_stage: int
) -> None:
    staged = settings.model_copy(
        update={"deepspeed": settings.deepspeed.model_copy(update={"zero_stage": zero_stage})}
    )
    free = update(staged, parent, "free")
    held = update(staged, parent, "held", ewc_lambda=1e4)
    fisher = load_file(str(held.folder / FISHER_FILE))
    assert moved(held, parent, fisher) < 0.5 * moved(free, parent, fisher)
    assert sum(float(value.sum()) for value in fisher.values()) > 0
    again = update(staged, held, "again", ewc_lambda=2.0, updates=1)
    assert set(load_file(str(again.folder / FISHER_FILE))) == set(fisher)


def test_replay_lowers_the_loss_of_what_was_known(settings: Training, parent: Kept) -> None:
    free = update(settings, parent, "free")
    replayed = update(settings, parent, "replayed", replay_beta=5.0)
    # Equal but for dropout: replay draws from the same generator between micro-batches.
    assert replayed.steps[0].loss == pytest.approx(free.steps[0].loss, rel=0.01)
    assert replayed.steps[0].tokens > free.steps[0].tokens
    known = [
        check.steps[0].loss for check in (known_loss(settings, kept) for kept in (free, replayed))
    ]
    assert known[1] < known[0]


def known_loss(settings: Training, kept: Kept) -> Kept:
    """One step over the rows known before, whose loss is that of the weights it starts from."""
    check = Kept(kept.folder.with_suffix(".check"))
    once = settings.model_copy(update={"max_steps": 1, "batch_size": 12, "micro_batch_size": 12})
    train(once, PROMPTS, RESPONSES, 0, check, Start(kept.folder))
    return check
