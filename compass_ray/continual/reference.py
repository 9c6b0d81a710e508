"""What an adapter was built for: its usage in the run's clusters, kept beside it.

Knows nothing of texts. Shapes: R usage prompts, K clusters, D dimensions.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compass_ray.continual.drift import Located
from compass_ray.sampling.distribution import FloatArray, histogram

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
        sums_KD = np.zeros((k, vectors_RD.shape[1]))
        np.add.at(sums_KD, usage.clusters_N, vectors_RD * usage.weights_N[:, None])
        lengths_K1 = np.linalg.norm(sums_KD, axis=1, keepdims=True)
        unit_KD = sums_KD / np.where(lengths_K1 > 0, lengths_K1, 1)
        return cls(usage, unit_KD.astype(np.float32))

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
