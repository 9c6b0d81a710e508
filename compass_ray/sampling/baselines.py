"""The selections that COMPASS is compared with, as their papers define them. Pure.

- ``nearest_rows``: nearest to usage, as LESS and RDS+ retrieve.
- ``langsim_rows``: the most similar languages first, by URIEL.
- ``langrank_*``: LangRank, Lin et al., ACL 2019, "Choosing Transfer Languages for Cross-Lingual
  Learning".
- ``HashedNgrams``, ``dsir_*``: DSIR, Xie et al., NeurIPS 2023, "Data Selection for Language Models
  via Importance Resampling".

Every ``*_rows`` takes ``candidates``, the rows of the pool that may be chosen, each once, and
gives at most ``budget`` of them, best first. With equal arguments and an equally seeded generator
the answer is the same, and a larger budget keeps the rows of a smaller one.

Shapes: N rows, C candidates, K clusters, D dimensions, L languages, F features, H hash buckets,
T words. Knows nothing of where rows are stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from compass_ray.errors import UserError
from compass_ray.sampling.picking import gumbel_order
from compass_ray.sampling.similarity import KINDS, TextProfile, mixed, text_blocks, word_hashes

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Distances = Mapping[str, Mapping[str, float]]

_ROWS_AT_ONCE = 16_384


def nearest_rows(
    vectors_ND: NDArray[np.floating[Any]],
    candidates: IntArray,
    prototypes_KD: ArrayLike,
    budget: int,
) -> IntArray:
    """The rows nearest to what users ask: ``score(x) = max_c cos(x, prototype_c)``.

    LESS (Xia et al., ICML 2024) and RDS+ (Ivison et al., 2025, "Large-Scale Data Selection for
    Instruction Tuning") score a row by its similarity to single target examples. The usage
    prototypes of the clusters stand in for those here: K of them instead of every prompt, which
    blurs what is rare within a cluster. Equal scores go to the lower row.

    Args:
        vectors_ND: unit vectors of the pool.
        candidates: rows that may be chosen.
        prototypes_KD: unit mean of the usage vectors of each cluster; zeros where there are none.
        budget: rows to choose.

    Raises:
        UserError: there is no usage at all.
    """
    wanted_KD = np.asarray(prototypes_KD, dtype=np.float32)
    wanted_KD = wanted_KD[wanted_KD.any(axis=1)]
    if not len(wanted_KD):
        raise UserError("strategy nearest: the language has no usage prompts to be near to")
    scores_C = np.empty(len(candidates), dtype=np.float32)
    for start in range(0, len(candidates), _ROWS_AT_ONCE):
        block = slice(start, start + _ROWS_AT_ONCE)
        vectors_BD = vectors_ND[candidates[block]].astype(np.float32)
        scores_C[block] = (vectors_BD @ wanted_KD.T).max(axis=1)
    # The last bits of a product depend on where in the block a row stood.
    scores_C = scores_C.round(6)
    return candidates[np.lexsort((candidates, -scores_C))[:budget]]


def langsim_rows(
    languages_N: NDArray[np.integer[Any]],
    languages: Sequence[str],
    candidates: IntArray,
    distances: Distances,
    budget: int,
    rng: np.random.Generator,
) -> IntArray:
    """Whole languages, the most similar first, the last of them by a random draw.

    COMPASS's baseline LangSim. The distance of a language is the mean of its URIEL distances over
    the kinds that are known; languages of which nothing is known come last, equals by code.

    Args:
        languages_N: index into ``languages`` of each row.
        languages: codes.
        candidates: rows that may be chosen.
        distances: kind → language → distance, as ``similarity.uriel_distances`` gives it.
        budget: rows to choose.
        rng: draws the rows of the last language.
    """
    table_LF = _distance_table(languages, distances)
    known_LF = ~np.isnan(table_LF)
    with np.errstate(invalid="ignore"):
        mean_L = np.where(known_LF, table_LF, 0.0).sum(axis=1) / known_LF.sum(axis=1)
    order_L = np.lexsort((np.array(languages), mean_L))  # NaN sorts last
    return langrank_rows(languages_N, order_L, candidates, budget, rng)


class Ranker(Protocol):
    """Scores rows of ``langrank_features``; a higher score is a better language."""

    def predict(self, data: FloatArray, /) -> Any: ...


LANGRANK_FEATURES = ("word_overlap", "size_ratio", "ttr", "ttr_distance", *KINDS)
# 1: more is better, -1: less is better, 0: says nothing by itself
_PREFERENCE = np.array([1, 1, 0, -1, *(-1 for _ in KINDS)])
# The paper grades the best language 10, the next 9, and all from the eleventh on 0.
_BEST_GRADE = 10
# The authors' settings, but for those that make it repeatable.
_LIGHTGBM = {
    "objective": "lambdarank",
    "num_leaves": 16,
    "learning_rate": 0.1,
    "min_data_in_leaf": 5,
    "seed": 0,
    "deterministic": True,
    "force_row_wise": True,
    "num_threads": 1,
    "verbosity": -1,
}
_TREES = 100


def langrank_features(
    target: TextProfile,
    profiles: Sequence[TextProfile],
    languages: Sequence[str],
    distances: Distances,
) -> FloatArray:
    """LangRank's features of each candidate language, in the order of ``LANGRANK_FEATURES``.

    With T the types, t the type-token ratio and n the rows of the candidate (c) and target (t):
    ``word_overlap = |T_c ∩ T_t| / (|T_c| + |T_t|)``, ``size_ratio = n_c/n_t``, ``ttr = t_c``,
    ``ttr_distance = (1 - t_c/t_t)²``, and the URIEL distances. Subword overlap, which the paper
    uses for translation only, is left out.

    Args:
        target: the target language's rows (own ones, or usage where there are none).
        profiles: the candidates, [L].
        languages: their codes, [L].
        distances: kind → language → distance, as ``similarity.uriel_distances`` gives it.

    Returns:
        float64 [L, F]; NaN where something is not known.
    """
    texts = [
        (
            _ratio(
                len(np.intersect1d(profile.types, target.types, assume_unique=True)),
                len(profile.types) + len(target.types),
            ),
            _ratio(profile.rows, target.rows),
            profile.ttr,
            (1 - profile.ttr / target.ttr) ** 2,
        )
        for profile in profiles
    ]
    return np.hstack([np.reshape(texts, (-1, 4)), _distance_table(languages, distances)])


def fit_langrank(features: ArrayLike, relevance: ArrayLike, groups: Sequence[int]) -> Ranker:
    """Learn to rank languages from measured transfer: LightGBM's LambdaRank, 100 trees.

    Args:
        features: rows of ``langrank_features``, [M, F], target after target.
        relevance: what training on the candidate gained for the target, on any scale, [M]; the
            ranks within a target are what is learned (10 for the best, 0 from the eleventh on).
        groups: number of candidates of each target, summing to M.

    Raises:
        UserError: LightGBM is not there.
    """
    try:
        import lightgbm
    except (ImportError, OSError) as error:  # OSError: without libgomp
        raise UserError(
            f"langrank with transfer scores needs LightGBM, pip install lightgbm ({error})"
        ) from None
    from scipy.stats import rankdata  # slow to import, and every worker loads this module

    per_target = np.split(np.asarray(relevance, dtype=np.float64), np.cumsum(groups)[:-1])
    ranks = np.concatenate([rankdata(-scores, method="min") for scores in per_target])
    grades = np.maximum(_BEST_GRADE + 1 - ranks, 0)
    data = lightgbm.Dataset(np.asarray(features, np.float64), label=grades, group=list(groups))
    ranker: Ranker = lightgbm.train(_LIGHTGBM, data, num_boost_round=_TREES)
    return ranker


def langrank_order(features_LF: FloatArray, ranker: Ranker | None = None) -> IntArray:
    """Languages from best to worst, [L]: by the ranker, or by mean rank over the features.

    For the mean rank, each feature ranks the languages of which it is known, from 0 to 1, in the
    direction in which the paper ranks by it alone (which leaves out ``ttr``).
    """
    if ranker is not None:
        return np.argsort(-np.asarray(ranker.predict(features_LF)), kind="stable")
    from scipy.stats import rankdata

    used = _PREFERENCE != 0
    ranks_LF = rankdata(-_PREFERENCE[used] * features_LF[:, used], axis=0, nan_policy="omit")
    known_LF = ~np.isnan(ranks_LF)
    shares_LF = np.where(known_LF, (ranks_LF - 0.5) / np.maximum(known_LF.sum(axis=0), 1), 0.0)
    with np.errstate(invalid="ignore"):
        mean_L = shares_LF.sum(axis=1) / known_LF.sum(axis=1)
    # Rounded, so that equals are equal whatever the order of the sum.
    return np.argsort(mean_L.round(12), kind="stable")


def langrank_rows(
    languages_N: NDArray[np.integer[Any]],
    order_L: IntArray,
    candidates: IntArray,
    budget: int,
    rng: np.random.Generator,
) -> IntArray:
    """Whole languages in the order of ``langrank_order``, the last of them by a random draw.

    Args:
        languages_N: index of each row's language, of those that ``order_L`` orders.
        order_L: languages from best to worst; one that is not there is not taken.
        candidates: rows that may be chosen.
        budget: rows to choose.
        rng: draws the rows of the last language.
    """
    languages_C = languages_N[candidates]
    taken = [np.empty(0, np.int64)]
    for language in order_L:
        rows = np.sort(candidates[languages_C == language])
        if len(rows) >= budget:
            taken.append(rng.permutation(rows)[:budget])
            break
        taken.append(rows)
        budget -= len(rows)
    return np.concatenate(taken)


@dataclass(frozen=True)
class HashedNgrams:
    """Counts of words and pairs of neighbouring words, hashed into buckets.

    What a word is, and that its hash is the same in every process, is ``similarity``'s doing.
    """

    buckets: int = 10_000

    def counts(self, texts: Sequence[str]) -> sparse.csr_array:
        """One row a text, int32 [N, H]."""
        parts = [sparse.csr_array((0, self.buckets), dtype=np.int32)]
        for block in text_blocks(texts):
            rows, columns = self._ngrams(block)
            ones = np.ones(len(rows), np.int32)
            parts.append(
                sparse.csr_array((ones, (rows, columns)), shape=(len(block), self.buckets))
            )
        return sparse.vstack(parts, format="csr")

    def bag(self, texts: Sequence[str]) -> IntArray:
        """The sum of ``counts`` over the texts, int64 [H]; bags of parts add up."""
        bag_H = np.zeros(self.buckets, np.int64)
        for block in text_blocks(texts):
            bag_H += np.bincount(self._ngrams(block)[1], minlength=self.buckets)
        return bag_H

    def _ngrams(self, texts: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        rows_T, hashes_T = word_hashes(texts)
        same_row = rows_T[1:] == rows_T[:-1]
        # Tripled, so that "a b" and "b a" differ.
        pair_hashes = mixed(hashes_T[:-1] * np.uint64(3) + hashes_T[1:])[same_row]
        hashes = np.concatenate([hashes_T, pair_hashes])
        rows = np.concatenate([rows_T, rows_T[1:][same_row]])
        # 32 bits halve what scipy keeps of the columns.
        return rows.astype(np.int32), (hashes % np.uint64(self.buckets)).astype(np.int32)


def dsir_log_weights(
    counts_NH: sparse.csr_array,
    target_bag_H: ArrayLike,
    raw_bag_H: ArrayLike,
    smoothing: float = 1e-8,
) -> FloatArray:
    """Log importance weight of each row, ``Σ_h count(h) · log((p(h) + ε) / (q(h) + ε))``.

    p and q are the shares of bucket h in the target's and in the raw bag; ε = 1e-8 is the authors'.
    Across languages it sees what they share on the surface: names, numbers, loans.

    Args:
        counts_NH: ``HashedNgrams.counts`` of rows of the pool, a part of it at a time if need be.
        target_bag_H: ``HashedNgrams.bag`` of the usage prompts.
        raw_bag_H: that of all candidates.
        smoothing: ε, over 0.

    Returns:
        float64 [N]; -inf for a row without any n-gram, whose empty sum would beat nearly all.

    Raises:
        UserError: the target's bag is empty.
    """
    target_H, raw_H = (np.asarray(bag, np.float64) for bag in (target_bag_H, raw_bag_H))
    if not target_H.any():
        raise UserError("strategy dsir: the language has no usage prompts to resemble")
    log_ratio_H = np.log(target_H / target_H.sum() + smoothing)
    log_ratio_H -= np.log(raw_H / max(raw_H.sum(), 1.0) + smoothing)
    weights_N = np.asarray(counts_NH @ log_ratio_H, dtype=np.float64)
    weights_N[np.diff(counts_NH.indptr) == 0] = -np.inf
    return weights_N


def dsir_rows(
    log_weights_C: FloatArray, candidates: IntArray, budget: int, rng: np.random.Generator
) -> IntArray:
    """Rows resampled by importance without replacement: the top of ``log w + Gumbel noise``.

    Args:
        log_weights_C: ``dsir_log_weights`` of the candidates.
        candidates: rows that may be chosen.
        budget: rows to choose.
        rng: draws the noise.
    """
    return candidates[gumbel_order(log_weights_C.astype(np.float32), 1.0, rng)[:budget]]


def _distance_table(languages: Sequence[str], distances: Distances) -> FloatArray:
    rows = [[distances[kind].get(language, np.nan) for kind in KINDS] for language in languages]
    return np.array(rows, dtype=np.float64).reshape(-1, len(KINDS))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
