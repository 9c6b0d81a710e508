from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from compass_ray.config import STRATEGIES, Sampling
from compass_ray.sampling.allocation import fill_gaps
from compass_ray.sampling.distribution import smooth
from compass_ray.sampling.pool import Pool, Target
from compass_ray.sampling.similarity import KINDS, TextProfile
from compass_ray.sampling.strategies import select

LANGUAGES = ("de", "en", "sw")
K = 6


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def pool() -> Pool:
    rng = np.random.default_rng(7)
    clusters = rng.integers(K, size=900).astype(np.int32)
    centroids = unit(rng.normal(size=(K, 16)))
    vectors = unit(centroids[clusters] + rng.normal(scale=0.3, size=(900, 16)))
    return Pool(
        vectors_ND=vectors.astype(np.float16),
        clusters_N=clusters,
        languages_N=rng.integers(3, size=900).astype(np.int16),
        languages=LANGUAGES,
        centroids_KD=centroids.astype(np.float32),
    )


@pytest.fixture(scope="module")
def target(pool: Pool) -> Target:
    prototypes = pool.centroids_KD.copy()
    prototypes[5] = 0
    return Target(
        language="sw",
        usage_K=np.array([0, 5, 20, 40, 35, 0.0]),
        own_K=np.array([30, 30, 0, 0, 10, 0]),
        prototypes_KD=prototypes,
        distances={kind: {"de": 0.3, "en": 0.5, "sw": 0.0} for kind in KINDS},
        profile=TextProfile.of(["moja mbili tatu"]),
        profiles=[TextProfile.of([text]) for text in ("eins zwei", "moja two", "moja mbili")],
        log_weights_N=np.linspace(-5, 5, 900),
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_keeps_the_contract(pool: Pool, target: Target, strategy: str) -> None:
    settings = Sampling(strategy=strategy, budget=120)
    chosen = select(pool, target, settings, seed=1)
    again = select(pool, target, settings, seed=1)
    assert chosen.rows_B.tolist() == again.rows_B.tolist()
    assert len(set(chosen.rows_B.tolist())) == len(chosen.rows_B)
    assert not (pool.languages_N[chosen.rows_B] == LANGUAGES.index("sw")).any()
    assert len(chosen.scores_B) == len(chosen.rows_B)
    assert np.isfinite(chosen.scores_B).all()
    assert chosen.gaps.added.sum() == len(chosen.rows_B)
    assert (
        chosen.gaps.added.tolist()
        == np.bincount(pool.clusters_N[chosen.rows_B], minlength=K).tolist()
    )


def test_how_many_rows_each_strategy_takes(pool: Pool, target: Target) -> None:
    taken = {
        strategy: len(select(pool, target, Sampling(strategy=strategy, budget=120), 0).rows_B)
        for strategy in STRATEGIES
    }
    others = int((pool.languages_N != 2).sum())
    expected = dict.fromkeys(STRATEGIES, 120) | {"all": others, "target_only": 0}
    assert taken == expected


def test_compass_allocates_as_fill_gaps_does(pool: Pool, target: Target) -> None:
    settings = Sampling(budget=120, max_similarity=1.0)
    p = smooth(target.usage_K, settings.smoothing)
    expected = fill_gaps(p, target.own_K, pool.available("sw").sum(axis=1), 120)
    assert select(pool, target, settings, 0).gaps.added.tolist() == expected.tolist()


def test_compass_brings_the_subset_nearer_to_usage_than_random(pool: Pool, target: Target) -> None:
    after = {
        strategy: select(pool, target, Sampling(strategy=strategy, budget=120), 0).gaps.js_after
        for strategy in ("compass", "random")
    }
    assert after["compass"] < 0.5 * after["random"]


def test_a_larger_budget_keeps_the_rows_of_the_smaller_one(pool: Pool, target: Target) -> None:
    small = set(select(pool, target, Sampling(budget=60), 0).rows_B.tolist())
    large = set(select(pool, target, Sampling(budget=90), 0).rows_B.tolist())
    assert small < large


def test_refused_duplicates_send_the_budget_elsewhere(pool: Pool, target: Target) -> None:
    vectors = pool.vectors_ND.copy()
    vectors[pool.clusters_N == 3] = pool.centroids_KD[3]  # one sentence, many times over
    copies = Pool(vectors, pool.clusters_N, pool.languages_N, pool.languages, pool.centroids_KD)
    chosen = select(copies, target, Sampling(budget=120), 0)
    assert chosen.gaps.added[3] == 1
    assert len(chosen.rows_B) == 120
    assert chosen.duplicates > 0


def test_what_cannot_be_spent_is_told(pool: Pool, target: Target) -> None:
    chosen = select(pool, target, Sampling(budget=5000, max_similarity=1.0), 0)
    assert len(chosen.rows_B) == (pool.languages_N != 2).sum()
    assert chosen.unspent == 5000 - len(chosen.rows_B)


def test_rows_near_the_prototype_come_first_when_the_temperature_is_low(
    pool: Pool, target: Target
) -> None:
    chosen = select(pool, target, Sampling(budget=60, temperature=1e-4, max_similarity=1.0), 0)
    mine = pool.clusters_N[chosen.rows_B] == 3
    candidates = pool.candidates(3, "sw")
    scores = pool.vectors_ND[candidates].astype(np.float32) @ target.prototypes_KD[3]
    best = np.sort(scores)[::-1][: mine.sum()]
    assert np.sort(chosen.scores_B[mine])[::-1] == pytest.approx(best, abs=1e-6)


def test_a_cluster_without_usage_is_scored_by_its_centroid(pool: Pool, target: Target) -> None:
    chosen = select(pool, target, Sampling(strategy="all"), 0)
    mine = pool.clusters_N[chosen.rows_B] == 5
    expected = pool.vectors_ND[chosen.rows_B[mine]].astype(np.float32) @ pool.centroids_KD[5]
    assert chosen.scores_B[mine] == pytest.approx(expected, abs=1e-5)


def test_langsim_takes_the_nearest_language_first(pool: Pool, target: Target) -> None:
    chosen = select(pool, target, Sampling(strategy="langsim", budget=120), 0)
    assert set(pool.languages_N[chosen.rows_B].tolist()) == {LANGUAGES.index("de")}


def test_langrank_goes_by_vocabulary_where_distances_are_equal(pool: Pool, target: Target) -> None:
    equal = {kind: dict.fromkeys(LANGUAGES, 0.4) for kind in KINDS}
    settings = Sampling(strategy="langrank", budget=120)
    chosen = select(pool, replace(target, distances=equal), settings, 0)
    assert set(pool.languages_N[chosen.rows_B].tolist()) == {LANGUAGES.index("en")}


def test_uniform_takes_the_same_from_every_cluster(pool: Pool, target: Target) -> None:
    chosen = select(pool, target, Sampling(strategy="uniform", budget=120), 0)
    assert chosen.gaps.added.tolist() == [20] * K


def test_no_language_gives_more_than_its_share_and_the_allotment_stays(
    pool: Pool, target: Target
) -> None:
    free = select(pool, target, Sampling(budget=120, max_similarity=1.0), 0)
    bound = select(pool, target, Sampling(budget=120, max_similarity=1.0, max_share=0.5), 0)
    by_language = np.bincount(pool.languages_N[bound.rows_B], minlength=3)
    assert by_language.tolist() == [60, 60, 0]
    # Both languages have rows enough in every cluster, so the limit costs no divergence.
    assert bound.gaps.added.tolist() == free.gaps.added.tolist()
    assert len(set(bound.rows_B.tolist())) == 120


def test_a_share_that_two_languages_cannot_fill_leaves_budget_unspent(
    pool: Pool, target: Target
) -> None:
    chosen = select(pool, target, Sampling(budget=120, max_share=0.3), 0)
    assert np.bincount(pool.languages_N[chosen.rows_B], minlength=3).tolist() == [36, 36, 0]
    assert chosen.unspent == 48


@pytest.mark.parametrize(("share", "budget", "each"), [(0.29, 100, 29), (0.3, 2, 1)])
def test_a_share_is_whole_rows_and_at_least_one(
    pool: Pool, target: Target, share: float, budget: int, each: int
) -> None:
    chosen = select(pool, target, Sampling(budget=budget, max_share=share), 0)
    assert np.bincount(pool.languages_N[chosen.rows_B], minlength=3).tolist() == [each, each, 0]


def test_shares_hold_when_near_duplicates_are_refused(pool: Pool, target: Target) -> None:
    vectors = pool.vectors_ND.copy()
    vectors[(pool.clusters_N == 3) & (pool.languages_N == 0)] = pool.centroids_KD[3]
    chosen = select(
        replace(pool, vectors_ND=vectors), target, Sampling(budget=120, max_share=0.5), 0
    )
    assert np.bincount(pool.languages_N[chosen.rows_B], minlength=3).tolist() == [60, 60, 0]
    mine = (pool.clusters_N[chosen.rows_B] == 3) & (pool.languages_N[chosen.rows_B] == 0)
    assert mine.sum() <= 1


@pytest.mark.parametrize("strategy", ["compass", "uniform"])
def test_rows_too_far_from_usage_are_never_picked(
    pool: Pool, target: Target, strategy: str
) -> None:
    settings = Sampling(strategy=strategy, budget=5000, max_similarity=1.0, min_similarity=0.7)
    chosen = select(pool, target, settings, 0)
    vectors = pool.vectors_ND[chosen.rows_B].astype(np.float32)
    clusters = pool.clusters_N[chosen.rows_B]
    own = (vectors * target.prototypes_KD[clusters]).sum(axis=1)
    nearest = (vectors @ target.prototypes_KD.T).max(axis=1)
    cosine = np.where(target.prototypes_KD[clusters].any(axis=1), own, nearest)
    assert cosine.min() >= 0.7
    assert chosen.far > 0
    assert len(chosen.rows_B) + chosen.far == chosen.available
    assert chosen.unspent == 5000 - len(chosen.rows_B)


def test_the_zeros_of_a_cluster_without_usage_are_near_to_nothing(
    pool: Pool, target: Target
) -> None:
    prototypes = np.zeros_like(target.prototypes_KD)
    prototypes[0] = pool.centroids_KD[1]
    settings = Sampling(budget=5000, max_similarity=1.0, min_similarity=0.0)
    chosen = select(pool, replace(target, prototypes_KD=prototypes), settings, 0)
    mine = pool.candidates(5, "sw")
    near = pool.vectors_ND[mine].astype(np.float32) @ prototypes[0] >= 0
    assert 0 < near.sum() < len(mine)
    picked = chosen.rows_B[pool.clusters_N[chosen.rows_B] == 5]
    assert set(picked) == set(mine[near])


@pytest.mark.parametrize(("least", "taken"), [(0.0, 120), (0.1, 0)])
def test_where_nobody_asks_anything_every_row_is_as_far(
    pool: Pool, target: Target, least: float, taken: int
) -> None:
    nobody = replace(target, usage_K=np.zeros(K), prototypes_KD=np.zeros_like(pool.centroids_KD))
    chosen = select(pool, nobody, Sampling(budget=120, min_similarity=least), 0)
    assert len(chosen.rows_B) == taken


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_strategy_picks_a_contaminated_row(pool: Pool, target: Target, strategy: str) -> None:
    repeats = np.random.default_rng(3).random(900) < 0.5
    chosen = select(
        replace(pool, contaminated_N=repeats), target, Sampling(strategy=strategy, budget=200), 0
    )
    assert not repeats[chosen.rows_B].any()
    assert chosen.contaminated == (repeats & (pool.languages_N != 2)).sum()
    assert chosen.available == (~repeats & (pool.languages_N != 2)).sum()


@pytest.mark.parametrize("strategy", sorted(set(STRATEGIES) - {"all", "target_only"}))
def test_a_budget_in_tokens_takes_the_most_rows_it_pays_for(
    pool: Pool, target: Target, strategy: str
) -> None:
    lengths = np.random.default_rng(4).integers(5, 60, size=900).astype(np.int32)
    measured = replace(pool, tokens_N=lengths)
    in_tokens = Sampling(strategy=strategy, budget=2500, budget_unit="tokens")
    chosen = select(measured, target, in_tokens, 0)
    assert chosen.tokens == lengths[chosen.rows_B].sum() <= 2500
    assert chosen.unspent == 2500 - chosen.tokens
    rows = len(chosen.rows_B)
    same = select(pool, target, Sampling(strategy=strategy, budget=rows), 0)
    assert sorted(same.rows_B) == sorted(chosen.rows_B)
    more = select(pool, target, Sampling(strategy=strategy, budget=rows + 1), 0)
    assert lengths[more.rows_B].sum() > 2500


def test_a_budget_in_tokens_too_small_for_any_row_buys_none(pool: Pool, target: Target) -> None:
    measured = replace(pool, tokens_N=np.full(900, 50, np.int32))
    chosen = select(measured, target, Sampling(budget=49, budget_unit="tokens"), 0)
    assert len(chosen.rows_B) == 0
    assert chosen.unspent == 49


def test_a_learned_ranker_decides_where_there_is_one(pool: Pool, target: Target) -> None:
    class German:
        def predict(self, data: np.ndarray) -> np.ndarray:
            return np.array([1.0, 0.0, 0.0])

    settings = Sampling(strategy="langrank", budget=120)
    chosen = select(pool, replace(target, ranker=German()), settings, 0)
    assert set(pool.languages_N[chosen.rows_B].tolist()) == {LANGUAGES.index("de")}
