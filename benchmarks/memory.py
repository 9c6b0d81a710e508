"""Memory of reading, embedding and clustering as the corpus grows.

``python benchmarks/memory.py`` prints a table and writes ``benchmarks/results/memory.json``. Each
size is a process of its own with a Ray of its own. What counts is the memory that belongs to one
process alone (unique set size), summed over the driver and everything Ray started: Ray's object
store is shared memory and bounded by itself. The encoder is a bag of random token vectors, since
only how much is held at once matters here.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import psutil
from record import record

LANGUAGES = ("en", "fr", "es", "de")


def make_corpus(folder: Path, rows: int) -> None:
    rng = np.random.default_rng(0)
    words = np.array([f"word{number}" for number in range(5000)])
    with (folder / "rows.jsonl").open("w") as file:
        for number in range(rows):
            text = " ".join(words[rng.integers(len(words), size=12)])
            row = {
                "prompt": f"{text} {number}",
                "completion": text,
                "language": LANGUAGES[number % 4],
            }
            file.write(json.dumps(row) + "\n")
    with (folder / "usage.jsonl").open("w") as file:
        for number in range(300):
            file.write(json.dumps({"text": f"word{number} word7", "language": "de"}) + "\n")


def make_encoder(folder: Path) -> Path:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import ByteLevelBPETokenizer

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator([f"word{number}" for number in range(5000)], vocab_size=6000)
    static = StaticEmbedding(bpe._tokenizer, embedding_dim=384)
    SentenceTransformer(modules=[static], device="cpu").save(str(folder / "encoder"))
    return folder / "encoder"


def unique_bytes() -> int:
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            total += process.memory_full_info().uss
    return total


def measure(rows: int) -> dict[str, float]:
    """Peak gigabytes over one run of the stages up to the clusters; runs in its own process."""
    from compass_ray import run
    from compass_ray.loading import build_config
    from compass_ray.resources import connect

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_corpus(folder, rows)
        config = build_config(
            {
                "run": {"storage": str(folder / "storage")},
                "languages": ["de"],
                "corpora": {
                    "auxiliary": [{"path": str(folder / "rows.jsonl")}],
                    "train": [],
                    "usage": [{"path": str(folder / "usage.jsonl")}],
                    "evaluation": [],
                },
                "embedding": {"model": str(make_encoder(folder))},
                "clustering": {"k": 100, "fit_rows": 20_000},
            }
        )
        connect()
        peak, stop = [unique_bytes()], threading.Event()

        def watch() -> None:
            while not stop.wait(1):
                peak.append(unique_bytes())

        watcher = threading.Thread(target=watch)
        watcher.start()
        run(config, until="cluster")
        stop.set()
        watcher.join()
    return {"rows": rows, "start_gb": peak[0] / 1e9, "peak_gb": max(peak) / 1e9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 300_000, 1_000_000])
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one)))
        return
    results = []
    print(f"{'rows':>10} {'at start GB':>12} {'peak GB':>8} {'to smallest':>12}")
    for rows in arguments.rows:
        child = subprocess.run(
            [sys.executable, __file__, "--one", str(rows)], stdout=subprocess.PIPE, check=True
        )
        results.append(json.loads(child.stdout.splitlines()[-1]))
        found = results[-1]
        growth = found["peak_gb"] / results[0]["peak_gb"]
        print(
            f"{rows:>10,} {found['start_gb']:>12.2f} {found['peak_gb']:>8.2f} {growth:>12.2f}",
            flush=True,
        )
    record("memory", {"results": results})


if __name__ == "__main__":
    main()
