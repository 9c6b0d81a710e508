"""Two adapters on one loaded base against a load for each, and what the second one costs.

``python benchmarks/evaluation.py`` prints a table and writes ``results/evaluation.json``. Every
arrangement runs in processes of its own, one after the other, several times in turn. The items
are atlas's; the adapters have random weights, which changes scores and not times.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from record import record

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
LIMIT_OF_ONE_LOAD = 1.3


def make_adapters(model: str, folder: Path) -> list[str]:
    import torch
    from peft import LoraConfig, get_peft_model

    from compass_ray.models import load_base

    paths = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        adapted = get_peft_model(
            load_base(model, torch.float32), LoraConfig(r=16, target_modules="all-linear")
        )
        for name, weights in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weights, std=0.01)
        paths.append(str(folder / f"adapter{seed}"))
        adapted.save_pretrained(paths[-1])
    return paths


def score(model: str, items: int, adapters: list[str]) -> None:
    """What a worker does: load, then score; prints the seconds of each step as JSON."""
    started = time.perf_counter()
    from compass_ray.config import Evaluation, Training
    from compass_ray.evaluation.harness import Harness
    from compass_ray.evaluation.items import Atlas

    harness = Harness(Training(model=model), Evaluation(limit=items))
    tasks = Atlas("de").build()
    steps = [time.perf_counter() - started]
    for adapter in adapters:
        began = time.perf_counter()
        harness.score(tasks, Path(adapter))
        steps.append(time.perf_counter() - began)
    print(json.dumps(steps))


def run(model: str, items: int, adapters: list[str]) -> tuple[float, list[float]]:
    """Seconds of the whole process, and of its steps: load, then each adapter."""
    command = [sys.executable, __file__, "--score", *adapters, "--model", model]
    started = time.perf_counter()
    done = subprocess.run(
        [*command, "--items", str(items)], capture_output=True, text=True, check=True
    )
    return time.perf_counter() - started, json.loads(done.stdout.splitlines()[-1])


def measure(model: str, items: int, repeats: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        first, second = make_adapters(model, Path(folder))
        alone, together, separate, share, load = [], [], [], [], []
        for _ in range(repeats):
            seconds, steps = run(model, items, [first])
            alone.append(seconds)
            load.append(seconds - steps[1])
            seconds, steps = run(model, items, [first, second])
            together.append(seconds)
            share.append(steps[2])
            separate.append(sum(run(model, items, [one])[0] for one in (first, second)))
    median = statistics.median
    expected = median(alone) + median(share)
    return {
        "one_adapter_s": median(alone),
        "start_and_load_s": median(load),
        "second_adapter_items_s": median(share),
        "two_on_one_load_s": median(together),
        "two_loads_s": median(separate),
        "one_load_over_one_and_share": median(together) / expected,
        "one_load_over_two_loads": median(together) / median(separate),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--items", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--score", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.score:
        score(given.model, given.items, given.score)
        return
    found = measure(given.model, given.items, given.repeats)
    for name, value in found.items():
        print(f"{name:<32}{value:>8.2f}")
    ratio = found["one_load_over_one_and_share"]
    verdict = "under" if ratio < LIMIT_OF_ONE_LOAD else "NOT under"
    print(f"two adapters on one load: {verdict} {LIMIT_OF_ONE_LOAD} × one and the other's items")
    settings = {"model": given.model, "items": given.items, "repeats": given.repeats}
    record("evaluation", settings | {"results": found})


if __name__ == "__main__":
    main()
