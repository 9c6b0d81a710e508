from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from compass_ray.config import Embedding
from compass_ray.embedding import encoders
from compass_ray.embedding.encoders import BUNDLED, encoder_device, load_encoder


def test_only_the_bundled_encoder_leaves_gpus_alone() -> None:
    hub = "intfloat/multilingual-e5-large"
    assert (encoder_device(hub, True), encoder_device(hub, False)) == ("cuda", "cpu")
    assert (encoder_device(BUNDLED, True), encoder_device(BUNDLED, False)) == ("cpu", "cpu")


TEXTS = [
    "short",
    "a rather longer question about the currency of a country far away, " * 8,
    "wie viel ist zwei plus drei?",
    "",
    "¿cuál es la capital?" * 3,
] * 7


@pytest.fixture(scope="module")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer XLM-RoBERTa with mean pooling, as sentence-transformers saves it."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaModel

    folder = tmp_path_factory.mktemp("tiny-encoder")
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(TEXTS, vocab_size=300, special_tokens=["<s>", "<pad>", "</s>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, bos_token="<s>", pad_token="<pad>", eos_token="</s>"
    )
    tokenizer.model_max_length = 128
    torch.manual_seed(0)
    model = XLMRobertaModel(
        XLMRobertaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=140,
            pad_token_id=1,
        )
    )
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    transformer = Transformer(str(folder / "base"), max_seq_length=128)
    pooling = Pooling(transformer.get_embedding_dimension())
    SentenceTransformer(modules=[transformer, pooling], device="cpu").save(str(folder / "whole"))
    return folder / "whole"


def config(folder: Path, **options: object) -> Embedding:
    return Embedding(model=str(folder), prefix="query: ", **options)


def test_vectors_are_those_of_one_text_at_a_time(tiny_encoder: Path) -> None:
    encoder = load_encoder(config(tiny_encoder), "cpu")
    together = encoder.encode(TEXTS)
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS[:5]])
    assert together.shape == (len(TEXTS), encoder.dimension) == (35, 32)
    assert together.dtype == np.float32
    assert np.tile(alone, (7, 1)) == pytest.approx(together, abs=1e-5)
    assert np.linalg.norm(together, axis=1) == pytest.approx(1, abs=1e-6)
    assert not np.allclose(alone[0], alone[2], atol=1e-3)


def test_the_prefix_is_part_of_the_text(tiny_encoder: Path) -> None:
    plain = load_encoder(Embedding(model=str(tiny_encoder), prefix=""), "cpu")
    prefixed = load_encoder(config(tiny_encoder), "cpu")
    assert prefixed.encode(["short"]) == pytest.approx(plain.encode(["query: short"]), abs=1e-6)


def test_no_batch_holds_more_tokens_than_allowed(
    tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(encoders.BATCH_TOKENS, "cpu", 256)
    encoder = load_encoder(config(tiny_encoder), "cpu")
    expected = encoder.encode(TEXTS)
    seen: list[torch.Size] = []
    encoder._model[0].register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0]["input_ids"].shape)
    )
    assert encoder.encode(TEXTS) == pytest.approx(expected, abs=1e-6)
    assert len(seen) > 5
    assert all(rows == 1 or rows * width <= 256 for rows, width in seen)


def test_a_fixed_batch_size_bounds_the_rows(tiny_encoder: Path) -> None:
    encoder = load_encoder(config(tiny_encoder, batch_size=4), "cpu")
    seen: list[int] = []
    encoder._model[0].register_forward_pre_hook(
        lambda module, inputs: seen.append(len(inputs[0]["input_ids"]))
    )
    encoder.encode(TEXTS)
    assert max(seen) == 4 and sum(seen) == len(TEXTS)


def test_static_embeddings_need_no_batching_by_length(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import ByteLevelBPETokenizer

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(TEXTS, vocab_size=300)
    static = StaticEmbedding(bpe._tokenizer, embedding_dim=16)
    SentenceTransformer(modules=[static], device="cpu").save(str(tmp_path))
    vectors = load_encoder(config(tmp_path), "cpu").encode(TEXTS)
    assert vectors.shape == (len(TEXTS), 16)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-6)
