from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from transformers import AttentionInterface

from compass_ray.models import load_base, load_tokenizer
from compass_ray.training.data import Example, collate, tokenise
from compass_ray.training.losses import (
    document_mask,
    forward_loss,
    response_loss,
    target_positions,
    unpadded,
)


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


def apart_by_bounds(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    cu_seq_lens_q: torch.Tensor,
    cu_seq_lens_k: torch.Tensor,
    max_length_q: int,
    max_length_k: int,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Attention that reads what flash attention reads, a document at a time."""
    assert attention_mask is None
    assert cu_seq_lens_q.dtype == torch.int32 and torch.equal(cu_seq_lens_q, cu_seq_lens_k)
    bounds = cu_seq_lens_q.tolist()
    assert max_length_q == max_length_k == max(b - a for a, b in pairwise(bounds))
    parts = [
        functional.scaled_dot_product_attention(
            *(states[:, :, a:b] for states in (query, key, value)),
            is_causal=True,
            scale=scaling,
            enable_gqa=True,
        )
        for a, b in pairwise(bounds)
    ]
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


@pytest.mark.parametrize("name", ["qwen2", "llama", "phi3"])
def test_a_kernel_without_masks_has_the_same_loss_and_gradients(
    architectures: dict[str, Path], examples: list[Example], name: str
) -> None:
    AttentionInterface.register("bounds", apart_by_bounds)
    part = collate(examples, [(0, 2), (1,), (2,)], 0)
    assert not part["documents"].all(), "there is padding"
    came_to = []
    for attention in ("sdpa", "bounds"):
        model = load_base(str(architectures[name]), torch.float32, attn_implementation=attention)
        loss = forward_loss(model, part)
        loss.backward()
        gradients = [w.grad.flatten() for w in model.parameters() if w.grad is not None]
        came_to.append((loss.item(), torch.cat(gradients)))
    (masked, masked_grad), (bare, bare_grad) = came_to
    assert bare == pytest.approx(masked, rel=1e-5)
    torch.testing.assert_close(bare_grad, masked_grad, rtol=1e-3, atol=1e-5)


def test_where_positions_start_again_another_document_begins(
    tiny_model: Path, examples: list[Example]
) -> None:
    """What flex attention goes by."""
    model = load_base(str(tiny_model), torch.float32).eval()
    part = collate(examples, [(0, 2), (1,)], 0)
    labels, inputs = unpadded({name: torch.from_numpy(array) for name, array in part.items()})
    assert labels.shape == inputs["input_ids"].shape == (1, sum(len(e.tokens) for e in examples))
    positions = target_positions(labels)
    with torch.no_grad():
        logits = model(**inputs, logits_to_keep=positions, use_cache=False).logits
        expected = forward_loss(model, part).item()
    assert response_loss(logits, labels, positions).item() == pytest.approx(expected, rel=1e-5)
