"""What clusters are made of: meaning, language, or neither. Pure, on a bounded sample.

Shapes: N rows, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compass_ray.clustering.kmeans import fit_kmeans

MAX_ROWS = 5_000


@dataclass(frozen=True)
class Diagnostics:
    """Normalised mutual information (0 to 1) of clusters with language and subject, silhouettes.

    ``*_raw`` is the same measured on the encoder's own vectors, clustered at the same K.
    """

    sample_rows: int
    language_leakage: float
    language_leakage_raw: float
    silhouette: float
    silhouette_raw: float
    subject_nmi: float | None
    subject_nmi_raw: float | None


def diagnose(
    raw_ND: NDArray[np.float32],
    space_ND: NDArray[np.float32],
    languages: Sequence[str],
    subjects: Sequence[str | None],
    k: int,
    seed: int,
) -> Diagnostics:
    """Cluster a sample of at most ``MAX_ROWS`` rows in both spaces and compare."""
    rows = len(languages)
    chosen = np.random.default_rng(seed).permutation(rows)[:MAX_ROWS]
    k = min(k, len(chosen) // 2)
    names = [languages[i] for i in chosen]
    topics = [subjects[i] for i in chosen]
    leakage, silhouette, subject = _measure(space_ND[chosen], names, topics, k, seed)
    leakage_raw, silhouette_raw, subject_raw = _measure(raw_ND[chosen], names, topics, k, seed)
    return Diagnostics(
        sample_rows=len(chosen),
        language_leakage=leakage,
        language_leakage_raw=leakage_raw,
        silhouette=silhouette,
        silhouette_raw=silhouette_raw,
        subject_nmi=subject,
        subject_nmi_raw=subject_raw,
    )


def _measure(
    vectors_ND: NDArray[np.float32],
    languages: Sequence[str],
    subjects: Sequence[str | None],
    k: int,
    seed: int,
) -> tuple[float, float, float | None]:
    from sklearn.metrics import normalized_mutual_info_score, silhouette_score

    clusters, _ = fit_kmeans(vectors_ND, k, seed=seed).assign(vectors_ND)
    known = [index for index, subject in enumerate(subjects) if subject is not None]
    subject = None
    if known:
        truth = [str(subjects[index]) for index in known]
        subject = float(normalized_mutual_info_score(truth, clusters[known]))
    return (
        float(normalized_mutual_info_score(list(languages), clusters)),
        float(silhouette_score(vectors_ND, clusters)) if len(set(clusters)) > 1 else 0.0,
        subject,
    )
