from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from compass_ray.config import Training
from compass_ray.models import load_base, load_tokenizer
from compass_ray.training.adapters import WEIGHTS_FILE
from compass_ray.training.data import Example, collate, tokenise
from compass_ray.training.loop import ADAPTER_FOLDER, PROGRESS_FILE, Step, train
from compass_ray.training.losses import forward_loss
from compass_ray.training.validation import exhausted, hold_out, is_best

Rows = tuple[list[str], list[str]]


def examples(count: int) -> list[Example]:
    return [Example((index, index), (-100, index)) for index in range(count)]


@pytest.mark.parametrize(("count", "fraction", "held"), [(100, 0.1, 10), (3, 0.01, 1), (2, 0.9, 1)])
def test_documents_are_held_out_once_and_the_others_kept(
    count: int, fraction: float, held: int
) -> None:
    kept, out = hold_out(examples(count), fraction, seed=3)
    assert len(out) == held
    assert sorted(example.tokens[0] for example in [*kept, *out]) == list(range(count))
    assert hold_out(examples(count), fraction, seed=3) == (kept, out)


def test_another_seed_holds_out_others() -> None:
    assert hold_out(examples(100), 0.1, seed=3)[1] != hold_out(examples(100), 0.1, seed=4)[1]


@pytest.mark.parametrize(("count", "fraction"), [(100, 0.0), (1, 0.5)])
def test_nothing_is_held_out_of_nothing(count: int, fraction: float) -> None:
    assert hold_out(examples(count), fraction, seed=0) == (examples(count), [])


def test_patience_counts_looks_that_did_not_improve() -> None:
    losses = [3.0, 2.0, 2.0, 2.5]
    assert [is_best(losses[:n]) for n in (1, 2, 3, 4)] == [True, True, False, False]
    assert [exhausted(losses[:n], 2) for n in (0, 1, 2, 3, 4)] == [False, False, False, False, True]
    assert not exhausted(losses, 3)
    assert not exhausted(losses, None)


class Folder:
    """A reporter that keeps every checkpoint, and may resume from one."""

    def __init__(self, folder: Path, resume: Path | None = None) -> None:
        self.folder, self._resume = folder, resume
        self.steps: list[Step] = []

    def resume_from(self) -> Path | None:
        return self._resume

    def on_step(self, step: Step, total: int) -> None:
        self.steps.append(step)

    def save(self, folder: Path | None, metrics: Mapping[str, Any]) -> None:
        assert folder
        shutil.copytree(folder, self.folder / str(metrics["step"]))

    @property
    def last(self) -> Path:
        return max(self.folder.iterdir(), key=lambda path: int(path.name))

    @property
    def summary(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads((self.last / PROGRESS_FILE).read_text())["summary"]
        return told


@pytest.fixture
def settings(architectures: dict[str, Path]) -> Training:
    return Training(
        model=str(architectures["llama"]),
        batch_size=8,
        max_steps=40,
        max_length=48,
        learning_rate=0.001,
        validation_fraction=0.25,
        validation_steps=2,
        early_stopping=3,
        checkpoint_steps=6,
        deepspeed={"zero_stage": 0},
    )


def contradicted(rows: Rows) -> Rows:
    """All that is trained on says yes, all that is held out says no: what is learnt soon harms."""
    held = {example.tokens[0] for example in hold_out(examples(len(rows[0])), 0.25, 0)[1]}
    return rows[0], ["no" if index in held else "yes" for index in range(len(rows[0]))]


def test_training_stops_early_and_keeps_the_best_adapter(
    world: None, settings: Training, rows: Rows, tmp_path: Path
) -> None:
    rows = contradicted(rows)
    kept = Folder(tmp_path / "whole")
    train(settings, *rows, 0, kept)
    looks = [step for step in kept.steps if step.validation_loss is not None]
    assert [step.step for step in looks] == list(range(2, len(kept.steps) + 1, 2))
    best = min(looks, key=lambda step: step.validation_loss or 0)
    told = kept.summary
    assert told["stopped_early"] and told["steps"] == best.step + 6 < 40
    assert (told["best_step"], told["validation_loss"]) == (best.step, best.validation_loss)
    assert told["rows"] + told["validation_rows"] == len(rows[0])

    base = load_base(settings.model, torch.float32)
    model = PeftModel.from_pretrained(base, str(kept.last / ADAPTER_FOLDER)).eval()
    documents = tokenise(*rows, load_tokenizer(settings.model), 48).examples
    held_out = hold_out(documents, 0.25, 0)[1]
    with torch.no_grad():
        alone = [forward_loss(model, collate([document], [(0,)], 0)) for document in held_out]
    mean = sum(map(float, alone)) / sum(document.targets for document in held_out)
    assert mean == pytest.approx(told["validation_loss"], abs=1e-5)

    again = Folder(tmp_path / "again", resume=kept.folder / "6")
    train(settings, *rows, 0, again)
    assert again.summary == told | {"resumed_after": [6], "seconds": again.summary["seconds"]}
    for name, weight in load_file(str(again.last / ADAPTER_FOLDER / WEIGHTS_FILE)).items():
        expected = load_file(str(kept.last / ADAPTER_FOLDER / WEIGHTS_FILE))[name]
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-5)

    finished = Folder(tmp_path / "finished", resume=kept.last)
    train(settings, *rows, 0, finished)
    assert finished.steps == [], "a run that was done takes no further step"
    assert finished.summary["best_step"] == best.step


def test_qlora_learns_on_weights_of_four_bits(
    world: None, settings: Training, rows: Rows, tmp_path: Path
) -> None:
    kept = Folder(tmp_path)
    changes = {"adapter": {"type": "qlora"}, "early_stopping": None, "learning_rate": 0.01}
    engine = train(
        Training(**(settings.model_dump() | changes | {"max_steps": 20})), *rows, 0, kept
    )
    assert kept.steps[-1].loss < kept.steps[0].loss - 0.2
    stored = {weight.dtype for weight in engine.module.parameters() if not weight.requires_grad}
    assert torch.uint8 in stored
    assert all(
        "lora_" in name for name in load_file(str(kept.last / ADAPTER_FOLDER / WEIGHTS_FILE))
    )
