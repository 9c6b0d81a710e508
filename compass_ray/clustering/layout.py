"""Where clusters lie on a page: two coordinates each, neighbours near each other. Pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def layout(centroids_KD: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """Coordinates float32 [K, 2], by metric multidimensional scaling (SMACOF).

    Distances on the page stand for distances of centroids as well as two dimensions can; the
    axes mean nothing.
    """
    if len(centroids_KD) < 3 or not np.ptp(centroids_KD, axis=0).any():
        return np.eye(len(centroids_KD), 2, dtype=np.float32)
    from sklearn.manifold import MDS

    model = MDS(n_init=1, init="classical_mds", random_state=seed)
    return np.asarray(model.fit_transform(centroids_KD), dtype=np.float32)
