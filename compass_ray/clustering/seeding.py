"""Where k-means starts on a GPU: greedy k-means++ on tensors.

Arthur and Vassilvitskii, 2007, with the best of a few candidates at each step. On the same rows
with the same seed it chooses what scikit-learn's, which the CPU uses, chooses.

Shapes: N rows, D dimensions, K clusters, T candidates.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def kmeans_plusplus(rows_ND: Tensor, k: int, seed: int) -> Tensor:
    """K of the rows, float32 [K, D]; repeated ones where fewer than ``k`` are distinct.

    Args:
        rows_ND: finite float32 rows.
        k: how many, 1 to N.
        seed: of the choice.
    """
    chance = np.random.RandomState(seed)  # the stream that scikit-learn draws from
    # Distances do not change when everything moves; near the origin they lose fewer digits.
    centred_ND = rows_ND - rows_ND.mean(dim=0)
    square_N = centred_ND.square().sum(dim=1)

    def squared_distances(chosen_T: Tensor) -> Tensor:
        cross_NT = centred_ND @ centred_ND[chosen_T].T
        return (cross_NT.mul_(-2) + square_N[:, None]).add_(square_N[chosen_T]).clamp_(min=0)

    first = min(int(chance.random_sample() * len(rows_ND)), len(rows_ND) - 1)
    chosen = [torch.tensor([first], device=rows_ND.device)]
    nearest_N = squared_distances(chosen[0])[:, 0]
    candidates = 2 + int(math.log(k))
    for _ in range(1, k):
        share_T = torch.from_numpy(chance.uniform(size=candidates)).to(rows_ND.device)
        upto_N = nearest_N.cumsum(dim=0, dtype=torch.float64)
        picked_T = torch.searchsorted(upto_N, share_T * upto_N[-1]).clamp_(max=len(rows_ND) - 1)
        nearest_NT = torch.minimum(nearest_N[:, None], squared_distances(picked_T))
        best = nearest_NT.sum(dim=0, dtype=torch.float64).argmin()
        nearest_N = nearest_NT[:, best]
        chosen.append(picked_T[best][None])
    return rows_ND[torch.cat(chosen)]
