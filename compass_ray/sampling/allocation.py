"""How many rows to take from each cluster: exact filling of the gaps.

Given a target distribution ``p``, own rows ``n``, available rows ``m`` and a budget, the rows to
add are those that minimise ``KL(p ‖ (n + a) / (Σn + B))`` with ``0 ≤ a ≤ m`` and
``Σa = B = min(budget, Σm)``. Dropping what does not depend on ``a``, that is to maximise the
separable concave sum ``Σ p(c)·log(n(c) + a(c))``.

*Real numbers* (``water_fill``): ``a(c) = clip(λ·p(c) - n(c), 0, m(c))``, where the level λ (rows
per unit of probability) is found exactly, on the piecewise linear function between breakpoints.

*Integers* (``fill_gaps``): one more row in a cluster of ``x = n + a`` rows gains
``p·log(1 + 1/x)``, which falls with every row, so the best B units are simply the B largest gains
(Gross, 1956). All units that gain at least ``1/λ`` are taken at once, which misses B by at most K
units, and a heap settles those. In the language of apportionment: the divisor method that rounds
at the logarithmic mean of x and x + 1. Rounding ``water_fill`` by largest remainder would *not*
be optimal: for p = (0.9, 0.05, 0.05) and no own rows, three rows would all go to the first
cluster and leave KL infinite, where one each is best.

Three conventions complete the formula where KL alone does not decide:

- A wanted cluster (p > 0) that must stay empty makes KL infinite. The answer is then the limit for
  a vanishing ε added to every count: empty clusters are covered first, the largest p first, and
  the finite part is minimised after that.
- A cluster with p = 0 gets rows only when every wanted cluster is exhausted. What is left then
  levels the p = 0 clusters among themselves, as if all had one equal, vanishing p.
- Equal gains go to the larger p, then the smaller n, then the larger m, then the lower index. So
  permuting the clusters permutes the answer, except for clusters equal in all of (p, n, m), of
  which the first may get one row more.

What a larger budget does:

- Allocations are nested: ``fill_gaps`` at budget B + 1 is that at B and one row more.
- ``Σ p·log(n + a)``, the expected log-count, never falls. The *divergence* may rise, since the
  budget is always spent: once the caps bind, more rows can only go to clusters that have enough,
  and in integers an odd row may upset a perfect balance. For ``water_fill`` the divergence falls
  as long as λ ≤ Σn + B and rises from there on (its derivative in B is ``1/(Σn + B) - 1/λ`` nats,
  and λ grows at least as fast as B); where no cap binds, λ ≤ Σn + B always holds.

Shapes: K clusters.
"""

from __future__ import annotations

import heapq
import operator
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from compass_ray.sampling.distribution import js_divergence

FloatArray = NDArray[np.float64]

P_TOLERANCE = 1e-6
# Below this, levels such as n/p would leave the range of float64; such a p counts as 0.
NEGLIGIBLE_P = 1e-250
# Above this, float64 skips integers.
LARGEST_COUNT = 2**53


@dataclass(frozen=True, eq=False)
class GapTable:
    """What was wanted, what was there, what was added; every array is [K].

    Attributes:
        target: p, the smoothed usage distribution.
        have: n, own rows.
        added: a, rows taken from the auxiliary pool.
        before: ``n / Σn``; zeros where there are no own rows.
        after: ``(n + a) / Σ(n + a)``; zeros where there are no rows at all.
        js_before: Jensen-Shannon divergence (base 2, no root) of target and before.
        js_after: the same of target and after.
    """

    target: FloatArray
    have: FloatArray
    added: NDArray[np.int64]
    before: FloatArray
    after: FloatArray
    js_before: float
    js_after: float

    @property
    def gap(self) -> FloatArray:
        """Share missing in each cluster before the filling, ``p - n/Σn``; negative: overfull."""
        return self.target - self.before


def fill_gaps(p: ArrayLike, n: ArrayLike, m: ArrayLike, budget: int) -> NDArray[np.int64]:
    """Rows to add to each cluster, in integers: the exact optimum of the module's problem.

    Args:
        p: target distribution [K], ≥ 0 and summing to 1 within 1e-6; less than 1e-250 counts as 0.
        n: own rows [K], ≥ 0; fractions are allowed (weighted rows).
        m: rows available [K], whole numbers ≥ 0; 0 where a cluster is exhausted.
        budget: rows to add, ≥ 0; all available rows where it exceeds ``Σm``.

    Returns:
        int64 [K] with ``0 ≤ a ≤ m`` and ``Σa = min(budget, Σm)``.

    Raises:
        ValueError: shapes differ, a number is negative, non-finite or over 2**53, ``p`` does not
            sum to 1, or ``m`` or ``budget`` is no whole number.
    """
    return _by_tiers(_fill_whole, p, n, m, budget).astype(np.int64)


def water_fill(p: ArrayLike, n: ArrayLike, m: ArrayLike, budget: int) -> FloatArray:
    """Rows to add to each cluster, in real numbers: ``clip(λ·p - n, 0, m)``, exactly solved.

    Takes and raises what ``fill_gaps`` does. Sorting the 2K breakpoints and a binary search among
    them makes it O(K log K).

    Returns:
        float64 [K] with ``0 ≤ a ≤ m`` and ``Σa = min(budget, Σm)`` to rounding.
    """
    return _by_tiers(_fill_real, p, n, m, budget)


def gap_table(p: ArrayLike, n: ArrayLike, a: ArrayLike) -> GapTable:
    """Shares and divergences before and after adding ``a`` rows to ``n``.

    Where there are no rows (``Σn = 0`` before, ``Σ(n + a) = 0`` after) there is no distribution to
    compare: its shares are zeros and its divergence is 1.0, the largest there is, by convention.

    Args:
        p: target distribution [K], ≥ 0 and summing to 1 within 1e-6.
        n: own rows [K], ≥ 0.
        a: rows added [K], whole numbers ≥ 0.

    Raises:
        ValueError: as ``fill_gaps``.
    """
    p_K, n_K, a_K = _checked(p, n, a, counted="a")

    def compared(rows_K: FloatArray) -> tuple[FloatArray, float]:
        if not rows_K.any():
            return np.zeros_like(rows_K), 1.0
        return rows_K / rows_K.sum(), js_divergence(p_K, rows_K)

    before_K, js_before = compared(n_K)
    after_K, js_after = compared(n_K + a_K)
    return GapTable(p_K, n_K, a_K.astype(np.int64), before_K, after_K, js_before, js_after)


def _by_tiers(
    fill: Callable[[FloatArray, FloatArray, FloatArray, int], FloatArray],
    p: ArrayLike,
    n: ArrayLike,
    m: ArrayLike,
    budget: int,
) -> FloatArray:
    """Fill the wanted clusters, then those of p = 0 with what is left of the budget."""
    p_K, n_K, m_K = _checked(p, n, m, counted="m")
    try:
        left = operator.index(budget)
    except TypeError:
        raise ValueError(f"budget: a whole number is needed, not {budget!r}") from None
    if left < 0:
        raise ValueError(f"budget: at least 0 is needed, not {left}")
    added_K = np.zeros(len(p_K))
    wanted_K = p_K >= NEGLIGIBLE_P
    for tier_K, weight_K in ((wanted_K, p_K), (~wanted_K, np.ones_like(p_K))):
        # In an order of their own, the arithmetic on clusters does not depend on how they came.
        tier = np.flatnonzero(tier_K)
        tier = tier[np.lexsort((-m_K[tier], n_K[tier], -weight_K[tier]))]
        available = int(m_K[tier].sum())
        rows = min(left, available)
        if rows == available:
            added_K[tier] = m_K[tier]
        elif rows > 0:
            added_K[tier] = fill(weight_K[tier], n_K[tier], m_K[tier], rows)
        left -= rows
    return added_K


def _fill_real(p_K: FloatArray, n_K: FloatArray, m_K: FloatArray, rows: int) -> FloatArray:
    return np.clip(_level(p_K, n_K, m_K, rows) * p_K - n_K, 0.0, m_K)


def _fill_whole(p_K: FloatArray, n_K: FloatArray, m_K: FloatArray, rows: int) -> FloatArray:
    level = _level(p_K, n_K, m_K, rows)
    # A gain of 1/λ lies between the units floor(λp - n) and the next one, as x < 1/log(1 + 1/x)
    # < x + 1; so the floor is always worth its level and one more unit may be.
    added_K = np.clip(np.floor(level * p_K - n_K), 0.0, m_K)
    added_K += (added_K < m_K) & (_gain(p_K, n_K + added_K) >= 1 / level)
    missing = rows - int(added_K.sum())
    _settle(added_K, p_K, n_K, m_K, step=1 if missing > 0 else -1, times=abs(missing))
    return added_K


def _level(p_K: FloatArray, n_K: FloatArray, m_K: FloatArray, rows: int) -> float:
    """The λ at which ``Σ clip(λ·p - n, 0, m)`` is ``rows``, for ``0 < rows < Σm`` and p > 0."""
    start_K, full_K = n_K / p_K, (n_K + m_K) / p_K
    breakpoints = np.unique(np.concatenate([start_K, full_K]))

    def filled(level: float) -> float:
        return float(np.clip(level * p_K - n_K, 0.0, m_K).sum())

    # The last breakpoint that does not yet hold all rows; the sum is linear from it to the next.
    low = min(bisect_right(breakpoints, float(rows), key=filled), len(breakpoints) - 1) - 1
    left, right = breakpoints[low], breakpoints[low + 1]
    rising_K = (start_K <= left) & (full_K > left)
    if not rising_K.any():  # a flat piece: every level on it gives the same
        return float(left)
    already = m_K[full_K <= left].sum() - n_K[rising_K].sum()
    return float(np.clip((rows - already) / p_K[rising_K].sum(), left, right))


def _gain(p: FloatArray, x: FloatArray) -> FloatArray:
    """What one row more is worth to a cluster of x rows, ``p·log((x + 1)/x)`` nats."""
    with np.errstate(divide="ignore"):
        return np.asarray(p * np.log1p(1 / x))


def _settle(
    added_K: FloatArray,
    p_K: FloatArray,
    n_K: FloatArray,
    m_K: FloatArray,
    *,
    step: int,
    times: int,
) -> None:
    """Add the most useful row (step 1) or take back the least useful (-1), ``times`` over."""
    bound_K = m_K if step > 0 else np.zeros_like(m_K)

    def entry(c: int) -> tuple[float, int, int]:
        unit = n_K[c] + added_K[c] - (step < 0)
        return -step * float(_gain(p_K[c], unit)), step * c, c

    heap = [entry(c) for c in range(len(p_K)) if added_K[c] != bound_K[c]]
    heapq.heapify(heap)
    for _ in range(times):
        c = heapq.heappop(heap)[2]
        added_K[c] += step
        if added_K[c] != bound_K[c]:
            heapq.heappush(heap, entry(c))


def _checked(
    p: ArrayLike, n: ArrayLike, counts: ArrayLike, counted: str
) -> tuple[FloatArray, FloatArray, FloatArray]:
    arrays = {"p": p, "n": n, counted: counts}
    checked = {name: np.asarray(values, dtype=np.float64) for name, values in arrays.items()}
    shapes = {name: values_K.shape for name, values_K in checked.items()}
    if len(set(shapes.values())) > 1 or checked["p"].ndim != 1:
        raise ValueError(f"one length of one dimension is needed, not shapes {shapes}")
    for name, values_K in checked.items():
        if not (np.isfinite(values_K).all() and (values_K >= 0).all()):
            raise ValueError(f"{name}: finite numbers of at least 0 are needed")
        if values_K.sum() > LARGEST_COUNT:
            raise ValueError(f"{name}: {values_K.sum():.3g} rows are more than 2**53")
    if abs(checked["p"].sum() - 1) > P_TOLERANCE:
        raise ValueError(f"p: a sum of 1 is needed, not {checked['p'].sum():.9g}")
    if (checked[counted] % 1).any():
        raise ValueError(f"{counted}: whole numbers are needed")
    return checked["p"], checked["n"], checked[counted]
