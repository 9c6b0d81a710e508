from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from compass_ray.config import Adapter
from compass_ray.continual.performance import LossMeter, compare_losses
from compass_ray.continual.runfolder import RunFolder
from compass_ray.continual.watch import Watch
from compass_ray.models import load_base, load_tokenizer
from compass_ray.training.adapters import add_adapter, gather_adapter, save_adapter

from .conftest import prompts


def test_a_window_of_the_same_losses_is_worse_at_a_rate_of_alpha_and_a_higher_one_always() -> None:
    rng = np.random.default_rng(0)
    worse = sum(
        compare_losses(rng.gamma(2, size=80), rng.gamma(2, size=60), 0.1, seed).worse
        for seed in range(60)
    )
    assert worse <= 15
    assert compare_losses(rng.gamma(2, size=80), rng.gamma(2, size=60) + 1.5, 0.01).worse


@pytest.fixture
def run(make_run: Callable[..., Path], tiny_model: Path) -> RunFolder:
    folder = make_run(training={"model": str(tiny_model), "max_length": 128})
    model = add_adapter(load_base(str(tiny_model), torch.float32), Adapter(r=4), "tiny")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.05)
    save_adapter(model, gather_adapter(model), folder / "adapters/de/v0001")
    return RunFolder.open(str(folder))


def test_the_loss_is_that_of_the_current_adapter(run: RunFolder, tiny_model: Path) -> None:
    from peft import PeftModel

    (found,) = LossMeter(run).losses(["Was ist 1 plus 2?"], ["3"], "de")
    base, tokenizer = load_base(str(tiny_model), torch.float32), load_tokenizer(str(tiny_model))
    model = PeftModel.from_pretrained(base, run.storage.location("runs/made/adapters/de/v0001"))
    turns = [{"role": "user", "content": "Was ist 1 plus 2?"}]
    context = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    before = tokenizer(context)["input_ids"]
    after = tokenizer("3<|end|>", add_special_tokens=False)["input_ids"]
    logits = model(input_ids=torch.tensor([before + after])).logits[0].log_softmax(-1)
    positions = range(len(before) - 1, len(before) + len(after) - 1)
    expected = -sum(float(logits[p, t]) for p, t in zip(positions, after, strict=True)) / len(after)
    assert found == pytest.approx(expected, rel=1e-4)


def write_answers(path: Path, asked: list[str]) -> Path:
    rows = [{"prompt": p, "response": str(i), "language": "de"} for i, p in enumerate(asked)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_first_window_with_answers_is_the_reference_of_the_next(
    run: RunFolder, tmp_path: Path
) -> None:
    asked = prompts("sum", 20, 9) + prompts("capital", 20, 9)
    log = write_answers(tmp_path / "usage.jsonl", asked)
    first, second = Watch(run, losses=True).look(str(log), close=False).windows
    assert "loss" not in first and second["loss"]["answers"] == 20
    state = run.storage.read_json(run.path("monitor/state.json"))
    assert np.mean(state["losses"]["de"]["values"]) == pytest.approx(second["loss"]["reference"])


def test_a_window_whose_answers_are_all_cut_away_leaves_the_reference_as_it_is(
    make_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([np.ones(20), np.empty(0), np.full(20, 3.0)])
    monkeypatch.setattr(LossMeter, "losses", lambda *_: next(losses))
    log = write_answers(tmp_path / "usage.jsonl", prompts("sum", 60, 9))
    watch = Watch(RunFolder.open(str(make_run())), losses=True)
    first, cut, last = watch.look(str(log), close=False).windows
    assert not first["worse"] and "loss" not in cut
    assert last["worse"] and last["loss"]["reference"] == 1
