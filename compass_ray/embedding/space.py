"""The space vectors are compared in: language-neutral by default, raw on request.

Vectors of multilingual encoders sit, first of all, where their language sits: plain k-means
finds languages and not topics. ``NeutralSpace`` takes each language's own mean away and brings
the rest back to unit length; ``RawSpace`` only does the latter, and has nothing to fit. Knows
nothing of encoders or clusters, nor of which rows it is given: fit it on training rows and never
on the usage of a language that has them, or the drift of usage would be centred away.

Shapes: N rows, D dimensions, L languages, C removed directions.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
PathOrFile = str | os.PathLike[str] | IO[bytes]
Languages = Sequence[str] | NDArray[Any]
LanguageSums = Mapping[str, tuple[FloatArray, int]]

# Rows worked on at once, so that float64 copies stay small.
BLOCK_ROWS = 8192
# A row this much shorter than it was before centring is rounding, not direction.
ROUNDING = 1e-6


def language_sums(X: ArrayLike, languages: Languages) -> dict[str, tuple[FloatArray, int]]:
    """Sum of vectors, float64 [D], and number of rows of each language: all that a fit needs.

    Raises:
        ValueError: ``X`` is no finite [N, D] or ``languages`` is not N strings.
    """
    X_ND = _matrix(X)
    names_L, codes_N = _coded(languages, len(X_ND))
    sums: dict[str, tuple[FloatArray, int]] = {}
    for code, name in enumerate(names_L):
        rows = np.flatnonzero(codes_N == code)
        total_D = X_ND[rows].sum(axis=0, dtype=np.float64)
        if not np.isfinite(total_D).all():
            raise ValueError(f"X: rows of language {name!r} are not finite")
        sums[name] = (total_D, len(rows))
    return sums


def add_sums(parts: Iterable[LanguageSums]) -> dict[str, tuple[FloatArray, int]]:
    """Merge the ``language_sums`` of parts of a corpus into those of the whole."""
    whole: dict[str, tuple[FloatArray, int]] = {}
    for part in parts:
        for name, (sum_D, count) in part.items():
            if name in whole:
                whole[name] = (whole[name][0] + sum_D, whole[name][1] + count)
            else:
                whole[name] = (np.array(sum_D, dtype=np.float64), count)
    return whole


class NeutralSpace:
    """Unit vectors without their language's mean.

    A language of n rows with mean μ_l is centred on ``(n·μ_l + τ·μ) / (n + τ)``: a mean of few
    rows is noise, and is drawn to the global mean μ.

    The global mean is the mean over *languages*, each weighted by ``n / (n + τ)``. So a language
    of many rows counts 1 and no more, however many they are, and one of a few rows counts little.
    (With τ the ratio of the variance within a language to that between languages, this is the
    generalised least squares mean that belongs to the shrinkage above.)

    A language that was not fitted is centred on μ, which is the formula at n = 0.

    Args:
        shrinkage: τ in rows, ≥ 0; 0 trusts every mean and weights all languages equally.
        components: how many of the directions in which the languages' centres differ most are
            taken out of every vector besides, 0 to L - 1; fewer where the centres span fewer.

    Attributes:
        languages: names, L of them, sorted.
        counts: rows of each language in the fit, int64 [L].
        centres: what each language is centred on, float64 [L, D].
        global_mean: what every other language is centred on, float64 [D].
        directions: orthonormal directions removed, float64 [C, D].
    """

    languages: tuple[str, ...]
    counts: NDArray[np.int64]
    centres: FloatArray
    global_mean: FloatArray
    directions: FloatArray

    def __init__(self, shrinkage: float = 100.0, components: int = 0) -> None:
        self.shrinkage = shrinkage
        self.components = components

    def fit(self, X: ArrayLike, languages: Languages) -> Self:
        """Learn the means of ``X`` [N, D], whose rows are in ``languages`` [N].

        Raises:
            ValueError: ``X`` and ``languages`` do not fit each other, a row is not finite, there
                are no rows, or an option is out of range.
        """
        return self._learn(language_sums(X, languages))

    @classmethod
    def from_sums(
        cls, sums: LanguageSums, shrinkage: float = 100.0, components: int = 0
    ) -> NeutralSpace:
        """Learn from sums of vectors [D] and row counts by language, so rows can be streamed.

        Get them from ``language_sums`` and ``add_sums``. A language without rows is not learnt.

        Raises:
            ValueError: as ``fit``, or the sums have different lengths.
        """
        return cls(shrinkage, components)._learn(sums)

    def _learn(self, sums: LanguageSums) -> Self:
        if not (np.isfinite(self.shrinkage) and self.shrinkage >= 0):
            raise ValueError(f"shrinkage: a number of at least 0 is needed, not {self.shrinkage}")
        self.languages = tuple(sorted(name for name, (_, count) in sums.items() if count > 0))
        if not self.languages:
            raise ValueError("a neutral space needs rows to be fitted on")
        if not 0 <= self.components < len(self.languages):
            raise ValueError(
                f"components: {len(self.languages)} languages have 0 to {len(self.languages) - 1} "
                f"directions to remove, not {self.components}"
            )
        if len({np.shape(sums[name][0]) for name in self.languages}) > 1:
            raise ValueError("sums: the languages' vectors have different lengths")
        sums_LD = np.array([sums[name][0] for name in self.languages], dtype=np.float64)
        if sums_LD.ndim != 2 or not np.isfinite(sums_LD).all():
            raise ValueError("sums: one finite vector for each language is needed")
        self.counts = np.array([sums[name][1] for name in self.languages], dtype=np.int64)
        counts_L1 = self.counts[:, None]
        trust_L = self.counts / (self.counts + self.shrinkage)
        self.global_mean = trust_L @ (sums_LD / counts_L1) / trust_L.sum()
        self.centres = (sums_LD + self.shrinkage * self.global_mean) / (counts_L1 + self.shrinkage)
        _, spread_C, directions_CD = np.linalg.svd(
            self.centres - self.global_mean, full_matrices=False
        )
        real_C = spread_C > ROUNDING * spread_C[0]
        self.directions = directions_CD[real_C][: self.components]
        return self

    def transform(self, X: ArrayLike, languages: Languages) -> NDArray[np.float32]:
        """Centre each row of ``X`` [N, D] on its language and bring it to unit length.

        A row that centring leaves at 0 stays 0.

        Returns:
            float32 [N, D].

        Raises:
            ValueError: the shapes do not fit, or a row is not finite.
        """
        X_ND = _matrix(X)
        if X_ND.shape[1] != len(self.global_mean):
            raise ValueError(
                f"X: {X_ND.shape[1]} dimensions, but the space has {len(self.global_mean)}"
            )
        names, codes_N = _coded(languages, len(X_ND))
        known = {name: index for index, name in enumerate(self.languages)}
        # Index -1, the row after the last centre, is the global mean.
        centres_LD = np.vstack([self.centres, self.global_mean])
        index_N = np.array([known.get(name, -1) for name in names], dtype=np.int64)[codes_N]
        unit_ND = np.empty(X_ND.shape, dtype=np.float32)
        for rows in blocks(len(X_ND)):
            block_BD = X_ND[rows].astype(np.float64)
            centred_BD = block_BD - centres_LD[index_N[rows]]
            centred_BD -= centred_BD @ self.directions.T @ self.directions
            unit_ND[rows] = unit(centred_BD, ROUNDING * np.linalg.norm(block_BD, axis=1))
        return unit_ND

    def save(self, path: PathOrFile) -> None:
        """Write the space to a path, or an open binary file, in npz format without pickle."""
        save_arrays(path, kind="neutral", **self.arrays())

    def arrays(self) -> dict[str, Any]:
        """All that ``of`` needs to make the space again."""
        learned = ("languages", "counts", "centres", "global_mean", "directions")
        return {name: getattr(self, name) for name in ("shrinkage", "components", *learned)}

    @classmethod
    def load(cls, path: PathOrFile) -> NeutralSpace:
        """Read a space that ``save`` wrote, bit by bit.

        Raises:
            ValueError: the file holds something else.
        """
        return cls.of(read_arrays(path, "neutral"))

    @classmethod
    def of(cls, stored: Mapping[str, NDArray[Any]]) -> NeutralSpace:
        """The space of which these are the ``arrays``."""
        space = cls(float(stored["shrinkage"]), int(stored["components"]))
        space.languages = tuple(stored["languages"].tolist())
        space.counts = stored["counts"]
        space.centres = stored["centres"]
        space.global_mean = stored["global_mean"]
        space.directions = stored["directions"]
        return space


class RawSpace:
    """The encoder's vectors at unit length, whatever their language: the paper's space."""

    def transform(self, X: ArrayLike, languages: Languages) -> NDArray[np.float32]:
        """Bring each row of ``X`` [N, D] to unit length, float32; a row of zeros stays so.

        Raises:
            ValueError: the shapes do not fit, or a row is not finite.
        """
        X_ND = _matrix(X)
        _coded(languages, len(X_ND))
        unit_ND = np.empty(X_ND.shape, dtype=np.float32)
        for rows in blocks(len(X_ND)):
            unit_ND[rows] = unit(X_ND[rows].astype(np.float64), 0.0)
        return unit_ND

    def save(self, path: PathOrFile) -> None:
        """Write that the space is raw, to a path or an open binary file."""
        save_arrays(path, kind="raw")


def unit(vectors_BD: FloatArray, rounding_B: FloatArray | float) -> FloatArray:
    """Rows at length 1; those no longer than ``rounding_B`` become 0."""
    length_B = np.linalg.norm(vectors_BD, axis=1)
    if not np.isfinite(length_B).all():
        raise ValueError("X: a row is not finite")
    kept_B = length_B > rounding_B
    factor_B = np.divide(1.0, length_B, out=np.zeros_like(length_B), where=kept_B)
    return np.asarray(vectors_BD * factor_B[:, None])


def _matrix(X: ArrayLike) -> NDArray[np.floating[Any]]:
    X_ND = np.asarray(X)
    if X_ND.ndim != 2:
        raise ValueError(f"X: rows of vectors [N, D] are needed, not shape {X_ND.shape}")
    if not np.issubdtype(X_ND.dtype, np.floating):
        raise ValueError(f"X: floating point numbers are needed, not {X_ND.dtype}")
    return X_ND


def _coded(languages: Languages, rows: int) -> tuple[list[str], NDArray[np.int64]]:
    """Distinct names, sorted, and each row's index among them."""
    if isinstance(languages, str) or len(languages) != rows:
        given = repr(languages) if isinstance(languages, str) else len(languages)
        raise ValueError(f"languages: one name for each of {rows} rows is needed, not {given}")
    names_N = np.asarray(languages)
    if rows == 0:
        return [], np.empty(0, dtype=np.int64)
    if names_N.dtype.kind == "O" and all(isinstance(name, str) for name in names_N):
        names_N = names_N.astype(np.str_)
    if names_N.dtype.kind != "U" or names_N.ndim != 1:
        raise ValueError("languages: every name must be a string")
    names, codes_N = np.unique(names_N, return_inverse=True)
    return names.tolist(), codes_N


def blocks(rows: int) -> Iterable[slice]:
    return (slice(start, start + BLOCK_ROWS) for start in range(0, rows, BLOCK_ROWS))


def save_arrays(path: PathOrFile, **arrays: Any) -> None:
    """Write npz to exactly this path or open file."""
    if isinstance(path, str | os.PathLike):
        with open(path, "wb") as file:  # savez would add .npz to a bare path
            np.savez(file, **arrays)
    else:
        np.savez(path, **arrays)


def read_arrays(path: PathOrFile, *kinds: str) -> dict[str, NDArray[Any]]:
    """What ``save_arrays`` wrote.

    Raises:
        ValueError: it is no space of these kinds.
    """
    stored: dict[str, NDArray[Any]] = {}
    archive = np.load(path, allow_pickle=False)
    if isinstance(archive, np.lib.npyio.NpzFile):
        with archive:
            stored = dict(archive)
    if str(stored.get("kind")) not in kinds:
        raise ValueError(f"{path}: no saved {' or '.join(kinds)} space")
    return stored
