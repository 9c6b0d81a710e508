import numpy as np
import pytest
import torch
from sklearn.cluster import kmeans_plusplus as reference

from compass_ray.clustering.seeding import kmeans_plusplus


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("offset", [0, 1000])
def test_it_chooses_what_scikit_learn_chooses(seed, offset):
    X = np.random.default_rng(seed).normal(size=(2000, 16)).astype(np.float32) + np.float32(offset)
    chosen = kmeans_plusplus(torch.from_numpy(X), 20, seed)
    expected, _ = reference(X.astype(np.float64), 20, random_state=seed)
    np.testing.assert_allclose(chosen.numpy(), expected, rtol=1e-6)


def test_distinct_rows_come_before_repeated_ones():
    X = torch.eye(3).repeat(5, 1)
    chosen = kmeans_plusplus(X, 6, seed=0)
    assert chosen.shape == (6, 3)
    assert len(chosen[:3].unique(dim=0)) == 3
