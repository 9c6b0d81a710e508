"""Strategies side by side as a table: is the difference real. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        items: items of all languages and tasks; what each scores is its mean over the seeds.
        seeds: how often the strategy was trained.
        accuracy: share answered correctly, with its bootstrap interval ``low`` to ``high``.
        by_language: accuracy of each language, over seeds and tasks.
        by_task: accuracy in each task, over seeds and languages.
        difference: accuracy of ``compass`` minus this one's, on the same items.
        p_value: paired permutation test of that difference, Holm-adjusted over the table.
        cohens_d: paired effect size of that difference; None for fewer than two items.
    """

    strategy: str
    items: int
    seeds: int
    accuracy: float
    low: float
    high: float
    by_language: dict[str, float]
    by_task: dict[str, float]
    difference: float | None = None
    p_value: float | None = None
    cohens_d: float | None = None


@dataclass(frozen=True, eq=False)
class Answered:
    """One model's answers to the items of one language and task.

    Attributes:
        questions: names of the items, [items]; those of one name in several languages of a task
            are one question.
        right: 1 for a right answer, 0 for a wrong one, [seeds, items].
    """

    questions: Sequence[str]
    right: NDArray[np.float64]


# By model (a strategy, or ``base``), then by language and task.
Answers = dict[str, dict[tuple[str, str], Answered]]


def tabulate(answers: Answers, confidence: float, seed: int) -> list[Row]:
    """Accuracies, best first, with ``compass`` tested against each of the others.

    Seeds answer the same items, and their answers to one are no independent samples: an item
    counts once, with its mean over the seeds. Nor are answers to one question in several
    languages: intervals and p values come from resampling questions (the cluster bootstrap), each
    with all its languages. For items whose names differ by language a question is an item.

    Raises ``UserError`` when no language has items.
    """
    if not answers:
        raise UserError("corpora.evaluation: no items in any of the languages, nothing to compare")
    asked = sorted(answers[REFERENCE])
    flat = {
        name: np.concatenate([by[key].right.mean(axis=0) for key in asked])
        for name, by in answers.items()
    }
    lengths = [len(answers[REFERENCE][key].questions) for key in asked]
    language_N, task_N = (np.repeat(names, lengths) for names in zip(*asked, strict=True))
    question_N = _numbered(answers[REFERENCE], asked)
    reference = flat[REFERENCE]
    rows = []
    for name, values in flat.items():
        low, high = bootstrap_ci(_by_question(values, question_N), confidence, seed=seed)
        row = Row(
            strategy=name,
            items=len(values),
            seeds=len(answers[name][asked[0]].right),
            accuracy=float(values.mean()),
            low=low,
            high=high,
            by_language=_means(values, language_N),
            by_task=_means(values, task_N),
        )
        if name != REFERENCE:
            row = replace(
                row,
                difference=float((reference - values).mean()),
                p_value=paired_permutation_test(
                    np.bincount(question_N, weights=reference),
                    np.bincount(question_N, weights=values),
                    seed=seed,
                ),
                cohens_d=cohens_d(reference, values) if len(values) > 1 else None,
            )
        rows.append(row)
    tested = {row.strategy: row.p_value for row in rows if row.p_value is not None}
    by_name = dict(zip(tested, map(float, holm(list(tested.values()))), strict=True))
    rows = [replace(row, p_value=by_name.get(row.strategy)) for row in rows]
    return sorted(rows, key=lambda row: -row.accuracy)


def _numbered(
    answered: Mapping[tuple[str, str], Answered], asked: Sequence[tuple[str, str]]
) -> NDArray[np.int64]:
    """A number for the question of each item, the same in all languages of a task, [N]."""
    numbers: dict[tuple[str, str], int] = {}
    return np.array(
        [
            numbers.setdefault((task, question), len(numbers))
            for language, task in asked
            for question in answered[language, task].questions
        ]
    )


def _by_question(
    values_N: NDArray[np.float64], question_N: NDArray[np.int64]
) -> NDArray[np.float64]:
    """A value for each of the Q questions, [Q], whose mean is that of the N items.

    It is the mean plus how far the question's items are from it in sum, so that questions asked
    in few languages and in many can be resampled together.
    """
    mean = values_N.mean()
    beyond_Q = np.bincount(question_N, weights=values_N - mean)
    values_Q: NDArray[np.float64] = mean + beyond_Q * len(beyond_Q) / len(values_N)
    return values_Q


def _means(values_N: NDArray[np.float64], names_N: NDArray[np.str_]) -> dict[str, float]:
    return {str(name): float(values_N[names_N == name].mean()) for name in np.unique(names_N)}


def markdown(rows: Sequence[Row], confidence: float) -> str:
    """The table, best first, as Markdown; tasks have columns of their own if there are several."""
    interval = f"accuracy [{100 * confidence:g} %]"
    languages = list(rows[0].by_language)
    tasks = list(rows[0].by_task) if len(rows[0].by_task) > 1 else []
    head = ["strategy", interval, *languages, *tasks, "compass minus it", "p (Holm)", "d"]
    cells = [
        [
            row.strategy,
            f"{row.accuracy:.3f} [{row.low:.3f}, {row.high:.3f}]",
            *(f"{row.by_language[language]:.3f}" for language in languages),
            *(f"{row.by_task[task]:.3f}" for task in tasks),
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
