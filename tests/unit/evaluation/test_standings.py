from __future__ import annotations

import numpy as np
import pytest

from compass_ray.evaluation.standings import (
    BASE,
    REFERENCE,
    Answered,
    Answers,
    markdown,
    tabulate,
)
from compass_ray.evaluation.statistics import bootstrap_ci, paired_permutation_test

Given = dict[tuple[str, str], Answered]


def answers(seed: int, seeds: int) -> Given:
    rng = np.random.default_rng(seed)
    return {
        (lang, "items"): Answered(
            [f"{lang}/{i}" for i in range(40)], rng.integers(2, size=(seeds, 40)).astype(float)
        )
        for lang in ("de", "pl")
    }


def repeated(given: Given) -> Given:
    return {
        key: Answered(one.questions, np.vstack([one.right, one.right]))
        for key, one in given.items()
    }


def test_another_seed_with_the_same_answers_is_no_more_evidence() -> None:
    once = {REFERENCE: answers(0, 1), BASE: answers(1, 1)}
    twice = {name: repeated(by) for name, by in once.items()}
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
        name: np.concatenate([by[lang, "items"].right.mean(axis=0) for lang in ("de", "pl")])
        for name, by in given.items()
    }
    base = rows[BASE]
    assert base.by_language["pl"] == given[BASE]["pl", "items"].right.mean()
    assert base.difference == (means[REFERENCE] - means[BASE]).mean()
    assert base.p_value == paired_permutation_test(means[REFERENCE], means[BASE])
    assert markdown(list(rows.values()), 0.95).count("\n") == 3


def test_tasks_of_a_language_are_kept_apart() -> None:
    def given(items: float, needles: float) -> Given:
        return {
            ("de", "items"): Answered(["a", "b", "c"], np.full((1, 3), items)),
            ("de", "oneruler"): Answered(["a"], np.full((1, 1), needles)),
            ("pl", "items"): Answered(["d"], np.full((1, 1), items)),
        }

    rows = {
        row.strategy: row for row in tabulate({REFERENCE: given(1, 0), BASE: given(0, 1)}, 0.9, 0)
    }
    compass = rows[REFERENCE]
    assert (compass.items, compass.seeds, compass.accuracy) == (5, 1, 0.8)
    assert compass.by_task == {"items": 1.0, "oneruler": 0.0}
    assert compass.by_language == {"de": 0.75, "pl": 1.0}
    head = markdown(list(rows.values()), 0.9).splitlines()[0]
    assert "accuracy [90 %] | de | pl | items | oneruler | compass" in head


def test_one_question_in_many_languages_is_one_question() -> None:
    rng = np.random.default_rng(5)
    compass, base = rng.integers(2, size=(2, 1, 60)).astype(float)
    names = [f"anatomy/test/{i}" for i in range(60)]

    def in_languages(count: int, right: np.ndarray) -> Given:
        return {(f"l{i}", "global_mmlu"): Answered(names, right) for i in range(count)}

    def table(count: int) -> list:
        given: Answers = {
            REFERENCE: in_languages(count, compass),
            BASE: in_languages(count, base),
        }
        return tabulate(given, 0.95, 0)

    for one, many in zip(table(1), table(20), strict=True):
        assert (many.low, many.high) == pytest.approx((one.low, one.high))
        assert many.p_value == one.p_value
        assert many.items == 20 * one.items


def test_questions_in_few_languages_and_in_many_are_weighed_by_their_items() -> None:
    right = Answered(["a", "b", "c"], np.ones((1, 3)))
    some = {("de", "items"): right, ("pl", "items"): Answered(["a"], np.zeros((1, 1)))}
    (row,) = tabulate({REFERENCE: some}, 0.95, 0)
    assert row.accuracy == 0.75
    # Of the three questions, one is right in one language of two.
    assert (row.low, row.high) == bootstrap_ci([0.375, 0.9375, 0.9375], 0.95, seed=0)


def test_a_single_item_has_a_difference_but_no_effect_size() -> None:
    def one(right: float) -> Given:
        return {("de", "items"): Answered(["a"], np.full((1, 1), right))}

    rows = {row.strategy: row for row in tabulate({REFERENCE: one(1), BASE: one(0)}, 0.95, 0)}
    assert (rows[BASE].difference, rows[BASE].cohens_d) == (1.0, None)
    assert markdown(list(rows.values()), 0.95).splitlines()[-1].endswith("|  |")
