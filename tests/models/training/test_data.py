from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compass_ray.models import load_tokenizer
from compass_ray.training.data import (
    IGNORED,
    Example,
    Plan,
    collate,
    sequences_of_epoch,
    tokenise,
)


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return load_tokenizer(str(tiny_model))


def example(length: int, prompt: int = 1, start: int = 10) -> Example:
    tokens = tuple(range(start, start + length))
    return Example(tokens, (*[IGNORED] * prompt, *tokens[prompt:]))


def test_only_the_response_and_its_end_are_targets(tokenizer: Any) -> None:
    data = tokenise(["Was ist 1 plus 2?"], ["3"], tokenizer, 128)
    (only,) = data.examples
    targets = [token for token in only.labels if token != IGNORED]
    assert tokenizer.decode(targets) == "3<|end|>"
    text = tokenizer.decode(only.tokens)
    assert text == "<|user|>Was ist 1 plus 2?<|end|><|assistant|>3<|end|>"


def test_without_a_chat_template_plain_text_and_an_end_token_are_used(tokenizer: Any) -> None:
    plain = load_tokenizer(tokenizer.name_or_path)
    plain.chat_template = None
    (only,) = tokenise(["Was ist 1 plus 2?"], ["3"], plain, 128).examples
    assert plain.decode(only.tokens) == "Was ist 1 plus 2?\n3<|end|>"


def test_truncation_is_counted_and_a_row_without_response_left_out(tokenizer: Any) -> None:
    data = tokenise(["plus " * 100, "Was?"], ["3", "4 " * 100], tokenizer, 40)
    assert data.truncated == 2
    assert data.without_response == 1
    assert [len(e.tokens) for e in data.examples] == [40]


@pytest.mark.parametrize("packing", [False, True])
def test_every_document_is_seen_once_an_epoch(packing: bool) -> None:
    examples = [example(length) for length in (3, 9, 4, 4, 7, 2, 10)]
    for epoch in range(3):
        sequences = sequences_of_epoch(examples, 10, packing, seed=5, epoch=epoch)
        assert sorted(i for s in sequences for i in s) == list(range(7))
        assert all(sum(len(examples[i].tokens) for i in s) <= 10 for s in sequences)
    first = sequences_of_epoch(examples, 10, packing, seed=5, epoch=0)
    assert first != sequences_of_epoch(examples, 10, packing, seed=5, epoch=1)
    assert first == sequences_of_epoch(examples, 10, packing, seed=5, epoch=0)


def test_packing_needs_fewer_sequences() -> None:
    examples = [example(3) for _ in range(30)]
    assert len(sequences_of_epoch(examples, 9, True, 0, 0)) == 10
    assert len(sequences_of_epoch(examples, 9, False, 0, 0)) == 30


def test_a_resumed_plan_continues_with_the_batches_that_were_left() -> None:
    plan = Plan.build(
        [example(3) for _ in range(10)],
        batch_size=4,
        max_length=9,
        packing=False,
        seed=1,
        epochs=3,
        max_steps=None,
    )
    assert plan.total_steps == 8  # 30 sequences in batches of 4, the last one filled up
    whole = list(plan.batches())
    assert list(plan.batches(start=5)) == whole[5:]
    seen = Counter(i for batch in whole[:7] for sequence in batch for i in sequence)
    assert set(seen.values()) <= {2, 3}


def test_a_packed_batch_keeps_documents_apart() -> None:
    examples = [example(3, start=10), example(2, start=20), example(4, start=30)]
    batch = collate(examples, [(0, 1), (2,)], pad_token_id=0)
    assert batch["input_ids"].tolist() == [[10, 11, 12, 20, 21], [30, 31, 32, 33, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 1, 2, 3, 0]]
    assert batch["documents"].tolist() == [[1, 1, 1, 2, 2], [1, 1, 1, 1, 0]]
    assert batch["labels"].tolist() == [
        [IGNORED, 11, 12, IGNORED, 21],
        [IGNORED, 31, 32, 33, IGNORED],
    ]
    assert (batch["labels"][:, 1:] != IGNORED).sum() == sum(e.targets for e in examples)
    assert all(array.dtype == np.int64 for array in batch.values())
