"""What a GPU gives: embedding against sentence-transformers' own ``encode``, k-means against CPUs.

``python benchmarks/gpu.py`` prints two tables and writes ``benchmarks/results/gpu.json``. The
encoder has the layers of multilingual-e5-large (24 of 1,024) with random weights and a small
vocabulary: what it computes does not matter for its speed. Texts are those of ``embedding.py``,
rows those of ``kmeans.py``. Sides take turns, and the median of each counts. ``--small`` runs the
same code on a CPU and keeps nothing.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from embedding import make_encoder, make_texts
from kmeans import inertia, make_rows
from record import RESULTS, record
from turns import in_turn

from compass_ray.clustering.kmeans import ON_GPU, fit_kmeans, pick_backend
from compass_ray.config import Embedding
from compass_ray.embedding.encoders import Device, load_encoder

DEVICE: Device = "cuda" if torch.cuda.is_available() else "cpu"
E5_LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
E5_TINY = {name: value // 8 for name, value in E5_LARGE.items()}


def embedding(shape: dict[str, int], rows: int, turns: int) -> dict[str, Any]:
    from sentence_transformers import SentenceTransformer

    texts = make_texts(rows, np.random.default_rng(0))
    with tempfile.TemporaryDirectory() as name:
        folder = str(make_encoder(Path(name), texts, **shape))
        ours = load_encoder(Embedding(model=folder, prefix=""), DEVICE)
        plain = SentenceTransformer(folder, device=DEVICE)
        options = {"dtype": torch.bfloat16}
        half = SentenceTransformer(folder, device=DEVICE, model_kwargs=options)
    calm = {"show_progress_bar": False}
    ways = {
        "compass_ray, bf16, token batches": lambda: ours.encode(texts),
        "encode(), as it comes (fp32, 32 rows)": lambda: plain.encode(texts, **calm),
        "encode(), bf16, 32 rows": lambda: half.encode(texts, **calm),
        "encode(), bf16, 256 rows": lambda: half.encode(texts, batch_size=256, **calm),
    }
    seconds, found = in_turn(ways, turns)
    tokens = sum(len(ids) for ids in plain.tokenizer(texts, truncation=True)["input_ids"])
    best = seconds["compass_ray, bf16, token batches"]
    print(f"\n{'encoder':<38} {'rows/s':>9} {'tokens/s':>11} {'to ours':>8}")
    for name, spent in seconds.items():
        print(f"{name:<38} {rows / spent:>9,.0f} {tokens / spent:>11,.0f} {spent / best:>8.2f}")
    vectors, expected = list(found.values())[:2]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    cosine = float((vectors * expected).sum(axis=1).min())
    print(f"lowest cosine of a vector to that of fp32: {cosine:.5f}", flush=True)
    return {
        "shape": shape,
        "rows": rows,
        "tokens": tokens,
        "rows_per_second": {name: rows / spent for name, spent in seconds.items()},
        "to_ours": {name: spent / best for name, spent in seconds.items()},
        "lowest_cosine": cosine,
    }


def clustering(cases: list[tuple[int, int]], turns: int) -> list[dict[str, Any]]:
    found = []
    # Of the two for GPUs, torch is there in any case.
    backends = ("torch", "faiss") if pick_backend() != "cuml" else ("torch", "cuml", "faiss")
    print(f"\n{'rows':>9} {'K':>5} {'backend':<8} {'seconds':>8} {'to torch':>9} {'inertia':>8}")
    for count, k in cases:
        rows = make_rows(0, count)
        ways = {backend: partial(fit_kmeans, rows, k, backend=backend) for backend in backends}
        seconds, fits = in_turn(ways, turns)
        reached = {backend: inertia(rows, fit.centroids) for backend, fit in fits.items()}
        for backend, spent in seconds.items():
            case = {
                "rows": count,
                "k": k,
                "backend": backend,
                "device": DEVICE if backend in ON_GPU else "cpu",
                "seconds": spent,
                "to_torch": spent / seconds["torch"],
                "inertia_ratio": reached[backend] / min(reached.values()),
            }
            found.append(case)
            print(
                f"{count:>9,} {k:>5} {backend:<8} {spent:>8.2f} {case['to_torch']:>9.2f} "
                f"{case['inertia_ratio']:>8.4f}",
                flush=True,
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--small", action="store_true", help="Small enough for a CPU")
    parser.add_argument("--only", choices=("embedding", "clustering"), help="One of the tables")
    parser.add_argument("--results", default=str(RESULTS), help="Folder of gpu.json")
    arguments = parser.parse_args()
    if DEVICE == "cpu" and not arguments.small:
        print("no GPU here; --small runs the same code on the CPU")
        return
    if arguments.small:
        shape, rows, cases = E5_TINY, 200, [(5_000, 20)]
    else:
        shape, rows, cases = E5_LARGE, arguments.rows, [(200_000, 100), (500_000, 200)]
    tables = {
        "embedding": partial(embedding, shape, rows),
        "clustering": partial(clustering, cases),
    }
    result: dict[str, Any] = {}
    for part in [arguments.only] if arguments.only else tables:
        result[part] = tables[part](arguments.turns)
        if not arguments.small:
            record("gpu", result, Path(arguments.results))


if __name__ == "__main__":
    main()
