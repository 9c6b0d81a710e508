from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compass_ray.models import load_base, load_tokenizer
from compass_ray.training.data import Example, collate, tokenise
from compass_ray.training.losses import document_mask, response_loss, target_positions


def test_a_token_sees_its_own_document_up_to_itself() -> None:
    mask = document_mask(torch.tensor([[1, 1, 2, 0]]))[0, 0]
    assert mask.int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


@pytest.fixture(scope="module")
def examples(tiny_model: Path) -> list[Example]:
    tokenizer = load_tokenizer(str(tiny_model))
    prompts = ["Was ist 1 plus 2?", "What is the capital of France?", "Combien font 3 plus 4 ?"]
    return tokenise(prompts, ["3", "Paris", "7"], tokenizer, 128).examples


def loss_of(model: torch.nn.Module, examples: list[Example], sequence: tuple[int, ...]) -> float:
    batch = {k: torch.from_numpy(v) for k, v in collate(examples, [sequence], 0).items()}
    positions = target_positions(batch["labels"])
    with torch.no_grad():
        logits = model(
            input_ids=batch["input_ids"],
            attention_mask=document_mask(batch["documents"]),
            position_ids=batch["position_ids"],
            logits_to_keep=positions,
        ).logits
    return response_loss(logits, batch["labels"], positions).item()


def test_packed_documents_have_the_loss_they_have_alone(
    tiny_model: Path, examples: list[Example]
) -> None:
    model = load_base(str(tiny_model), torch.float32).eval()
    alone = sum(loss_of(model, examples, (index,)) for index in range(3))
    assert loss_of(model, examples, (0, 1, 2)) == pytest.approx(alone, rel=1e-5)
    assert loss_of(model, examples, (2, 0, 1)) == pytest.approx(alone, rel=1e-5)


def test_the_loss_is_the_one_the_model_computes_itself(
    tiny_model: Path, examples: list[Example]
) -> None:
    model = load_base(str(tiny_model), torch.float32).eval()
    ids, labels = torch.tensor([examples[1].tokens]), torch.tensor([examples[1].labels])
    with torch.no_grad():
        mean = model(input_ids=ids, labels=labels).loss.item()
    assert loss_of(model, examples, (1,)) == pytest.approx(mean * examples[1].targets, rel=1e-5)
