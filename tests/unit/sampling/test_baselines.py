from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import pytest
from scipy import sparse

from compass_ray.errors import UserError
from compass_ray.sampling import similarity
from compass_ray.sampling.baselines import (
    LANGRANK_FEATURES,
    HashedNgrams,
    dsir_log_weights,
    dsir_rows,
    fit_langrank,
    langrank_features,
    langrank_order,
    langrank_rows,
    langsim_rows,
    nearest_rows,
)
from compass_ray.sampling.similarity import KINDS, TextProfile

LANGUAGES = ("de", "en", "sw", "zu")
N = 300
_rng = np.random.default_rng(11)
POOL_LANGUAGES = _rng.integers(len(LANGUAGES), size=N).astype(np.int16)
SWAHILI, ZULU, ENGLISH = (LANGUAGES.index(code) for code in ("sw", "zu", "en"))
CANDIDATES = np.flatnonzero(POOL_LANGUAGES != SWAHILI)
VECTORS = _rng.normal(size=(N, 8))
VECTORS = (VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)).astype(np.float16)
PROTOTYPES = np.vstack([np.eye(8, dtype=np.float32)[:2], np.zeros((1, 8), np.float32)])
LOG_WEIGHTS = _rng.normal(scale=5, size=N)
DISTANCES = {
    kind: {"de": 0.9, "en": 0.8, "sw": 0.0, "zu": 0.2 if kind == "genetic" else np.nan}
    for kind in KINDS
}

RowChooser = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]
ROW_CHOOSERS: dict[str, RowChooser] = {
    "nearest": lambda rows, budget, rng: nearest_rows(VECTORS, rows, PROTOTYPES, budget),
    "langsim": lambda rows, budget, rng: langsim_rows(
        POOL_LANGUAGES, LANGUAGES, rows, DISTANCES, budget, rng
    ),
    "langrank": lambda rows, budget, rng: langrank_rows(
        POOL_LANGUAGES, np.array([3, 1, 0, 2]), rows, budget, rng
    ),
    "dsir": lambda rows, budget, rng: dsir_rows(LOG_WEIGHTS[rows], rows, budget, rng),
}


def generator(seed: int = 5) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("budget", [0, 1, 70, 1000])
@pytest.mark.parametrize("choose", ROW_CHOOSERS.values(), ids=ROW_CHOOSERS)
def test_every_row_chooser_keeps_the_contract(choose: RowChooser, budget: int) -> None:
    chosen = choose(CANDIDATES, budget, generator())
    assert chosen.dtype == np.int64
    assert len(chosen) == min(budget, len(CANDIDATES))
    assert len(np.unique(chosen)) == len(chosen)
    assert np.isin(chosen, CANDIDATES).all()
    assert chosen.tolist() == choose(CANDIDATES, budget, generator()).tolist()
    more = choose(CANDIDATES, budget + 25, generator())
    assert set(chosen.tolist()) <= set(more.tolist())


@pytest.mark.parametrize("choose", ROW_CHOOSERS.values(), ids=ROW_CHOOSERS)
def test_without_candidates_nothing_is_chosen(choose: RowChooser) -> None:
    chosen = choose(np.empty(0, np.int64), 10, generator())
    assert chosen.dtype == np.int64
    assert len(chosen) == 0


@pytest.mark.parametrize("name", ["langsim", "langrank", "dsir"])
def test_another_seed_draws_other_rows(name: str) -> None:
    drawn = [ROW_CHOOSERS[name](CANDIDATES, 20, generator(seed)).tolist() for seed in (1, 2)]
    assert drawn[0] != drawn[1]


def test_nearest_takes_the_rows_of_highest_cosine_to_any_prototype() -> None:
    chosen = nearest_rows(VECTORS, CANDIDATES, PROTOTYPES, 10)
    scores = VECTORS[CANDIDATES].astype(np.float32)[:, :2].max(axis=1)
    assert chosen.tolist() == CANDIDATES[np.argsort(-scores)[:10]].tolist()


def test_nearest_gives_the_lower_row_of_equals() -> None:
    same = np.tile(VECTORS[:1], (9, 1))
    assert nearest_rows(same, np.array([7, 2, 5]), PROTOTYPES, 2).tolist() == [2, 5]


def test_nearest_is_not_drawn_to_clusters_without_usage() -> None:
    away = -np.eye(8, dtype=np.float16)[:2]  # cosine -1 and 0 to usage, 0 to the zero prototype
    vectors = np.vstack([away, np.full((1, 8), 8**-0.5, np.float16)])
    assert nearest_rows(vectors, np.arange(3), PROTOTYPES, 1).tolist() == [2]


def test_nearest_without_usage_says_so() -> None:
    with pytest.raises(UserError, match="no usage prompts"):
        nearest_rows(VECTORS, CANDIDATES, np.zeros((3, 8)), 10)


def test_langsim_takes_whole_languages_from_the_most_similar_on() -> None:
    zulu = np.flatnonzero(POOL_LANGUAGES == ZULU)
    english = np.flatnonzero(POOL_LANGUAGES == ENGLISH)
    budget = len(zulu) + 7
    chosen = langsim_rows(POOL_LANGUAGES, LANGUAGES, CANDIDATES, DISTANCES, budget, generator())
    assert chosen[: len(zulu)].tolist() == zulu.tolist()
    assert np.isin(chosen[len(zulu) :], english).all()


def test_langsim_puts_languages_of_which_nothing_is_known_last() -> None:
    unknown = {kind: {**DISTANCES[kind], "zu": np.nan} for kind in KINDS}
    chosen = langsim_rows(POOL_LANGUAGES, LANGUAGES, CANDIDATES, unknown, N, generator())
    order = list(dict.fromkeys(LANGUAGES[code] for code in POOL_LANGUAGES[chosen]))
    assert order == ["en", "de", "zu"]


def test_langrank_features_of_two_small_corpora() -> None:
    target = TextProfile.of(["moja mbili tatu", "nne tano moja"])  # 5 types of 6 tokens
    other = TextProfile.of(["moja mbili", "seven moja", "", ""])  # 3 types of 4 tokens
    features = langrank_features(target, [other], ["zu"], DISTANCES)
    named = dict(zip(LANGRANK_FEATURES, features[0].tolist(), strict=True))
    assert named["word_overlap"] == pytest.approx(2 / 8)
    assert named["size_ratio"] == pytest.approx(4 / 2)
    assert named["ttr"] == pytest.approx(3 / 4)
    assert named["ttr_distance"] == pytest.approx((1 - (3 / 4) / (5 / 6)) ** 2)
    assert named["genetic"] == 0.2
    assert np.isnan(named["featural"])


def test_langrank_features_of_an_empty_corpus_are_unknown() -> None:
    empty, other = TextProfile.of([]), TextProfile.of(["moja"])
    for target, candidate in ((empty, other), (other, empty), (empty, empty)):
        features = langrank_features(target, [candidate], ["zu"], DISTANCES)
        assert np.isnan(features[0, LANGRANK_FEATURES.index("ttr_distance")])


def test_langrank_by_mean_rank_on_a_table_ranked_by_hand() -> None:
    # Ranks (1 is best) of the rows, feature by feature:
    table = {
        "word_overlap": [0.1, 0.4, 0.2],  # 3 1 2
        "size_ratio": [9.0, 1.0, 3.0],  # 1 3 2
        "ttr": [0.9, 0.1, 0.5],  # not ranked
        "ttr_distance": [0.5, 0.0, 0.3],  # 3 1 2
        "genetic": [1.0, 0.1, 0.9],  # 3 1 2
        "geographic": [0.3, 0.2, 0.1],  # 3 2 1
    }
    unknown = [np.nan] * 3
    features = np.array([table.get(name, unknown) for name in LANGRANK_FEATURES]).T
    assert langrank_order(features).tolist() == [1, 2, 0]  # mean ranks 13/5, 8/5, 9/5


def test_langrank_ranks_a_language_by_what_is_known_of_it() -> None:
    features = np.full((3, len(LANGRANK_FEATURES)), np.nan)
    features[:, LANGRANK_FEATURES.index("genetic")] = [0.5, np.nan, 0.1]
    assert langrank_order(features).tolist() == [2, 0, 1]


def test_langrank_learns_which_feature_carries_transfer() -> None:
    pytest.importorskip("lightgbm")
    rng = np.random.default_rng(3)
    features = rng.uniform(size=(20 * 12, len(LANGRANK_FEATURES)))
    # Against what mean rank would do: transfer grows with geographic distance.
    deciding = LANGRANK_FEATURES.index("geographic")
    ranker = fit_langrank(features, 60 * features[:, deciding] - 20, [12] * 20)
    new = rng.uniform(size=(12, len(LANGRANK_FEATURES)))
    by_truth = np.argsort(-new[:, deciding])
    learned = langrank_order(new, ranker)
    assert set(learned[:3].tolist()) <= set(by_truth[:5].tolist())
    assert set(learned[-3:].tolist()) <= set(by_truth[-5:].tolist())
    again = fit_langrank(features, 60 * features[:, deciding] - 20, [12] * 20)
    assert langrank_order(new, again).tolist() == learned.tolist()


def test_langrank_without_lightgbm_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(UserError, match="pip install lightgbm"):
        fit_langrank(np.zeros((2, 3)), [1, 0], [2])


def test_ngram_counts_are_words_and_pairs_within_a_text() -> None:
    counts = HashedNgrams().counts(["moja mbili moja", "", "moja"])
    assert counts.shape == (3, 10_000)
    assert counts.dtype == np.int32
    assert counts.sum(axis=1).tolist() == [5, 0, 1]
    assert counts[[0], :].max() == 2


def test_pairs_keep_their_order() -> None:
    first, second = HashedNgrams(2**20).counts(["moja mbili", "mbili moja"]).toarray()
    assert np.minimum(first, second).sum() == 2


def test_bags_and_counts_do_not_depend_on_how_texts_are_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = [f"neno {i} la {i % 7}" for i in range(60)]
    ngrams = HashedNgrams(500)
    whole = ngrams.counts(texts)
    monkeypatch.setattr(similarity, "_BLOCK_CHARACTERS", 64)
    assert (ngrams.counts(texts) != whole).nnz == 0
    assert ngrams.bag(texts).tolist() == whole.sum(axis=0).tolist()
    assert (ngrams.bag(texts[:20]) + ngrams.bag(texts[20:])).tolist() == whole.sum(axis=0).tolist()
    assert ngrams.counts([]).shape == (0, 500)
    assert ngrams.bag([]).sum() == 0


def test_dsir_log_weights_of_a_toy_computed_by_hand() -> None:
    counts = sparse.csr_array(np.array([[2, 1, 0], [0, 0, 4], [0, 0, 0]], dtype=np.int32))
    weights = dsir_log_weights(counts, target_bag_H=[3, 1, 0], raw_bag_H=[1, 1, 2])
    # log(¾ / ¼) twice and log(¼ / ¼) once; four times log(0 / ½); nothing to go by
    expected = [2 * np.log(3), 4 * (np.log(1e-8) - np.log(0.5)), -np.inf]
    assert weights == pytest.approx(expected, abs=1e-5)


def test_dsir_prefers_rows_of_the_topic_that_users_ask_about() -> None:
    rng = np.random.default_rng(0)
    common = [f"common{i}" for i in range(20)]
    topics = [[f"{name}{i}" for i in range(60)] for name in ("cook", "sport")]

    def prompt(topic: int) -> str:
        return " ".join([*rng.choice(topics[topic], 6), *rng.choice(common, 6)])

    pool = [prompt(i % 2) for i in range(2000)]
    usage = [prompt(0) for _ in range(150)]
    ngrams = HashedNgrams()
    weights = dsir_log_weights(ngrams.counts(pool), ngrams.bag(usage), ngrams.bag(pool))
    chosen = dsir_rows(weights, np.arange(2000), 400, generator())
    assert (chosen % 2 == 0).mean() > 0.95
    assert len(set(chosen.tolist())) == 400


def test_dsir_takes_rows_without_words_last() -> None:
    ngrams = HashedNgrams()
    pool = ["?!", "moja mbili", "...", "tatu nne"]
    weights = dsir_log_weights(ngrams.counts(pool), ngrams.bag(["moja"]), ngrams.bag(pool))
    assert set(dsir_rows(weights, np.arange(4), 2, generator()).tolist()) == {1, 3}


def test_dsir_samples_in_proportion_to_the_weights() -> None:
    weights = np.log(np.array([0.6, 0.3, 0.1]))
    first = [int(dsir_rows(weights, np.arange(3), 1, generator(seed))[0]) for seed in range(2000)]
    assert np.bincount(first) / 2000 == pytest.approx([0.6, 0.3, 0.1], abs=0.04)


def test_dsir_without_usage_says_so() -> None:
    with pytest.raises(UserError, match="no usage prompts"):
        dsir_log_weights(sparse.csr_array((1, 4)), np.zeros(4), np.ones(4))
