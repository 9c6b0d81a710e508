from __future__ import annotations

import numpy as np

from compass_ray.continual.anchors import choose_anchors


def test_anchors_follow_usage_and_are_the_nearest_of_their_cluster() -> None:
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(4), 100).astype(np.int32)
    scores = rng.uniform(size=400)
    usage = np.array([600.0, 300.0, 100.0, 0.0])
    chosen = choose_anchors(clusters, scores, usage, 0.05)
    assert np.bincount(clusters[chosen], minlength=4).tolist() == [12, 6, 2, 0]
    for cluster in range(4):
        mine = np.flatnonzero(clusters == cluster)
        kept = np.intersect1d(mine, chosen)
        best = mine[np.argsort(-scores[mine])][: len(kept)]
        assert set(kept) == set(best)


def test_a_cluster_without_rows_gives_its_share_to_the_others() -> None:
    clusters = np.zeros(40, np.int32)
    chosen = choose_anchors(clusters, np.full(40, np.nan), np.array([1.0, 9.0]), 0.1)
    assert len(chosen) == 4


def test_few_rows_keep_one_and_none_keep_none() -> None:
    assert len(choose_anchors(np.zeros(3, np.int32), np.ones(3), np.ones(1), 0.05)) == 1
    assert len(choose_anchors(np.zeros(0, np.int32), np.ones(0), np.ones(1), 0.05)) == 0
