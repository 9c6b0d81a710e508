from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from compass_ray.continual.drift import (
    NOVELTY_PART,
    RESAMPLES,
    Located,
    Pooled,
    calibrated_limits,
    detect,
    novelty_limit,
)
from compass_ray.sampling.distribution import js_divergence

K = 20


def located(
    rng: np.random.Generator, size: int, p: np.ndarray, shift: float = 0.0, weight: float = 1.0
) -> Located:
    return Located(
        clusters_N=rng.choice(len(p), size, p=p).astype(np.int32),
        distances_N=(rng.normal(size=size) + shift).astype(np.float32),
        weights_N=np.full(size, weight),
    )


def weighted(plain: Located, weights: float | np.ndarray) -> Located:
    weights_N = np.broadcast_to(np.asarray(weights, np.float64), len(plain))
    return Located(plain.clusters_N, plain.distances_N, weights_N)


def prompts(counts_K: np.ndarray) -> Located:
    clusters = np.repeat(np.arange(len(counts_K)), counts_K).astype(np.int32)
    return Located(clusters, np.ones(len(clusters), np.float32), np.ones(len(clusters)))


def test_a_stable_stream_alarms_at_alpha_though_the_reference_is_as_small_as_the_window() -> None:
    rng = np.random.default_rng(7)
    p = rng.dirichlet(np.full(K, 0.5))
    trials, alpha = 200, 0.1
    reports = [
        detect(located(rng, 200, p), located(rng, 200, p), K, alpha=alpha, seed=trial)
        for trial in range(trials)
    ]
    for alarms in (sum(r.moved for r in reports), sum(r.novel for r in reports)):
        assert alarms <= binom.isf(1e-4, trials, alpha * (1 - NOVELTY_PART))
    assert sum(r.moved for r in reports) >= binom.ppf(1e-4, trials, alpha / 3)
    assert sum(r.drifted for r in reports) <= binom.isf(1e-4, trials, alpha)


def test_a_threshold_that_takes_the_reference_for_the_truth_would_alarm_far_more_often() -> None:
    rng = np.random.default_rng(8)
    p = rng.dirichlet(np.full(K, 0.5))
    one_sample, two_sample = 0, 0
    for trial in range(60):
        reference, window = rng.multinomial(200, p), rng.multinomial(200, p)
        found = js_divergence(reference, window)
        resamples = rng.multinomial(200, reference / 200, size=200)
        naive = np.quantile([js_divergence(reference, r) for r in resamples], 0.95)
        one_sample += found > naive
        limits = calibrated_limits(Pooled.of(prompts(reference), prompts(window)), 0.05, trial)
        two_sample += found > limits.divergence
    assert one_sample > 18 > 9 >= two_sample


def test_a_tenth_of_the_usage_moving_to_one_cluster_is_seen() -> None:
    rng = np.random.default_rng(9)
    p = rng.dirichlet(np.full(K, 1.0))
    moved = 0.9 * p
    moved[3] += 0.1
    seen = [detect(located(rng, 1000, p), located(rng, 500, moved), K, seed=t) for t in range(20)]
    assert sum(report.moved for report in seen) >= 19
    assert sum(report.largest_move > report.largest_threshold for report in seen) >= 19
    assert all(report.moves[0].cluster == 3 for report in seen if report.moved)


def test_the_moves_make_up_the_divergence() -> None:
    rng = np.random.default_rng(10)
    p, q = rng.dirichlet(np.full(K, 1.0), 2)
    report = detect(located(rng, 300, p), located(rng, 300, q), K, moves=K)
    assert sum(move.bits for move in report.moves) == pytest.approx(report.divergence)
    assert sum(move.after for move in report.moves) == pytest.approx(1.0)


def test_prompts_far_from_every_centroid_are_novel_though_the_histogram_stays() -> None:
    rng = np.random.default_rng(11)
    p = np.full(K, 1 / K)
    reference = located(rng, 500, p)
    window = Located(reference.clusters_N, reference.distances_N + 3, reference.weights_N)
    report = detect(reference, window, K)
    assert report.divergence == 0 and not report.moved
    assert report.novel and report.drifted
    assert report.novel_share > 0.5 > report.novel_threshold


def test_novelty_limit_is_exact_for_any_distribution_of_distances() -> None:
    rng = np.random.default_rng(12)
    alpha, size, trials = 0.05, 100, 1000
    above = 0
    for _ in range(trials):
        cutoff, most = novelty_limit(rng.exponential(size=150), size, alpha)
        above += (rng.exponential(size=size) > cutoff).sum() > most
    assert above <= binom.isf(1e-4, trials, alpha)
    # Counts are whole, so the rate is below alpha; but not by more than a few counts are worth.
    assert above >= binom.ppf(1e-4, trials, alpha / 3)


@pytest.mark.parametrize("weight", [7.5, 1e-170, 1e160])
def test_equal_weights_count_as_none(weight: float) -> None:
    rng = np.random.default_rng(13)
    p, q = rng.dirichlet(np.full(K, 1.0), 2)
    reference, window = located(rng, 300, p), located(rng, 200, q)
    plain = detect(reference, window, K)
    heavy = detect(weighted(reference, weight), weighted(window, weight), K)
    assert heavy.moved == plain.moved
    for name in ("divergence", "threshold", "largest_move", "largest_threshold"):
        assert getattr(heavy, name) == pytest.approx(getattr(plain, name))


def test_a_stable_stream_of_weighted_prompts_alarms_at_alpha_too() -> None:
    """Counting a window as so many whole prompts as its weights are worth gave 13 alarms."""
    rng = np.random.default_rng(16)
    k, trials, alpha, moved = 100, 60, 0.03, 0

    def counted(size: int) -> Located:
        # Request counts: most prompts were asked once, a few a thousand times.
        plain = located(rng, size, np.full(k, 1 / k))
        return weighted(plain, rng.zipf(2.2, size).clip(max=10_000))

    for trial in range(trials):
        moved += detect(counted(200), counted(200), k, alpha=alpha, seed=trial).moved
    assert 0 < moved <= binom.isf(1e-4, trials, alpha * (1 - NOVELTY_PART))


def test_weighted_prompts_that_move_are_seen() -> None:
    rng = np.random.default_rng(17)
    p = rng.dirichlet(np.full(K, 1.0))
    moved = 0.6 * p
    moved[3] += 0.4
    for trial in range(5):
        reference = weighted(located(rng, 400, p), rng.uniform(0.5, 4, 400))
        window = weighted(located(rng, 300, moved), rng.uniform(0.5, 4, 300))
        assert detect(reference, window, K, seed=trial).moved


def test_a_fixed_threshold_is_used_as_given() -> None:
    rng = np.random.default_rng(14)
    p, q = rng.dirichlet(np.full(K, 1.0), 2)
    reference, window = located(rng, 300, p), located(rng, 300, q)
    divergence = detect(reference, window, K).divergence
    assert detect(reference, window, K, threshold=divergence * 0.99).moved
    report = detect(reference, window, K, threshold=divergence)
    assert report.threshold == divergence and not report.moved


def test_an_alpha_too_small_for_the_resamples_never_alarms_by_chance() -> None:
    pooled = Pooled.of(prompts(np.array([5, 5])), prompts(np.array([5, 5])))
    assert calibrated_limits(pooled, 0.5 / (RESAMPLES + 1)).divergence == np.inf


def test_equal_input_gives_equal_answers_and_an_empty_window_none() -> None:
    rng = np.random.default_rng(15)
    p = rng.dirichlet(np.full(K, 1.0))
    reference, window = located(rng, 100, p), located(rng, 80, p)
    assert detect(reference, window, K) == detect(reference, window, K)
    with pytest.raises(ValueError, match="need prompts"):
        detect(reference, located(rng, 0, p), K)
