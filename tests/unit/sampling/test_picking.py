from __future__ import annotations

import numpy as np
import pytest

from compass_ray.sampling.picking import first_distinct, gumbel_order


def unit(rows: int, dimension: int = 8, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(rows, dimension))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def test_the_order_is_a_permutation_and_depends_on_the_seed_alone() -> None:
    scores = np.linspace(0, 1, 50, dtype=np.float32)
    order = gumbel_order(scores, 0.1, np.random.default_rng(3))
    assert sorted(order) == list(range(50))
    assert (order == gumbel_order(scores, 0.1, np.random.default_rng(3))).all()
    assert (order != gumbel_order(scores, 0.1, np.random.default_rng(4))).any()


def test_the_first_of_the_order_is_drawn_as_softmax_says() -> None:
    scores = np.array([0.0, 0.1, 0.2], dtype=np.float32)
    rng = np.random.default_rng(0)
    first = [gumbel_order(scores, 0.1, rng)[0] for _ in range(6000)]
    expected = np.exp([0, 1, 2]) / np.exp([0, 1, 2]).sum()
    # Three standard errors of a share over 6,000 draws.
    assert np.bincount(first) / 6000 == pytest.approx(expected, abs=0.02)


def test_a_low_temperature_is_a_plain_ranking() -> None:
    scores = np.array([0.3, 0.9, 0.1, 0.5], dtype=np.float32)
    assert gumbel_order(scores, 1e-4, np.random.default_rng(0)).tolist() == [1, 3, 0, 2]


@pytest.mark.parametrize("rows", [40, 700])
def test_no_two_accepted_rows_are_nearer_than_allowed(rows: int) -> None:
    vectors = unit(rows, dimension=4)
    accepted, refused = first_distinct(vectors, np.arange(len(vectors)), rows, 0.9)
    kept = vectors[accepted].astype(np.float32)
    similarity = kept @ kept.T - 2 * np.eye(len(kept))
    assert similarity.max() <= 0.9
    assert refused == rows - len(accepted)
    for row in set(range(rows)) - set(accepted.tolist()):
        before = accepted[accepted < row]
        assert (vectors[before].astype(np.float32) @ vectors[row].astype(np.float32)).max() > 0.9


def test_asking_for_more_rows_only_adds_rows() -> None:
    vectors = unit(600, dimension=4)
    few, _ = first_distinct(vectors, np.arange(len(vectors)), 20, 0.9)
    more, _ = first_distinct(vectors, np.arange(len(vectors)), 35, 0.9)
    assert more[:20].tolist() == few.tolist()


def test_a_bound_of_one_refuses_nothing() -> None:
    same = np.repeat(unit(1), 5, axis=0)
    assert first_distinct(same, np.arange(5), 3, 1.0)[0].tolist() == [0, 1, 2]
    assert first_distinct(same, np.arange(5), 3, 0.97)[0].tolist() == [0]


@pytest.mark.parametrize("bound", [0.9, 1.0])
def test_no_group_gives_more_than_its_room(bound: float) -> None:
    vectors = unit(400, dimension=4)
    groups, room = np.arange(400) % 3, np.array([7, 0, 400])
    accepted, refused = first_distinct(vectors, np.arange(400), 30, bound, groups, room)
    assert np.bincount(groups[accepted], minlength=3).tolist() == [7, 0, 23]
    assert room.tolist() == [7, 0, 400]
    assert (refused > 0) == (bound < 1)
    free, _ = first_distinct(vectors, np.arange(400), 30, bound)
    roomy, _ = first_distinct(vectors, np.arange(400), 30, bound, groups, np.full(3, 400))
    assert roomy.tolist() == free.tolist()
