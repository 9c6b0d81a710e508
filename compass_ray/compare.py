"""Strategies side by side: the same budget, steps and items for each, and is the difference real.

Everything goes through the stages of ``pipeline`` and their cache, so a comparison that is broken
off goes on where it was, and a strategy added later costs only itself.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import get_args

import numpy as np

from compass_ray.artifacts import Artifact, Storage
from compass_ray.clustering.stage import Clustered, cluster_corpus
from compass_ray.config import Config, Strategy
from compass_ray.corpora.stage import Corpus, read_corpora
from compass_ray.embedding.stage import embed
from compass_ray.errors import UserError
from compass_ray.evaluation.stage import evaluate, on_items
from compass_ray.evaluation.standings import (
    BASE,
    REFERENCE,
    Answered,
    Answers,
    Row,
    tabulate,
)
from compass_ray.models import load_tokenizer
from compass_ray.pipeline import STAGES, check_config, check_corpus
from compass_ray.sampling.stage import sample
from compass_ray.sampling.subset import SUBSET
from compass_ray.training.data import Plan, tokenise
from compass_ray.training.launch import train_languages

log = logging.getLogger(__name__)


def compare(config: Config, strategies: Sequence[str], seeds: int) -> list[Row]:
    """Train and score every strategy with ``seeds`` seeds; ``compass`` is the reference.

    Raises what ``collect`` raises.
    """
    answers = collect(config, strategies, seeds)
    return tabulate(answers, config.evaluation.confidence, config.run.seed)


def collect(
    config: Config, strategies: Sequence[str], seeds: int, evaluation: str | None = None
) -> Answers:
    """Answers of every strategy, of ``compass`` and of the base, in the same order for all.

    Args:
        config: of the run; its own items decide which rows may not be picked.
        strategies: those to compare with ``compass``.
        seeds: how often each is trained.
        evaluation: items to score on; default: the run's.

    Raises ``UserError`` for a strategy that is not known, or that has no rows to train a language
    on. Raises ``RuntimeError`` when a language fails to train or to be scored, since a table with
    a hole in it compares nothing.
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
        items = read_corpora(on_items(seeded, evaluation), storage) if evaluation else corpus
        fixed = _with_equal_steps(seeded, storage, clustered)
        trials = {name: _with_strategy(fixed, name) for name in names}
        # A strategy that cannot train the last language would otherwise cost the table of all.
        for name, trial in trials.items():
            check_rows(name, sample(trial, storage, clustered).subsets)
        for name, trial in trials.items():
            log.info("compare: %s, seed %d", name, seed)
            trained = _trained(name, trial, storage, clustered)
            scored_on = on_items(trial, evaluation) if evaluation else trial
            _add_answers(answers, name, scored_on, storage, items, trained)
    return answers


def check_rows(strategy: str, subsets: Mapping[str, Artifact]) -> None:
    """Raises ``UserError`` for a language that the strategy has no rows to train on."""
    for language, subset in subsets.items():
        if not subset.summary["rows"]:
            rows = "own rows" if strategy == "target_only" else "rows"
            raise UserError(
                f"strategy {strategy}: {language} has no {rows} to train on; leave it out of "
                "--strategies"
            )


def _with_strategy(config: Config, name: str) -> Config:
    sampling = config.sampling.model_copy(update={"strategy": name})
    return config.model_copy(update={"sampling": sampling})


def _with_equal_steps(config: Config, storage: Storage, clustered: Clustered) -> Config:
    """Fix the steps at what ``compass`` takes, so that more rows do not mean more training."""
    subsets = sample(_with_strategy(config, REFERENCE), storage, clustered).subsets
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
    for compared in evaluate(config, storage, corpus, adapters).whole().comparisons:
        scored = {name: compared.adapter, BASE: compared.base}
        for model, items in scored.items():
            if items is None:
                continue
            correct = items["correct"].to_numpy(zero_copy_only=False).astype(np.float64)
            key = (compared.language, compared.task)
            mine = answers.setdefault(model, {})
            # The base is the same for every strategy: one copy a seed is enough.
            if model != BASE or name == REFERENCE:
                before = [mine[key].right] if key in mine else []
                mine[key] = Answered(items["id"].to_pylist(), np.vstack([*before, correct]))
