"""The arithmetic of docs/sizing.md: 42 languages on an 8B model, 500M pool rows, 8 to 256 GPUs.

``python benchmarks/sizing.py`` prints the table and writes ``benchmarks/results/sizing.json``. It
measures nothing: inputs are figures measured elsewhere or assumptions, each said to be which.
"""

from __future__ import annotations

import json
import math

from record import RESULTS, record

from compass_ray.costs import side_by_side

GPUS = (8, 64, 256)
LANGUAGES = 42

# Assumptions: what the data look like.
POOL_ROWS = 500e6
TOKENS_PER_PROMPT = 60
"""Of the pool, padding included."""
ROWS_PER_LANGUAGE = 6_000
"""Own rows and a budget of 2,000."""
TOKENS_PER_ROW = 200
ITEMS = 14_042
"""Of one language of Global-MMLU, in full."""
TOKENS_PER_ITEM = 200
"""The question with its options; lm-eval reads the four letters off one pass."""
WRITTEN_LANGUAGES = 22
"""Those of MMLU-ProX among the 42 of Global-MMLU."""
WRITTEN_ITEMS = {"lite": 658, "full": 11_829}
"""Of one language of MMLU-ProX."""
WRITTEN_TOKENS = 512
"""Until the last of a batch has its answer; at most 2,048."""

# Published: one H100 in bf16 (NeMo AutoModel), one RTX 4090 (multilingual-e5-large, 512 tokens).
TRAIN_TOKENS_S = 12_473
EMBED_TOKENS_S_4090 = 146_000
# Assumption: an H100 embeds as much faster as its bf16 peak is higher, at half the gain.
EMBED_TOKENS_S = EMBED_TOKENS_S_4090 * (990 / 165) / 2
# Arithmetic: a forward pass is 2 operations a parameter, a LoRA step is 4.
SCORE_TOKENS_S = 2 * TRAIN_TOKENS_S
# Published: Llama-3.1-8B in bf16 on one H100, eight texts at once through transformers
# (bitsandbytes' benchmarks), as lm-eval writes.
WRITE_TOKENS_S = 314

# Measured here: 20 s to launch the workers of a language, on a CPU. Assumption: 16 GB of weights
# at 0.4 GB/s from <storage>.
START_S = 20 + 40
# Assumption: what one node reads from an object store; 8 GPUs a node.
READ_BYTES_S = 1e9
DIMENSION = 1_024


# Assumption: each doubling of the languages that are answered at once gains what the first does.
DOUBLINGS = 3
"""The sampler answers eight at once."""


def select_seconds() -> tuple[float, float]:
    """Of one target language, by itself and as one of eight at once.

    Measured on 1M rows of 384 dimensions, in proportion to both.
    """
    measured = json.loads((RESULTS / "sampling.json").read_text())["results"][-1]
    alone = measured["compass_s"] / 20 / measured["rows"] * POOL_ROWS * DIMENSION / 384
    return alone, alone * measured["two_at_once"] ** DOUBLINGS


def hours(gpus: int) -> dict[str, float]:
    """Wall hours by stage on so many GPUs."""
    nodes = gpus / 8
    vectors = POOL_ROWS * DIMENSION * 2
    training = ROWS_PER_LANGUAGE * TOKENS_PER_ROW / TRAIN_TOKENS_S + START_S
    scoring = [ITEMS * TOKENS_PER_ITEM / SCORE_TOKENS_S] * 2 * LANGUAGES
    writing = [WRITTEN_ITEMS["lite"] * WRITTEN_TOKENS / WRITE_TOKENS_S] * 2 * WRITTEN_LANGUAGES
    seconds = {
        "embed": POOL_ROWS * TOKENS_PER_PROMPT / (EMBED_TOKENS_S * gpus),
        # Three passes over the vectors: sums, sample, assignment.
        "cluster": 3 * vectors / (READ_BYTES_S * nodes),
        # One process, whatever the cluster.
        "sample": vectors / READ_BYTES_S + select_seconds()[1] * LANGUAGES,
        "train": side_by_side([training] * LANGUAGES, gpus),
        "evaluate": side_by_side([*scoring, *writing], gpus) + START_S,
    }
    return {stage: second / 3600 for stage, second in seconds.items()}


def main() -> None:
    results = {gpus: hours(gpus) for gpus in GPUS}
    print("| stage | " + " | ".join(f"{gpus} GPUs" for gpus in GPUS) + " |")
    print("|---|" + "---:|" * len(GPUS))
    for stage in results[GPUS[0]]:
        cells = [f"{results[gpus][stage]:.2f} h" for gpus in GPUS]
        print(f"| {stage} | " + " | ".join(cells) + " |")
    totals = [f"{sum(results[gpus].values()):.2f} h" for gpus in GPUS]
    print("| all | " + " | ".join(totals) + " |")
    print(
        "selection, one language, alone and of eight: {:.0f} s, {:.0f} s".format(*select_seconds())
    )
    print(f"vectors: {POOL_ROWS * DIMENSION * 2 / 1e12:.2f} TB")
    print(f"training, GPU-hours without starts: {_training_gpu_hours():.2f}")
    scoring_h = 2 * LANGUAGES * ITEMS * TOKENS_PER_ITEM / SCORE_TOKENS_S / 3600
    print(f"Global-MMLU, GPU-hours: {scoring_h:.2f}")
    for name, items in WRITTEN_ITEMS.items():
        writing_h = 2 * WRITTEN_LANGUAGES * items * WRITTEN_TOKENS / WRITE_TOKENS_S / 3600
        most = writing_h * 2_048 / WRITTEN_TOKENS
        print(f"MMLU-ProX {name}, GPU-hours: {writing_h:.1f}, at most {most:.1f}")
    print(f"rounds of training: {[math.ceil(LANGUAGES / gpus) for gpus in GPUS]}")
    record("sizing", {"wall_hours": results})


def _training_gpu_hours() -> float:
    return LANGUAGES * ROWS_PER_LANGUAGE * TOKENS_PER_ROW / TRAIN_TOKENS_S / 3600


if __name__ == "__main__":
    main()
