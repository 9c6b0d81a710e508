from __future__ import annotations

import numpy as np
import pytest

from compass_ray.clustering.novelty import is_novel, known_beyond, novelty_cutoff


@pytest.mark.parametrize("rows", [1, 7, 99, 100, 1000, 12_345])
def test_a_hundredth_of_the_known_rows_lies_at_the_cutoff_or_beyond(rows: int) -> None:
    distances = np.random.default_rng(rows).permutation(rows) + 1.0
    cutoff = novelty_cutoff(distances)
    assert (distances >= cutoff).sum() == known_beyond(rows) == max(1, round(rows / 100))


def test_the_row_that_set_the_cutoff_is_not_novel_in_any_precision() -> None:
    distances = np.random.default_rng(0).random(500)
    cutoff = novelty_cutoff(distances)
    assert is_novel(distances, cutoff).sum() == 4
    assert is_novel(distances.astype(np.float32), cutoff).sum() == 4


def test_nothing_is_novel_without_a_cutoff() -> None:
    assert not is_novel(np.array([1e30]), np.inf).any()
