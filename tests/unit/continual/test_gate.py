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


def test_a_gain_that_is_only_rounding_promotes_nothing() -> None:
    assert 0.1 + 0.2 > 0.3
    verdict = judge(Pair(0.60, 0.60), Pair(0.3, 0.1 + 0.2), 0.02)
    assert not verdict.promoted and "gains nothing on the new usage" in verdict.reason


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


def test_usage_that_no_item_stands_for_is_told() -> None:
    usage = np.array([5.0, 1.25, 3.75])
    pair = weighted_pair([0, 0, 1], [1, 0, 1], item_weights(np.array([0, 0, 1]), usage))
    assert pair == Pair(pytest.approx(0.2), pytest.approx(0.6), 0.625)
    verdict = judge(Pair(0.5, 0.5), pair, 0.02)
    assert verdict.promoted and verdict.new == pair
    assert verdict.reason.endswith("items stand for 62 % of the new usage")
    both = judge(Pair(0.5, 0.5, 0.999), pair, 0.02)
    assert "99 % of the old usage, items stand for 62 % of the new" in both.reason
    assert "stand for" not in judge(Pair(0.5, 0.5), Pair(0.2, 0.6, 1 - 1e-12), 0.02).reason


def test_items_for_less_than_half_of_the_new_usage_show_nothing() -> None:
    gained = (0.2, 0.9)
    refused = judge(Pair(0.5, 0.5), Pair(*gained, 0.49), 0.02)
    assert not refused.promoted
    assert "49 % of the new usage: less than half, so nothing shows" in refused.reason
    assert judge(Pair(0.5, 0.5), Pair(*gained, 0.5), 0.02).promoted
    assert judge(Pair(0.5, 0.5, 0.1), Pair(*gained), 0.02).promoted
