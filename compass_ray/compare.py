"""Strategies side by side: the same budget, steps and items for each, and is the difference real.

Everything goes through the stages of ``pipeline`` and their cache, so a comparison that is broken
off goes on where it was, and a strategy added later costs only itself.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from compass_ray.artifacts import Artifact, Storage
from compass_ray.clustering.stage import Clustered, cluster_corpus
from compass_ray.config import Config, Strategy
from compass_ray.corpora.stage import Corpus, read_corpora
from compass_ray.embedding.stage import embed
from compass_ray.errors import UserError
from compass_ray.evaluation.stage import evaluate, on_items
from compass_ray.evaluation.statistics import (
    bootstrap_ci,
    cohens_d,
    holm,
    paired_permutation_test,
)
from compass_ray.models import load_tokenizer
from compass_ray.pipeline import STAGES, check_config, check_corpus
from compass_ray.sampling.stage import SUBSET, sample
from compass_ray.training.data import Plan, tokenise
from compass_ray.training.launch import train_languages

log = logging.getLogger(__name__)

REFERENCE: Strategy = "compass"
BASE = "base"


@dataclass(frozen=True)
class Row:
    """One strategy over all languages, seeds and items; accuracies are shares, 0 to 1.

    Attributes:
        strategy: its name, or ``base`` for the model without an adapter.
        items: items of all languages; what each scores is its mean over the seeds.
        seeds: how often the strategy was trained.
        accuracy: share answered correctly, with its bootstrap interval ``low`` to ``high``.
        by_language: accuracy of each language, over seeds.
        difference: accuracy of ``compass`` minus this one's, on the same items.
        p_value: paired permutation test of that difference, Holm-adjusted over the table.
        cohens_d: paired effect size of that difference.
    """

    strategy: str
    items: int
    seeds: int
    accuracy: float
    low: float
    high: float
    by_language: dict[str, float]
    difference: float | None = None
    p_value: float | None = None
    cohens_d: float | None = None


# By model (a strategy, or ``base``) and language: 1 for a right answer, [seeds, items].
Answers = dict[str, dict[str, NDArray[np.float64]]]


def compare(config: Config, strategies: Sequence[str], seeds: int) -> list[Row]:
    """Train and score every strategy with ``seeds`` seeds; ``compass`` is the reference.

    Raises what ``collect`` raises.
    """
    return tabulate(collect(config, strategies, seeds), config)


def collect(
    config: Config, strategies: Sequence[str], seeds: int, evaluation: str | None = None
) -> Answers:
    """Answers of every strategy, of ``compass`` and of the base, in the same order for all.

    Args:
        config: of the run; its own items decide which rows may not be picked.
        strategies: those to compare with ``compass``.
        seeds: how often each is trained.
        evaluation: items to score on; default: the run's.

    Raises ``UserError`` for a strategy that is not known. Raises ``RuntimeError`` when a language
    fails to train, since a table with a hole in it compares nothing.
    """
    unknown = sorted(set(strategies) - set(get_args(Strategy)))
    if unknown:
        known = ", ".join(get_args(Strategy))
        raise UserError(f"--strategies: {unknown[0]} is not known; known are {known}")
    check_config(config, STAGES.index("evaluate"))
    storage = Storage.open(config.run.storage)
    names = dict.fromkeys([REFERENCE, *strategies])
    answers: Answers = {}
    for seed in range(config.run.seed, config.run.seed + seeds):
        seeded = config.model_copy(update={"run": config.run.model_copy(update={"seed": seed})})
        corpus = read_corpora(seeded, storage)
        check_corpus(seeded, corpus)
        clustered = cluster_corpus(seeded, storage, corpus, embed(seeded, storage, corpus))
        fixed = _with_equal_steps(seeded, storage, clustered)
        for name in names:
            log.info("compare: %s, seed %d", name, seed)
            sampling = fixed.sampling.model_copy(update={"strategy": name})
            trial = fixed.model_copy(update={"sampling": sampling})
            trained = _trained(name, trial, storage, clustered)
            scored_on = on_items(trial, evaluation) if evaluation else trial
            items = read_corpora(scored_on, storage) if evaluation else corpus
            _add_answers(answers, name, scored_on, storage, items, trained)
    return answers


def _with_equal_steps(config: Config, storage: Storage, clustered: Clustered) -> Config:
    """Fix the steps at what ``compass`` takes, so that more rows do not mean more training."""
    sampling = config.sampling.model_copy(update={"strategy": REFERENCE})
    subsets = sample(config.model_copy(update={"sampling": sampling}), storage, clustered).subsets
    steps = max(_steps(config, subset) for subset in subsets.values())
    training = config.training.model_copy(update={"max_steps": steps})
    return config.model_copy(update={"training": training})


def _steps(config: Config, subset: Artifact) -> int:
    training = config.training
    rows = subset.read_table(SUBSET, columns=["prompt", "response"])
    data = tokenise(
        rows["prompt"].to_pylist(),
        rows["response"].to_pylist(),
        load_tokenizer(training.model),
        training.max_length,
        training.system_prompt,
    )
    return Plan.build(
        data.examples,
        batch_size=training.batch_size,
        max_length=training.max_length,
        packing=training.packing,
        seed=config.run.seed,
        epochs=training.epochs,
        max_steps=training.max_steps,
    ).total_steps


def _trained(
    name: str, config: Config, storage: Storage, clustered: Clustered
) -> Mapping[str, Artifact]:
    trained = train_languages(config, storage, sample(config, storage, clustered).subsets)
    if trained.failures:
        language, cause = next(iter(trained.failures.items()))
        raise RuntimeError(f"{name}: {language} failed: {cause}")
    return trained.adapters


def _add_answers(
    answers: Answers,
    name: str,
    config: Config,
    storage: Storage,
    corpus: Corpus,
    adapters: Mapping[str, Artifact],
) -> None:
    for compared in evaluate(config, storage, corpus, adapters).comparisons:
        scored = {name: compared.adapter, BASE: compared.base}
        for model, items in scored.items():
            if items is None:
                continue
            correct = items["correct"].to_numpy(zero_copy_only=False).astype(np.float64)
            by_language = answers.setdefault(model, {})
            before = by_language.get(compared.language, np.empty((0, len(correct))))
            # The base is the same for every strategy: one copy a seed is enough.
            if model != BASE or name == REFERENCE:
                by_language[compared.language] = np.vstack([before, correct])


def tabulate(answers: Answers, config: Config) -> list[Row]:
    """Accuracies, best first, with ``compass`` tested against each of the others.

    Seeds answer the same items, and their answers to one are no independent samples: an item
    counts once, with its mean over the seeds.

    Raises ``UserError`` when no language has items.
    """
    if not answers:
        raise UserError("corpora.evaluation: no items in any of the languages, nothing to compare")
    languages = sorted(answers[REFERENCE])
    flat = {
        name: np.concatenate([by[lang].mean(axis=0) for lang in languages])
        for name, by in answers.items()
    }
    reference = flat[REFERENCE]
    rows = []
    for name, values in flat.items():
        low, high = bootstrap_ci(values, config.evaluation.confidence, seed=config.run.seed)
        row = Row(
            strategy=name,
            items=len(values),
            seeds=len(answers[name][languages[0]]),
            accuracy=float(values.mean()),
            low=low,
            high=high,
            by_language={lang: float(answers[name][lang].mean()) for lang in languages},
        )
        if name != REFERENCE:
            row = replace(
                row,
                difference=float((reference - values).mean()),
                p_value=paired_permutation_test(reference, values, seed=config.run.seed),
                cohens_d=cohens_d(reference, values),
            )
        rows.append(row)
    tested = {row.strategy: row.p_value for row in rows if row.p_value is not None}
    adjusted = holm(list(tested.values())) if tested else np.empty(0)
    by_name = dict(zip(tested, map(float, adjusted), strict=True))
    rows = [replace(row, p_value=by_name.get(row.strategy)) for row in rows]
    return sorted(rows, key=lambda row: -row.accuracy)


def markdown(rows: Sequence[Row]) -> str:
    """The table, best first, as Markdown."""
    languages = list(rows[0].by_language)
    head = ["strategy", "accuracy [95 %]", *languages, "compass minus it", "p (Holm)", "d"]
    cells = [
        [
            row.strategy,
            f"{row.accuracy:.3f} [{row.low:.3f}, {row.high:.3f}]",
            *(f"{row.by_language[language]:.3f}" for language in languages),
            "" if row.difference is None else f"{row.difference:+.3f}",
            "" if row.p_value is None else f"{row.p_value:.4f}",
            "" if row.cohens_d is None else f"{row.cohens_d:+.2f}",
        ]
        for row in rows
    ]
    lines = [head, ["---"] * len(head), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def as_json(rows: Sequence[Row]) -> list[dict[str, object]]:
    return [asdict(row) for row in rows]
