from __future__ import annotations

import numpy as np
import pytest

from compass_ray.continual.gate import Pair, item_weights, judge, weighted_pair


def test_promoted_is_what_keeps_the_old_within_tolerance_and_gains_on_the_new() -> None:
    assert judge(Pair(0.60, 0.59), Pair(0.4, 0.5), 0.02).promoted
    assert judge(Pair(0.62, 0.60), Pair(0.3, 0.5), 0.02).promoted
    lost = judge(Pair(0.60, 0.55), Pair(0.4, 0.5), 0.02)
    assert not lost.promoted and "loses more than 0.02 on the old usage" in lost.reason
    same = judge(Pair(0.60, 0.70), Pair(0.4, 0.4), 0.02)
    assert not same.promoted and "gains nothing on the new usage" in same.reason


def test_what_cannot_be_measured_is_not_promoted() -> None:
    verdict = judge(Pair(0.6, 0.6), None, 0.02)
    assert not verdict.promoted and "no evaluation item is like the new usage" in verdict.reason


def test_items_stand_for_usage_whatever_their_number() -> None:
    clusters = np.array([0] * 90 + [1] * 10)
    weights = item_weights(clusters, np.array([1.0, 3.0, 0.0]))
    right = (clusters == 1).astype(float)
    pair = weighted_pair(right, 1 - right, weights)
    assert pair is not None
    assert pair.current == pytest.approx(0.75) and pair.update == pytest.approx(0.25)


def test_items_in_clusters_nobody_asks_about_weigh_nothing() -> None:
    clusters = np.array([0, 0, 1])
    assert (
        weighted_pair([1, 1, 1], [0, 0, 0], item_weights(clusters, np.array([0, 0, 5.0]))) is None
    )
