"""Strategies side by side as a table: is the difference real. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from compass_ray.config import Strategy
from compass_ray.errors import UserError
from compass_ray.evaluation.statistics import (
    bootstrap_ci,
    cohens_d,
    holm,
    paired_permutation_test,
)

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


def tabulate(answers: Answers, confidence: float, seed: int) -> list[Row]:
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
        low, high = bootstrap_ci(values, confidence, seed=seed)
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
                p_value=paired_permutation_test(reference, values, seed=seed),
                cohens_d=cohens_d(reference, values),
            )
        rows.append(row)
    tested = {row.strategy: row.p_value for row in rows if row.p_value is not None}
    by_name = dict(zip(tested, map(float, holm(list(tested.values()))), strict=True))
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
