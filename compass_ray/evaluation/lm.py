"""lm-eval's model with batches that are bounded by tokens, not by the number of texts alone.

lm-eval takes as many long texts at once as short ones. Eight prompts of 32,000 tokens are more than
a card of 80 GB holds beside a model of 8B: the mask of a padded batch alone is texts x length².
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

log = logging.getLogger(__name__)

# Most tokens of one batch, with padding and with the tokens still to be generated.
BATCH_TOKENS = 32_768
OUT_OF_MEMORY = (MemoryError, torch.OutOfMemoryError)


class BoundedLM(HFLM):
    """Scores at most ``texts`` at once, and fewer where they are long or the memory is short."""

    def __init__(self, texts: int, **options: Any) -> None:
        super().__init__(batch_size=texts, **options)
        self._texts = texts
        self._most_tokens = BATCH_TOKENS

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        def tokens(request: Any) -> int:
            prompt, settings = request.args
            written = int(settings.get("max_gen_toks") or self.max_gen_toks)
            return len(self.tok_encode(prompt)) + written

        return self._by_length(requests, tokens, super().generate_until)

    def _loglikelihood_tokens(self, requests: list[Any], **options: Any) -> list[Any]:
        scored = super()._loglikelihood_tokens
        return self._by_length(
            requests,
            lambda request: len(request[1]) + len(request[2]),
            lambda group: scored(group, **options),
        )

    def _by_length(
        self,
        requests: Sequence[Any],
        tokens: Callable[[Any], int],
        run: Callable[[list[Any]], list[Any]],
    ) -> list[Any]:
        """Results in the order of the requests; those of a like length are run together."""
        lengths = [min(tokens(request), self.max_length) for request in requests]
        results: list[Any] = [None] * len(requests)
        # Longest first: what is too much for the memory shows at once.
        waiting = sorted(range(len(requests)), key=lambda place: -lengths[place])
        while waiting:
            longest = lengths[waiting[0]]
            texts = self._at_once(longest)
            group = [place for place in waiting if self._at_once(lengths[place]) == texts]
            self.batch_size_per_gpu = texts
            try:
                found = run([requests[place] for place in group])
            except OUT_OF_MEMORY:
                if texts == 1:
                    raise
                self._most_tokens = texts * longest // 2
                log.warning("out of memory; batches are %d tokens from here", self._most_tokens)
                continue
            for place, result in zip(group, found, strict=True):
                results[place] = result
            waiting = waiting[len(group) :]
        return results

    def _at_once(self, length: int) -> int:
        return max(1, min(self._texts, self._most_tokens // max(1, length)))
