from __future__ import annotations

import numpy as np

from compass_ray.evaluation.standings import BASE, REFERENCE, markdown, tabulate
from compass_ray.evaluation.statistics import paired_permutation_test


def answers(seed: int, seeds: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {lang: rng.integers(2, size=(seeds, 40)).astype(float) for lang in ("de", "pl")}


def test_another_seed_with_the_same_answers_is_no_more_evidence() -> None:
    once = {REFERENCE: answers(0, 1), BASE: answers(1, 1)}
    twice = {
        name: {lang: np.vstack([rows, rows]) for lang, rows in by.items()}
        for name, by in once.items()
    }
    for one, two in zip(tabulate(once, 0.95, 0), tabulate(twice, 0.95, 0), strict=True):
        assert (one.items, two.items) == (80, 80)
        assert (one.seeds, two.seeds) == (1, 2)
        assert (one.low, one.high, one.p_value, one.cohens_d) == (
            *(two.low, two.high),
            *(two.p_value, two.cohens_d),
        )


def test_an_item_counts_once_with_its_mean_over_seeds() -> None:
    given = {REFERENCE: answers(2, 3), BASE: answers(3, 3)}
    rows = {row.strategy: row for row in tabulate(given, 0.95, 0)}
    means = {
        name: np.concatenate([by[lang].mean(axis=0) for lang in ("de", "pl")])
        for name, by in given.items()
    }
    base = rows[BASE]
    assert base.by_language["pl"] == given[BASE]["pl"].mean()
    assert base.difference == (means[REFERENCE] - means[BASE]).mean()
    assert base.p_value == paired_permutation_test(means[REFERENCE], means[BASE])
    assert markdown(list(rows.values())).count("\n") == 3
