"""What an adapter was built for: its usage in the run's clusters, kept beside it.

Knows nothing of texts. Shapes: R usage prompts, K clusters, D dimensions.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compass_ray.continual.drift import Located
from compass_ray.sampling.distribution import FloatArray, histogram, prototypes

REFERENCE = "reference.npz"


@dataclass(frozen=True, eq=False)
class Reference:
    """Usage of one language.

    Attributes:
        usage: the prompts, located.
        prototypes_KD: unit mean of the usage vectors of each cluster, zeros where there are none.
    """

    usage: Located
    prototypes_KD: NDArray[np.float32]

    @classmethod
    def of(cls, usage: Located, vectors_RD: NDArray[np.float32], k: int) -> Reference:
        """From located prompts and their unit vectors, row for row."""
        return cls(usage, prototypes(vectors_RD, usage.clusters_N, usage.weights_N, k))

    @property
    def k(self) -> int:
        return len(self.prototypes_KD)

    def counts(self) -> FloatArray:
        """Weighted prompts of each cluster, [K]."""
        return histogram(self.usage.clusters_N, self.k, self.usage.weights_N)

    def to_bytes(self) -> bytes:
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            clusters=self.usage.clusters_N,
            distances=self.usage.distances_N,
            weights=self.usage.weights_N,
            prototypes=self.prototypes_KD,
        )
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Reference:
        with np.load(io.BytesIO(data), allow_pickle=False) as stored:
            usage = Located(stored["clusters"], stored["distances"], stored["weights"])
            return cls(usage, stored["prototypes"])
