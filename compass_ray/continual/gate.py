"""Whether an update may become current: kept what was known, gained on what is new. Pure.

Shapes: N items. Scores are shares of 0 to 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Pair:
    """Accuracy of the current adapter and of the update, on the same items."""

    current: float
    update: float


@dataclass(frozen=True)
class Verdict:
    """``reason`` says in one line why the update is promoted or refused."""

    promoted: bool
    reason: str
    old: Pair | None
    new: Pair | None


def weighted_pair(current_N: ArrayLike, update_N: ArrayLike, weights_N: ArrayLike) -> Pair | None:
    """Accuracies under item weights; None where no item has any.

    Args:
        current_N: 1.0 where the current adapter is right, else 0.0.
        update_N: the same of the update, item for item.
        weights_N: ≥ 0.
    """
    weights = np.asarray(weights_N, dtype=np.float64)
    if not weights.sum() > 0:
        return None
    return Pair(
        float(np.average(np.asarray(current_N, dtype=np.float64), weights=weights)),
        float(np.average(np.asarray(update_N, dtype=np.float64), weights=weights)),
    )


def item_weights(
    clusters_N: NDArray[np.int32], usage_K: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Weights that make items stand for usage: each cluster's share, divided among its items."""
    items_K = np.bincount(clusters_N, minlength=len(usage_K))
    share_K = usage_K / usage_K.sum()
    return np.asarray(share_K[clusters_N] / items_K[clusters_N])


def judge(old: Pair | None, new: Pair | None, tolerance: float) -> Verdict:
    """Promote what loses at most ``tolerance`` on the old usage and gains on the new."""
    if old is None or new is None:
        which = "old" if old is None else "new"
        reason = f"no evaluation item is like the {which} usage, so nothing shows that it is better"
        return Verdict(False, reason, old, new)
    loss, gain = old.current - old.update, new.update - new.current
    told = f"old {old.current:.3f} -> {old.update:.3f}, new {new.current:.3f} -> {new.update:.3f}"
    # 0.62 - 0.60 is more than 0.02 in floats.
    if loss > tolerance + 1e-9:
        return Verdict(False, f"{told}: loses more than {tolerance:g} on the old usage", old, new)
    if gain <= 0:
        return Verdict(False, f"{told}: gains nothing on the new usage", old, new)
    return Verdict(True, told, old, new)
