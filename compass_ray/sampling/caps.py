"""Gap filling when no source language may give more than its share: exact, as without. Pure.

Cluster c can take ``x(c, l) ≤ m(c, l)`` rows of language l, each language gives at most
``most(l)`` rows in all, and ``a(c) = Σ_l x(c, l)`` is to minimise the divergence of
``allocation``. What the clusters S can take together is ``f(S) = Σ_l min(most(l), m(S, l))``, a
submodular function, so the problem is a separable concave one over a polymatroid. Groenevelt's
decomposition (1991, "Two algorithms for maximizing a separable concave function over a polymatroid
feasible region") solves it exactly in integers: fill without the languages' limits; where some
set of clusters then takes more than it can, the worst such set takes exactly ``f(S)``, and the
set and the rest are two smaller problems of the same kind. A minimum cut finds the set.

Shapes: K clusters, L languages.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from compass_ray.sampling.allocation import fill_gaps

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


def fill_gaps_capped(
    p_K: FloatArray, n_K: FloatArray, m_KL: IntArray, most_L: IntArray, budget: int
) -> IntArray:
    """``fill_gaps`` under the languages' limits.

    Args:
        p_K: target distribution, summing to 1.
        n_K: own rows.
        m_KL: rows available of each language in each cluster.
        most_L: rows that a language may give in all.
        budget: rows to add; as many as can be given where that is fewer.

    Returns:
        int64 [K], the rows to add to each cluster; ``split`` says of which languages.
    """
    added_K = np.zeros(len(p_K), dtype=np.int64)
    problems = [(np.arange(len(p_K)), most_L, budget)]
    while problems:
        clusters, limit_L, rows = problems.pop()
        m_SL = m_KL[clusters]
        alone_S = np.minimum(m_SL, limit_L).sum(axis=1)
        rows = min(rows, _together(m_SL, limit_L))
        p_S = p_K[clusters]
        p_S = p_S / p_S.sum() if p_S.sum() > 0 else np.full(len(p_S), 1 / len(p_S))
        filled_S = fill_gaps(p_S, n_K[clusters], alone_S, rows)
        tight_S = _overfull(filled_S, m_SL, limit_L)
        if not tight_S.any():
            added_K[clusters] = filled_S
            continue
        taken = _together(m_SL[tight_S], limit_L)
        used_L = np.minimum(m_SL[tight_S].sum(axis=0), limit_L)
        problems.append((clusters[tight_S], limit_L, taken))
        problems.append((clusters[~tight_S], limit_L - used_L, rows - taken))
    return added_K


def split(added_K: IntArray, wanted_KL: IntArray, m_KL: IntArray, most_L: IntArray) -> IntArray:
    """Rows of each language in each cluster, int64 [K, L], as near to ``wanted_KL`` as can be.

    A transport problem: as few rows as possible come from another language than is wanted. Its
    constraints are totally unimodular, so the simplex method ends in whole numbers.

    Args:
        added_K: rows to take from each cluster, as ``fill_gaps_capped`` gives them.
        wanted_KL: rows that would be taken without limits, summing to ``added_K``.
        m_KL: rows available.
        most_L: rows that a language may give in all.
    """
    k, languages = m_KL.shape
    if (wanted_KL.sum(axis=0) <= most_L).all():
        return wanted_KL
    from scipy.optimize import linprog  # slow to import, and every worker loads this module

    kept_KL = np.minimum(wanted_KL, m_KL)
    cells = k * languages
    by_cluster = sparse.kron(sparse.eye_array(k), np.ones((1, languages)))
    by_language = sparse.kron(np.ones((1, k)), sparse.eye_array(languages))
    solved = linprog(
        np.concatenate([np.zeros(cells), np.ones(cells)]),
        A_eq=sparse.hstack([by_cluster, by_cluster]),
        b_eq=added_K,
        A_ub=sparse.hstack([by_language, by_language]),
        b_ub=most_L,
        bounds=[(0, most) for most in np.concatenate([kept_KL.ravel(), (m_KL - kept_KL).ravel()])],
        method="highs-ds",
    )
    if not solved.success:
        raise RuntimeError(f"rows cannot be split over languages: {solved.message}")
    rows_KL: IntArray = np.rint(solved.x).astype(np.int64).reshape(2, k, languages).sum(axis=0)
    return rows_KL


def _together(m_SL: IntArray, limit_L: IntArray) -> int:
    return int(np.minimum(m_SL.sum(axis=0), limit_L).sum())


def _overfull(filled_S: IntArray, m_SL: IntArray, limit_L: IntArray) -> NDArray[np.bool_]:
    """The set of clusters that takes most more than it can, [S]; none where all is possible."""
    clusters, languages = m_SL.shape
    source, sink = clusters + languages, clusters + languages + 1
    cluster_of, language_of = np.nonzero(m_SL)
    capacity = sparse.csr_array(
        (
            np.concatenate([filled_S, m_SL[cluster_of, language_of], limit_L]).astype(np.int32),
            (
                np.concatenate(
                    [np.full(clusters, source), cluster_of, clusters + np.arange(languages)]
                ),
                np.concatenate(
                    [np.arange(clusters), clusters + language_of, np.full(languages, sink)]
                ),
            ),
        ),
        shape=(sink + 1, sink + 1),
    )
    result = maximum_flow(capacity, source, sink)
    tight_S = np.zeros(clusters, bool)
    if result.flow_value == filled_S.sum():
        return tight_S
    left = capacity - result.flow
    left.eliminate_zeros()
    reached = breadth_first_order(left, source, return_predecessors=False)
    tight_S[reached[reached < clusters]] = True
    return tight_S
