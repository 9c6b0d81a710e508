import tracemalloc

import numpy as np
import pytest
from scipy import stats

from compass_ray.evaluation import statistics
from compass_ray.evaluation.statistics import (
    bootstrap_ci,
    cohens_d,
    holm,
    paired_permutation_test,
)


def mean_difference(a, b, axis):
    return np.mean(a - b, axis=axis)


@pytest.mark.parametrize("answers", ["right or wrong", "real numbers"])
def test_the_bootstrap_interval_agrees_with_scipy(answers):
    rng = np.random.default_rng(0)
    values = rng.normal(0.3, 1, 200)
    if answers == "right or wrong":
        values = (values > 0).astype(float)
    low, high = bootstrap_ci(values, 0.9)
    expected = stats.bootstrap(
        (values,), np.mean, confidence_level=0.9, n_resamples=10_000, method="percentile", rng=rng
    ).confidence_interval
    error = values.std() / np.sqrt(len(values))
    assert low == pytest.approx(expected.low, abs=0.06 * error)
    assert high == pytest.approx(expected.high, abs=0.06 * error)


@pytest.mark.parametrize("answers", ["right or wrong", "differences", "real numbers"])
def test_a_95_percent_interval_covers_the_true_mean_in_95_percent(answers):
    rng = np.random.default_rng(1)
    hits = 0
    for seed in range(1000):
        if answers == "right or wrong":
            values, truth = rng.random(150) < 0.6, 0.6
        elif answers == "differences":
            values, truth = (rng.random(150) < 0.6) * 1.0 - (rng.random(150) < 0.45), 0.15
        else:
            values, truth = rng.normal(5, 2, 150), 5
        low, high = bootstrap_ci(values, n_resamples=1000, seed=seed)
        hits += low <= truth <= high
    assert 930 <= hits <= 970, hits


def test_the_bootstrap_repeats_with_its_seed_and_moves_with_another():
    values = np.random.default_rng(2).normal(size=50)
    assert bootstrap_ci(values, seed=3) == bootstrap_ci(values, seed=3)
    assert bootstrap_ci(values, seed=3) != bootstrap_ci(values, seed=4)


def test_the_bootstrap_of_one_value_is_that_value():
    assert bootstrap_ci([0.25]) == (0.25, 0.25)


def test_the_bootstrap_does_not_depend_on_the_size_of_its_blocks(monkeypatch):
    values = np.random.default_rng(3).normal(size=101)
    whole = bootstrap_ci(values, n_resamples=500)
    monkeypatch.setattr(statistics, "BLOCK", 2000)
    assert bootstrap_ci(values, n_resamples=500) == whole


def test_the_bootstrap_memory_is_bounded():
    values = np.random.default_rng(4).normal(size=20_000)
    tracemalloc.start()
    bootstrap_ci(values, n_resamples=1000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100e6  # all resamples at once take 320 MB


@pytest.mark.parametrize(
    ("values", "options"),
    [
        ([], {}),
        ([[1.0]], {}),
        ([np.nan], {}),
        ([1.0], {"confidence": 1.0}),
        ([1.0], {"n_resamples": 0}),
    ],
)
def test_the_bootstrap_refuses_wrong_input(values, options):
    with pytest.raises(ValueError, match="needed"):
        bootstrap_ci(values, **options)


@pytest.mark.parametrize("seed", range(5))
def test_the_permutation_test_is_exact_on_few_pairs(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(0.5, 1, 10), rng.integers(0, 3, 10).astype(float)
    exact = stats.permutation_test(
        (a, b), mean_difference, permutation_type="samples", n_resamples=np.inf, vectorized=True
    )
    assert paired_permutation_test(a, b) == pytest.approx(exact.pvalue, abs=1e-12)


def test_the_exact_permutation_test_counts_ties_in_spite_of_rounding():
    # 0.1 + 0.2 and 0.3 differ in the last digit, so flips of equal size must be told by tolerance.
    a = np.array([0.1, 0.2, -0.3])
    assert paired_permutation_test(a, np.zeros(3)) == 1.0


def test_equal_pairs_do_not_change_the_permutation_test():
    a, b = np.array([1.0, 1, 1, 1, 1, 0]), np.array([0.0, 0, 0, 0, 0, 1])
    alone = paired_permutation_test(a, b)
    padded = paired_permutation_test(np.r_[a, np.ones(500)], np.r_[b, np.ones(500)])
    assert alone == padded == stats.binomtest(5, 6).pvalue


@pytest.mark.parametrize("answers", ["right or wrong", "real numbers"])
def test_the_random_permutation_test_agrees_with_scipy(answers):
    rng = np.random.default_rng(5)
    b = rng.normal(0, 1, 150)
    a = b + rng.normal(0.15, 1, 150)
    if answers == "right or wrong":
        a, b = (a > 0).astype(float), (b > 0).astype(float)
    p = paired_permutation_test(a, b)
    expected = stats.permutation_test(
        (a, b),
        mean_difference,
        permutation_type="samples",
        n_resamples=10_000,
        vectorized=True,
        batch=500,
        rng=rng,
    ).pvalue
    assert 0.005 < p < 0.5
    assert p == pytest.approx(expected, abs=0.02)


def test_the_random_p_value_is_never_zero_and_two_sided():
    a, b = np.ones(100) + np.linspace(0, 1, 100), np.zeros(100)
    assert paired_permutation_test(a, b, n_permutations=999) == 1 / 1000
    assert paired_permutation_test(b, a, n_permutations=999) == 1 / 1000


def test_no_difference_has_p_1():
    assert paired_permutation_test(np.ones(50), np.ones(50)) == 1.0


def test_the_permutation_test_is_uniform_without_an_effect():
    rng = np.random.default_rng(6)
    p_values = [
        paired_permutation_test(*rng.normal(size=(2, 40)), n_permutations=1000, seed=seed)
        for seed in range(500)
    ]
    assert stats.kstest(p_values, "uniform").pvalue > 0.01


def test_right_and_wrong_answers_are_not_called_different_too_often():
    rng = np.random.default_rng(7)
    answers = rng.random((500, 2, 200)) < rng.random((500, 1, 200))  # items differ in difficulty
    p_values = np.array(
        [
            paired_permutation_test(*pair, n_permutations=1000, seed=i)
            for i, pair in enumerate(answers)
        ]
    )
    for level in (0.01, 0.05, 0.2):
        # Ties make the test of yes and no careful: at most the level, within chance.
        assert np.mean(p_values <= level) <= level + 3 * np.sqrt(level * (1 - level) / 500)


@pytest.mark.parametrize(
    ("a", "b", "n_permutations"), [([], [], 10), ([1.0], [1.0, 2.0], 10), ([1.0], [2.0], 0)]
)
def test_the_permutation_test_refuses_wrong_input(a, b, n_permutations):
    with pytest.raises(ValueError, match=r"needed|no pairs"):
        paired_permutation_test(a, b, n_permutations)


def test_cohens_d_is_the_paired_t_statistic_without_its_root_n():
    rng = np.random.default_rng(7)
    a, b = rng.normal(size=(2, 40))
    expected = stats.ttest_rel(a, b).statistic / np.sqrt(40)
    assert cohens_d(a, b) == pytest.approx(expected)
    assert cohens_d(b, a) == pytest.approx(-expected)


def test_cohens_d_without_spread_is_zero_or_infinite():
    b = np.random.default_rng(8).normal(size=30)
    assert cohens_d(b, b) == 0.0
    assert cohens_d(b + 0.1, b) == np.inf  # though rounding leaves a spread of 1e-17
    assert cohens_d(b, b + 0.1) == -np.inf


@pytest.mark.parametrize(("a", "b"), [([1.0], [2.0]), ([1.0, 2.0], [1.0]), ([1.0, np.inf], [0, 0])])
def test_cohens_d_refuses_wrong_input(a, b):
    with pytest.raises(ValueError, match=r"need|no pairs"):
        cohens_d(a, b)


def test_holm_gives_the_published_adjustment():
    # R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])


def test_holm_never_lowers_a_p_value_never_passes_1_and_keeps_the_order():
    p = np.random.default_rng(9).random(50)
    adjusted = holm(p)
    assert (adjusted >= p).all()
    assert adjusted.max() <= 1
    assert (np.diff(adjusted[np.argsort(p)]) >= 0).all()
    assert holm([]).tolist() == []
    assert holm([0.2]).tolist() == [0.2]


@pytest.mark.parametrize("p_values", [[-0.1], [1.1], [np.nan], [[0.5]]])
def test_holm_refuses_what_is_no_p_value(p_values):
    with pytest.raises(ValueError, match="needed"):
        holm(p_values)
