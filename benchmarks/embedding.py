"""Embedding: Ray Data against a plain loop, and batches cut by tokens against other batches.

``python benchmarks/embedding.py`` prints two tables and keeps them in ``results/embedding.json``.
Sides take turns, and the median of each counts.
The encoder has the layers of a multilingual E5 in small, with random weights: what it computes
does not matter for its speed. Texts are sentences of the built-in corpus in all of its languages,
joined to lengths that are log-normal (median 40 tokens, long tail to 512).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from record import record
from turns import in_turn

from compass_ray.config import Config
from compass_ray.loading import build_config

THREADS = 1
LONGEST = 512
SMALL = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 512,
}


def make_texts(rows: int, rng: np.random.Generator) -> list[str]:
    from compass_ray.corpora import atlas

    sentences = {
        language: [
            f"{prompt} {response}"
            for prompt, response in zip(
                table["prompt"].to_pylist(), table["response"].to_pylist(), strict=True
            )
        ]
        for language in atlas.LANGUAGES
        for table in [atlas.rows("auxiliary", [language])]
    }
    texts = []
    for length in np.clip(rng.lognormal(np.log(40), 1.0, rows), 5, LONGEST):
        language = sentences[str(rng.choice(atlas.LANGUAGES))]
        # About 18 tokens a sentence.
        count = max(1, round(length / 18))
        texts.append(" ".join(language[i] for i in rng.integers(len(language), size=count)))
    return texts


def make_tokenizer(texts: Sequence[str]) -> Any:
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    bpe.train_from_iterator(texts[:5000], vocab_size=16_000, special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, bos_token="<s>", pad_token="<pad>", eos_token="</s>"
    )


def make_encoder(folder: Path, texts: Sequence[str], **shape: int) -> Path:
    """An encoder with random weights; ``shape`` as in ``XLMRobertaConfig``, else a small one."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import XLMRobertaConfig, XLMRobertaModel

    tokenizer = make_tokenizer(texts)
    torch.manual_seed(0)
    model = XLMRobertaModel(
        XLMRobertaConfig(
            vocab_size=len(tokenizer),
            **(SMALL | shape),
            max_position_embeddings=LONGEST + 2,
            pad_token_id=1,
        )
    )
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    transformer = Transformer(str(folder / "base"), max_seq_length=LONGEST)
    pooling = Pooling(transformer.get_embedding_dimension())
    SentenceTransformer(modules=[transformer, pooling], device="cpu").save(str(folder / "encoder"))
    return folder / "encoder"


def batching(encoder: Path, texts: list[str], turns: int) -> dict[str, float]:
    """Seconds on the same texts for three ways to cut batches, in one process."""
    from sentence_transformers import SentenceTransformer

    from compass_ray.config import Embedding
    from compass_ray.embedding.encoders import load_encoder

    ours = load_encoder(Embedding(model=str(encoder), prefix=""), "cpu")
    plain = SentenceTransformer(str(encoder), device="cpu")
    options = {"batch_size": 32, "show_progress_bar": False}

    def arrival() -> None:
        for start in range(0, len(texts), 32):
            plain.encode(texts[start : start + 32], **options)

    ours.encode(texts[:64])
    plain.encode(texts[:64], **options)
    ways = {
        "token batches": lambda: ours.encode(texts),
        "32 rows, sorted by characters": lambda: plain.encode(texts, **options),
        "32 rows, as they arrive": arrival,
    }
    return in_turn(ways, turns, warm_up=0)[0]


def config_of(folder: Path, encoder: Path, rows_per_part: int) -> Config:
    return build_config(
        {
            "run": {"storage": str(folder / "storage")},
            "languages": ["en"],
            "corpora": {
                "auxiliary": [{"path": str(folder / "texts.jsonl")}],
                "train": [],
                "usage": [],
                "evaluation": [],
                "rows_per_part": rows_per_part,
            },
            "embedding": {"model": str(encoder), "prefix": "", "threads": THREADS, "actors": 1},
        }
    )


def ray_data(
    folder: Path, encoder: Path, texts: list[str], rows_per_part: int, turns: int
) -> dict[str, float]:
    """Rows a second through the embedding stage, its start left out, and in a loop."""
    from compass_ray.embedding.encoders import load_encoder

    with (folder / "texts.jsonl").open("w") as file:
        for number, text in enumerate(texts):
            row = {"prompt": text, "completion": str(number), "language": "en"}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    config = config_of(folder, encoder, rows_per_part)
    loaded = load_encoder(config.embedding, "cpu")
    loaded.encode(texts[:64])
    parts = [texts[i : i + rows_per_part] for i in range(0, len(texts), rows_per_part)]

    def loop() -> float:
        started = time.perf_counter()
        for part in parts:
            loaded.encode(part)
        return len(texts) / (time.perf_counter() - started)

    pairs = [(through_ray(config, len(texts)), loop()) for _ in range(turns)]
    return {
        "ray_rows_per_s": statistics.median(ray for ray, _ in pairs),
        "loop_rows_per_s": statistics.median(alone for _, alone in pairs),
        "ratio": statistics.median(ray / alone for ray, alone in pairs),
        "lowest_ratio": min(ray / alone for ray, alone in pairs),
        "highest_ratio": max(ray / alone for ray, alone in pairs),
    }


def through_ray(config: Config, rows: int) -> float:
    """Rows a second from when the first part was committed to when the last was."""
    from compass_ray.artifacts import Storage
    from compass_ray.corpora.stage import read_corpora
    from compass_ray.embedding.stage import embed

    storage = Storage.open(config.run.storage)
    corpus = read_corpora(config, storage)
    cache = Path(storage.path("cache/embed"))
    shutil.rmtree(cache, ignore_errors=True)
    embed(config, storage, corpus)
    stamps = sorted(path.stat().st_mtime for path in cache.glob("*/_COMMITTED"))
    return (rows - config.corpora.rows_per_part) / (stamps[-1] - stamps[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--batched-rows", type=int, default=5_000, help="Of the first table")
    parser.add_argument("--rows-per-part", type=int, default=1_000)
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(THREADS)
    import torch

    torch.set_num_threads(THREADS)
    texts = make_texts(arguments.rows, np.random.default_rng(0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        encoder = make_encoder(folder, texts)
        seconds = batching(encoder, texts[: arguments.batched_rows], arguments.turns)
        best = seconds["token batches"]
        print(f"{'batches':<32} {'seconds':>8} {'ratio':>6}")
        for way, spent in seconds.items():
            print(f"{way:<32} {spent:>8.1f} {spent / best:>6.2f}", flush=True)
        found = ray_data(folder, encoder, texts, arguments.rows_per_part, arguments.turns)
    for measure, value in found.items():
        print(f"{measure:<32} {value:>8.2f}")
    result = {
        "rows": len(texts),
        "batched_rows": arguments.batched_rows,
        "threads": THREADS,
        "turns": arguments.turns,
        "batching_seconds": seconds,
        "ray_data": found,
    }
    record("embedding", result)


if __name__ == "__main__":
    main()
