"""Batches cut by tokens: texts of like length together, so that little of a batch is padding.

Characters are a poor measure across scripts (a Chinese character is about a token, a Latin one a
quarter), so lengths are tokens. Knows nothing of models. N texts, D dimensions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger(__name__)

Lengths = NDArray[np.int64]


class TokenBatcher:
    """Runs a function over texts in batches of bounded size; learns what fits in memory.

    Args:
        max_tokens: Most tokens in a batch, padding included: rows times the longest of them.
        max_rows: Most rows in a batch, whatever their length.
        out_of_memory: What the function raises when a batch did not fit.
    """

    def __init__(
        self,
        max_tokens: int,
        max_rows: int,
        out_of_memory: tuple[type[BaseException], ...] = (MemoryError,),
    ) -> None:
        self.max_tokens = max_tokens
        self._max_rows = max_rows
        self._out_of_memory = out_of_memory

    def run(
        self, lengths_N: Lengths, encode: Callable[[Lengths], NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        """Vectors [N, D] in the order of the texts.

        ``encode`` takes the positions of a batch, longest first, and returns their vectors. When
        it runs out of memory the batch is halved, and later batches stay within what fitted.

        Raises:
            BaseException: what ``encode`` raised for a single text that does not fit.
        """
        # Longest first: what is too much for the memory shows in the first batch, not in the last.
        order_N = np.argsort(-lengths_N, kind="stable")
        encoded: list[NDArray[np.float32]] = []
        start = 0
        while start < len(order_N):
            longest = max(1, int(lengths_N[order_N[start]]))
            rows = min(self._max_rows, max(1, self.max_tokens // longest))
            batch = order_N[start : start + rows]
            try:
                encoded.append(encode(batch))
            except self._out_of_memory:
                if len(batch) == 1:
                    raise
                self.max_tokens = len(batch) * longest // 2
                log.warning("out of memory; batches are %d tokens from here", self.max_tokens)
                continue
            start += len(batch)
        if not encoded:
            return np.empty((0, 0), np.float32)
        vectors_ND = np.concatenate(encoded)
        restored_ND = np.empty_like(vectors_ND)
        restored_ND[order_N] = vectors_ND
        return restored_ND
