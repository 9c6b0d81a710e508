"""Whether an update may become current: kept what was known, gained on what is new. Pure.

Shapes: N items, K clusters. Scores are shares of 0 to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

# 0.62 - 0.60 is more than 0.02 in floats, and a mean of equal scores may be a little above them.
_ROUNDING = 1e-9
_LEAST_COVERED = 0.5


@dataclass(frozen=True)
class Pair:
    """Accuracy of the current adapter and of the update, on the same items.

    ``covered`` is the share of the usage, 0 to 1, that these items stand for.
    """

    current: float
    update: float
    covered: float = 1.0


@dataclass(frozen=True)
class Verdict:
    """``reason`` says in one line why the update is promoted or refused."""

    promoted: bool
    reason: str
    old: Pair | None
    new: Pair | None


@dataclass(frozen=True, eq=False)
class Answered:
    """Items of one language, and what the two adapters make of them.

    Attributes:
        questions: [N].
        current_N: 1.0 where the current adapter is right, else 0.0.
        updated_N: the same of the update.
    """

    questions: Sequence[str]
    current_N: NDArray[np.float64]
    updated_N: NDArray[np.float64]

    def pair(self, weights_N: NDArray[np.float64]) -> Pair | None:
        """Their accuracies under item weights, as ``weighted_pair`` has them."""
        return weighted_pair(self.current_N, self.updated_N, weights_N)


def weighted_pair(current_N: ArrayLike, update_N: ArrayLike, weights_N: ArrayLike) -> Pair | None:
    """Accuracies under item weights; None where no item has any.

    Args:
        current_N: 1.0 where the current adapter is right, else 0.0.
        update_N: the same of the update, item for item.
        weights_N: share of the usage that each item stands for, ≥ 0; together at most 1.
    """
    weights = np.asarray(weights_N, dtype=np.float64)
    if not weights.sum() > 0:
        return None
    return Pair(
        float(np.average(np.asarray(current_N, dtype=np.float64), weights=weights)),
        float(np.average(np.asarray(update_N, dtype=np.float64), weights=weights)),
        min(1.0, float(weights.sum())),
    )


def item_weights(
    clusters_N: NDArray[np.int32], usage_K: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Weights that make items stand for usage: each cluster's share, divided among its items.

    The share of clusters without items is given to none, so weights sum to what is covered.

    Args:
        clusters_N: cluster of each item.
        usage_K: usage prompts, or their weights, in each cluster; not all 0.

    Returns:
        float64 [N].
    """
    items_K = np.bincount(clusters_N, minlength=len(usage_K))
    share_K = usage_K / usage_K.sum()
    return np.asarray(share_K[clusters_N] / items_K[clusters_N])


def judge(old: Pair | None, new: Pair | None, tolerance: float) -> Verdict:
    """Promote what loses at most ``tolerance`` on the old usage and gains on the new.

    Items that stand for less than half of the new usage show as little as none at all.
    """
    if old is None or new is None:
        which = "old" if old is None else "new"
        reason = f"no evaluation item is like the {which} usage, so nothing shows that it is better"
        return Verdict(False, reason, old, new)
    loss, gain = old.current - old.update, new.update - new.current
    told = f"old {old.current:.3f} -> {old.update:.3f}, new {new.current:.3f} -> {new.update:.3f}"
    told += "".join(_partly(pair, which) for pair, which in ((old, "old"), (new, "new")))
    if new.covered < _LEAST_COVERED - _ROUNDING:
        reason = f"{told}: less than half, so nothing shows that it is better"
        return Verdict(False, reason, old, new)
    if loss > tolerance + _ROUNDING:
        return Verdict(False, f"{told}: loses more than {tolerance:g} on the old usage", old, new)
    if gain <= _ROUNDING:
        return Verdict(False, f"{told}: gains nothing on the new usage", old, new)
    return Verdict(True, told, old, new)


def _partly(pair: Pair, which: str) -> str:
    if pair.covered >= 1 - _ROUNDING:
        return ""
    # Rounded down: 99.9 % is not all of it.
    return f", items stand for {int(100 * pair.covered + _ROUNDING)} % of the {which} usage"
