from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM

from compass_ray.models import load_base, load_tokenizer
from compass_ray.training.data import Example, collate, tokenise
from compass_ray.training.losses import forward_loss, response_loss, target_positions
from compass_ray.training.packing import keeps_apart, unpadded


@pytest.fixture(scope="module")
def examples(tiny_model: Path) -> list[Example]:
    tokenizer = load_tokenizer(str(tiny_model))
    prompts = ["Was ist 1 plus 2?", "What is the capital of France?", "Combien font 3 plus 4 ?"]
    return tokenise(prompts, ["3", "Paris", "7"], tokenizer, 128).examples


def loss_of(model: torch.nn.Module, examples: list[Example], *rows: tuple[int, ...]) -> float:
    with torch.no_grad():
        return forward_loss(model, collate(examples, rows, 0)).item()


def own_loss(model: Any, example: Example) -> float:
    """Of one document, as the model computes it by itself."""
    ids, labels = torch.tensor([example.tokens]), torch.tensor([example.labels])
    with torch.no_grad():
        mean: float = model(input_ids=ids, labels=labels, use_cache=False).loss.item()
    return mean * example.targets


SHAPE = {
    "vocab_size": 500,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def made(kind: str, **shape: Any) -> Any:
    """A random model whose weights are large enough for what it reads to matter."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SHAPE, **shape})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.2)
    return model


# Attention with PyTorch's kernel and without; layers with windows shorter than the rows; a model
# that looks at no positions to make its masks.
ATTENTION = {
    "llama": {},
    "gemma2": {"sliding_window": 7},
    "gemma3_text": {"sliding_window": 7},
    "gpt_oss": {"sliding_window": 7, "num_local_experts": 2, "num_experts_per_tok": 1},
}
GATED = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}


@pytest.mark.parametrize("kind", ATTENTION)
def test_packed_and_padded_documents_have_the_loss_the_model_gives_each(
    examples: list[Example], kind: str
) -> None:
    model = made(kind, **ATTENTION[kind])
    assert max(len(example.tokens) for example in examples) > 7
    assert keeps_apart(model, examples[0])
    alone = sum(own_loss(model, example) for example in examples)
    for rows in ([(0, 1, 2)], [(2, 0), (1,)], [(0,), (1,), (2,)]):
        assert loss_of(model, examples, *rows) == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize(("kind", "shape"), [("qwen3_5_text", GATED), ("bloom", {"n_head": 4})])
def test_models_that_cannot_keep_documents_apart_are_known(
    examples: list[Example], kind: str, shape: dict[str, Any]
) -> None:
    """Recurrent layers, and one that cannot be told where documents start."""
    model = made(kind, **shape)
    assert not keeps_apart(model, examples[0])
    alone = sum(own_loss(model, example) for example in examples)
    assert loss_of(model, examples, (0,), (1,), (2,)) == pytest.approx(alone, rel=1e-5)


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
