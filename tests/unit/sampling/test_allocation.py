import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize, minimize_scalar

from compass_ray.sampling.allocation import fill_gaps, gap_table, water_fill
from compass_ray.sampling.distribution import kl_divergence, smooth


def log_count(p, rows):
    """``Σ p·log2(rows)`` over the last axis, and the p left without any row (KL is infinite)."""
    covered = rows > 0
    logs = np.log2(rows, out=np.zeros(np.shape(rows)), where=covered)
    return (p * logs).sum(-1), (p * ~covered).sum(-1)


def assert_equally_good(p, n, a, best, tolerance):
    """Two fillings of one budget have the same KL, or both are infinite by the same p."""
    mine, theirs = log_count(p, n + a), log_count(p, n + best)
    np.testing.assert_allclose(mine, theirs, rtol=0, atol=tolerance)


@st.composite
def problems(draw, min_own=0):
    """(p, n, m) of small whole numbers, with ties, zeros and exhausted clusters."""
    k = draw(st.integers(1, 7))

    def counts(low):
        return np.array(draw(st.lists(st.integers(low, 12), min_size=k, max_size=k)))

    wanted = counts(0)
    return smooth(wanted, 0.0 if wanted.any() else 1.0), counts(min_own), counts(0)


# Exactness


def brute_force(p, n, m, grid):
    """Best (p uncovered, -Σ p log) of any whole filling, for each budget."""
    allowed = grid[(grid <= m).all(axis=1)]
    value, uncovered = log_count(p, n + allowed)
    best = {}
    for budget in range(m.sum() + 1):
        spent = allowed.sum(axis=1) == budget
        fewest = uncovered[spent].min()
        ties = spent & (uncovered <= fewest + 1e-12)
        best[budget] = value[ties].max(), fewest
    return best


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_whole_rows_equal_brute_force_on_small_cases(k):
    rng = np.random.default_rng(k)
    grid = np.array(list(itertools.product(range(7), repeat=k)))
    for _ in range(250):
        e, n, m = rng.integers(0, 7, size=(3, k))
        p = smooth(e, 0.5 if not e.any() else rng.choice([0.0, 0.5]))
        for budget, best in brute_force(p, n, m, grid).items():
            a = fill_gaps(p, n, m, budget)
            np.testing.assert_allclose(log_count(p, n + a), best, rtol=0, atol=1e-12)


def test_whole_rows_equal_brute_force_on_every_case_of_two_clusters_and_counts_up_to_two():
    grid = np.array(list(itertools.product(range(3), repeat=2)))
    for e, n, m in itertools.product(grid, repeat=3):
        p = smooth(e, 0.5)
        for budget, best in brute_force(p, n, m, grid).items():
            a = fill_gaps(p, n, m, budget)
            np.testing.assert_allclose(log_count(p, n + a), best, rtol=0, atol=1e-12)


def random_problem(rng):
    k = int(rng.integers(2, 201))
    p = rng.dirichlet(np.full(k, rng.choice([0.05, 0.5, 5.0])))
    p = np.where(rng.random(k) < rng.choice([0, 0.2]), 0.0, p) + np.eye(k)[0] * 1e-3
    n = rng.integers(0, rng.choice([1, 20, 5000]), k, endpoint=True)
    m = rng.integers(0, rng.choice([3, 50, 5000]), k, endpoint=True)
    m[0] += 2
    return p / p.sum(), n, m, int(rng.integers(1, m.sum(), endpoint=True))


def test_real_rows_equal_a_root_finder_on_a_thousand_random_problems():
    rng = np.random.default_rng(0)
    for _ in range(1000):
        p, n, m, budget = random_problem(rng)
        a = water_fill(p, n, m, budget)
        assert a.sum() == pytest.approx(min(budget, m.sum()), rel=1e-12)
        wanted = p > 0
        rows = min(budget, m[wanted].sum())
        highest = ((n + m)[wanted] / p[wanted]).max()

        def filled(level, p=p[wanted], n=n[wanted], m=m[wanted]):
            return np.clip(level * p - n, 0, m)

        def missing(level, filled=filled, rows=rows):
            return rows - filled(level).sum()

        # Rounding may leave a trace missing at the level that fills everything.
        enough = missing(highest) >= 0
        level = highest if enough else brentq(missing, 0, highest, xtol=1e-13, maxiter=500)
        expected = a.copy()
        expected[wanted] = filled(level)
        assert_equally_good(p, n, a, expected, tolerance=1e-9)


def test_no_rows_are_better_by_a_generic_solver_of_the_dual_on_a_thousand_random_problems():
    """What Lagrange's dual gives bounds every allocation; it is minimised by Brent's method."""
    rng = np.random.default_rng(3)
    for _ in range(1000):
        p, n, m, budget = random_problem(rng)
        a = water_fill(p, n, m, budget)
        counts = (p > 0) & (n + m > 0)
        rows = min(budget, m[p > 0].sum())
        p, n, m, a = p[counts], n[counts], m[counts], a[counts]

        def bound(log_price, p=p, n=n, m=m, rows=rows):
            price = np.exp(log_price)
            best = np.clip(p / price - n, 0, m)
            return p @ np.log(n + best) - price * (best.sum() - rows)

        prices = np.log([(p / (n + m)).min() / 2, p.max() * 2])
        found = minimize_scalar(bound, bounds=prices, method="bounded", options={"xatol": 1e-10})
        assert (found.fun - p @ np.log(n + a)) / np.log(2) < 1e-9


def test_real_rows_satisfy_the_optimality_conditions_on_random_problems():
    rng = np.random.default_rng(1)
    for _ in range(300):
        p, n, m, budget = random_problem(rng)
        a = water_fill(p, n, m, budget)
        with np.errstate(divide="ignore", invalid="ignore"):
            slope = np.where(p > 0, p / (n + a), 0)
        can_grow, can_shrink = a < m * (1 - 1e-12), a > 1e-9
        most = slope[can_grow].max(initial=0.0)
        assert slope[can_shrink].min() >= most * (1 - 1e-9)


def test_real_rows_equal_a_generic_convex_solver_on_small_random_problems():
    rng = np.random.default_rng(2)
    for _ in range(40):
        k = int(rng.integers(2, 7))
        p = rng.dirichlet(np.ones(k))
        n, m = rng.integers(1, 10, k), rng.integers(1, 10, k)
        budget = int(rng.integers(1, m.sum()))
        found = minimize(
            lambda a, p=p, n=n: -(p * np.log2(n + a)).sum(),
            m * budget / m.sum(),
            jac=lambda a, p=p, n=n: -p / (n + a) / np.log(2),
            bounds=[(0, cap) for cap in m],
            constraints={"type": "eq", "fun": lambda a, budget=budget: a.sum() - budget},
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        assert_equally_good(p, n, water_fill(p, n, m, budget), found.x, tolerance=1e-9)


def test_whole_rows_are_the_largest_marginal_gains_on_random_problems():
    rng = np.random.default_rng(3)
    for _ in range(100):
        p, n, m, _ = random_problem(rng)
        m = np.minimum(m, 60)
        budget = int(rng.integers(0, m.sum(), endpoint=True))
        units = n[:, None] + np.arange(m.max())
        with np.errstate(divide="ignore", invalid="ignore"):
            gains = p[:, None] * np.log1p(1 / units)
        gains = np.where(np.isnan(gains), 0, gains)
        # An empty cluster comes first, by its p.
        gains = np.where(np.isinf(gains), 1e6 + p[:, None], gains)
        gains[np.arange(m.max()) >= m[:, None]] = -1
        a = fill_gaps(p, n, m, budget)
        taken = np.arange(m.max()) < a[:, None]
        best = np.sort(gains.ravel())[::-1][:budget]
        np.testing.assert_allclose(np.sort(gains[taken])[::-1], best, rtol=1e-12)


def test_whole_rows_beat_rounding_by_largest_remainder():
    p, n, m = np.array([0.9, 0.05, 0.05]), np.zeros(3), np.full(3, 9)
    np.testing.assert_allclose(water_fill(p, n, m, 3), [2.7, 0.15, 0.15])
    assert fill_gaps(p, n, m, 3).tolist() == [1, 1, 1]


# Properties


@given(problems(), st.integers(0, 90))
@settings(max_examples=60, deadline=None)
def test_caps_hold_and_the_budget_is_spent_exactly(problem, budget):
    p, n, m = problem
    rows = min(budget, m.sum())
    whole, real = fill_gaps(p, n, m, budget), water_fill(p, n, m, budget)
    assert whole.dtype == np.int64
    assert (whole >= 0).all()
    assert (whole <= m).all()
    assert whole.sum() == rows
    assert (real >= 0).all()
    assert (real <= m).all()
    assert real.sum() == pytest.approx(rows)


@given(problems(), st.integers(0, 80))
@settings(max_examples=60, deadline=None)
def test_one_row_more_in_the_budget_is_one_row_more_in_one_cluster(problem, budget):
    p, n, m = problem
    more = fill_gaps(p, n, m, budget + 1) - fill_gaps(p, n, m, budget)
    assert (more >= 0).all()
    assert more.sum() == (budget < m.sum())


@given(problems(min_own=1))
@settings(max_examples=50, deadline=None)
def test_the_divergence_falls_with_the_budget_and_once_it_rises_never_falls_again(problem):
    p, n, m = problem
    divergences = [kl_divergence(p, n + water_fill(p, n, m, b)) for b in range(m.sum() + 1)]
    steps = np.diff(divergences)
    rising = np.flatnonzero(steps > 1e-12)
    assert not len(rising) or (steps[rising[0] :] > -1e-12).all()


@given(problems(min_own=1), st.integers(1, 60))
@settings(max_examples=50, deadline=None)
def test_more_budget_never_raises_the_divergence_where_no_cap_binds(problem, budget):
    p, n, _ = problem
    m = np.full(len(p), budget)
    divergences = [kl_divergence(p, n + water_fill(p, n, m, b)) for b in range(budget + 1)]
    assert (np.diff(divergences) <= 1e-12).all()


def test_more_budget_may_raise_the_divergence_when_the_wanted_clusters_are_exhausted():
    p, n, m = [0.5, 0.5], [0, 0], [1, 10]
    assert kl_divergence(p, fill_gaps(p, n, m, 2)) == 0
    assert kl_divergence(p, fill_gaps(p, n, m, 11)) > 0.5


@given(problems(), st.integers(0, 80), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_permuting_the_clusters_permutes_the_rows_up_to_equal_clusters(problem, budget, random):
    p, n, m = problem
    order = list(range(len(p)))
    random.shuffle(order)
    for fill in (fill_gaps, water_fill):
        straight = sorted(zip(p, n, m, fill(p, n, m, budget), strict=True))
        mixed = sorted(
            zip(
                p[order],
                n[order],
                m[order],
                fill(p[order], n[order], m[order], budget),
                strict=True,
            )
        )
        assert straight == mixed


# Conventions and edges


def test_equal_clusters_share_and_the_first_gets_the_odd_row():
    assert fill_gaps([0.25] * 4, [0] * 4, [9] * 4, 6).tolist() == [2, 2, 1, 1]


def test_no_usage_at_all_levels_the_clusters():
    assert fill_gaps(smooth([0, 0, 0], 0.5), [4, 0, 2], [9, 9, 9], 9).tolist() == [1, 5, 3]


def test_empty_own_data_is_filled_in_proportion():
    assert fill_gaps([0.5, 0.3, 0.2], [0, 0, 0], [100] * 3, 50).tolist() == [25, 15, 10]


def test_overfull_clusters_get_nothing_and_exhausted_ones_cannot_be_filled():
    assert fill_gaps([0.5, 0.25, 0.25], [10, 90, 0], [99, 99, 0], 20).tolist() == [20, 0, 0]


def test_empty_clusters_are_covered_first_by_the_largest_p():
    p, n, m = [0.6, 0.1, 0.3], [5, 0, 0], [9, 9, 9]
    assert fill_gaps(p, n, m, 1).tolist() == [0, 0, 1]
    assert fill_gaps(p, n, m, 2).tolist() == [0, 1, 1]


def test_unwanted_clusters_get_rows_only_when_the_wanted_are_exhausted_and_then_level_off():
    p, n, m = [1.0, 0.0, 0.0, 0.0], [0, 0, 3, 0], [5, 9, 9, 1]
    assert fill_gaps(p, n, m, 5).tolist() == [5, 0, 0, 0]
    assert fill_gaps(p, n, m, 9).tolist() == [5, 3, 0, 1]
    np.testing.assert_allclose(water_fill(p, n, m, 10), [5, 3.5, 0.5, 1])


@pytest.mark.parametrize("fill", [fill_gaps, water_fill])
def test_no_budget_adds_nothing_and_a_large_one_adds_everything(fill):
    assert fill([0.5, 0.5], [1, 0], [2, 3], 0).tolist() == [0, 0]
    assert fill([0.5, 0.5], [1, 0], [2, 3], 5).tolist() == [2, 3]
    assert fill([0.5, 0.5], [1, 0], [2, 3], 10**9).tolist() == [2, 3]
    assert fill([0.5, 0.5], [1, 0], [0, 0], 7).tolist() == [0, 0]


def test_weighted_own_rows_may_be_fractions():
    assert fill_gaps([0.5, 0.5], [0.5, 2.25], [9, 9], 4).tolist() == [3, 1]


def test_extreme_probabilities_stay_finite():
    p = np.array([1 - 1e-9, 1e-9, 1e-200, 5e-324])
    a = fill_gaps(p, [10**6, 3, 10**6, 0], [5, 5, 5, 5], 17)
    assert a.tolist() == [5, 5, 5, 2]


def test_a_million_rows_over_a_thousand_clusters_keep_every_guarantee():
    rng = np.random.default_rng(4)
    p = rng.dirichlet(np.full(1000, 0.3))
    n, m = rng.integers(0, 1000, 1000), rng.integers(0, 5000, 1000)
    a = fill_gaps(p, n, m, 10**6)
    assert a.sum() == 10**6
    last = p * np.log1p(1 / np.maximum(n + a - 1, 1e-300))
    following = p * np.log1p(1 / np.maximum(n + a, 1e-300))
    assert last[a > 0].min() >= following[a < m].max()


@pytest.mark.parametrize("fill", [fill_gaps, water_fill])
@pytest.mark.parametrize(
    ("p", "n", "m", "budget", "message"),
    [
        ([0.5, 0.5], [1, 1], [1], 1, "shapes"),
        ([[0.5, 0.5]], [[1, 1]], [[1, 1]], 1, "shapes"),
        ([0.5, 0.4], [1, 1], [1, 1], 1, "sum of 1"),
        ([], [], [], 1, "sum of 1"),
        ([1.5, -0.5], [1, 1], [1, 1], 1, "p: finite"),
        ([0.5, np.nan], [1, 1], [1, 1], 1, "p: finite"),
        ([0.5, 0.5], [1, -1], [1, 1], 1, "n: finite"),
        ([0.5, 0.5], [1, np.inf], [1, 1], 1, "n: finite"),
        ([0.5, 0.5], [1, 1], [1, -1], 1, "m: finite"),
        ([0.5, 0.5], [1, 1], [1, 0.5], 1, "m: whole"),
        ([0.5, 0.5], [1, 1], [1, 1e18], 1, r"m: 1e\+18 rows"),
        ([0.5, 0.5], [1, 1], [1, 1], -1, "budget: at least 0"),
        ([0.5, 0.5], [1, 1], [1, 1], 1.5, "budget: a whole"),
    ],
)
def test_wrong_input_is_refused_by_name(fill, p, n, m, budget, message):
    with pytest.raises(ValueError, match=message):
        fill(p, n, m, budget)


def test_the_gap_table_compares_before_and_after():
    table = gap_table([0.5, 0.5], [3, 1], [0, 2])
    np.testing.assert_allclose(table.before, [0.75, 0.25])
    np.testing.assert_allclose(table.after, [0.5, 0.5])
    np.testing.assert_allclose(table.gap, [-0.25, 0.25])
    assert table.added.tolist() == [0, 2]
    assert table.js_before > table.js_after == 0


def test_the_gap_table_without_rows_has_zero_shares_and_divergence_1():
    table = gap_table([0.5, 0.5], [0, 0], [1, 1])
    assert table.before.tolist() == [0, 0]
    assert (table.js_before, table.js_after) == (1.0, 0.0)
    assert gap_table([0.5, 0.5], [0, 0], [0, 0]).js_after == 1.0
