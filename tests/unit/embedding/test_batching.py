from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compass_ray.embedding.batching import Lengths, TokenBatcher


def marked(positions: Lengths) -> np.ndarray:
    """A vector a text that tells which text it was."""
    return np.stack([positions, positions * 2], axis=1).astype(np.float32)


@given(
    st.lists(st.integers(0, 600), min_size=1, max_size=200),
    st.integers(1, 2000),
    st.integers(1, 50),
)
def test_every_text_comes_back_at_its_place_from_batches_within_the_bounds(
    lengths: list[int], max_tokens: int, max_rows: int
) -> None:
    lengths_N = np.array(lengths)
    batches: list[Lengths] = []

    def encode(batch: Lengths) -> np.ndarray:
        batches.append(batch)
        return marked(batch)

    vectors = TokenBatcher(max_tokens, max_rows).run(lengths_N, encode)
    assert vectors[:, 0].tolist() == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) <= max_rows
        assert len(batch) == 1 or len(batch) * lengths_N[batch].max() <= max_tokens


def test_batches_hold_texts_of_like_length() -> None:
    lengths_N = np.tile([10, 500], 64)
    padded = []
    TokenBatcher(5000, 1000).run(
        lengths_N, lambda batch: padded.append(len(batch) * lengths_N[batch].max()) or marked(batch)
    )
    in_order = 128 * 500
    assert sum(padded) < 0.6 * in_order


def test_a_batch_that_does_not_fit_is_halved_and_the_bound_is_remembered() -> None:
    lengths_N = np.full(64, 10)
    tried: list[int] = []

    def encode(batch: Lengths) -> np.ndarray:
        tried.append(len(batch))
        if len(batch) > 10:
            raise MemoryError
        return marked(batch)

    batcher = TokenBatcher(640, 1000)
    vectors = batcher.run(lengths_N, encode)
    assert vectors[:, 0].tolist() == list(range(64))
    assert tried[:4] == [64, 32, 16, 8]
    tried.clear()
    batcher.run(lengths_N, encode)
    assert max(tried) == 8


def test_a_single_text_that_does_not_fit_is_an_error() -> None:
    def encode(batch: Lengths) -> np.ndarray:
        raise MemoryError

    with pytest.raises(MemoryError):
        TokenBatcher(100, 10).run(np.array([50, 60]), encode)


def test_no_texts_give_no_vectors() -> None:
    assert TokenBatcher(100, 10).run(np.empty(0, np.int64), marked).shape[0] == 0
