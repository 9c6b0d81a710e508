"""What clusters are made of: meaning, language, or neither. Pure, on a bounded sample.

Shapes: N rows, D dimensions, K clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compass_ray.clustering.kmeans import Clusters, FloatMatrix, fit_kmeans
from compass_ray.clustering.validity import silhouette

FITTED_ROWS = 20_000
MAX_ROWS = 5_000


@dataclass(frozen=True)
class Diagnostics:
    """Normalised mutual information (0 to 1) of clusters with language and subject, silhouettes.

    ``*_raw`` is the same measured on the encoder's own vectors, in as many k-means clusters.
    ``*_chance`` is what clusters that know nothing would show: the mean over shuffled labels. It
    is above 0, and grows with the number of clusters on the same rows.
    """

    sample_rows: int
    language_leakage: float
    language_leakage_raw: float
    language_leakage_chance: float
    silhouette: float
    silhouette_raw: float
    subject_nmi: float | None
    subject_nmi_raw: float | None


def diagnose(
    raw_ND: FloatMatrix,
    space_ND: FloatMatrix,
    clusters: Clusters,
    languages: Sequence[str],
    subjects: Sequence[str | None],
    seed: int,
) -> Diagnostics:
    """Compare the run's clusters with clusters of the raw vectors, on at most ``MAX_ROWS`` rows.

    Args:
        raw_ND: the encoder's vectors of the rows the clusters were fitted on.
        space_ND: the same rows in the run's space.
        clusters: fitted in the run's space.
        languages: of each row.
        subjects: of each row, None where it is not known.
        seed: of the sample and of the raw clusters.
    """
    order = np.random.default_rng(seed).permutation(len(languages))
    fitted, judged = order[:FITTED_ROWS], order[:MAX_ROWS]
    k = min(len(clusters.centroids), len(fitted))
    raw_clusters = fit_kmeans(raw_ND[fitted], k, seed=seed)
    raw_N, _ = raw_clusters.assign(raw_ND[judged])
    space_N, _ = clusters.assign(space_ND[judged])
    names = np.array(languages)[judged]
    topics = [subjects[row] for row in judged]
    shuffled = [np.random.default_rng([seed, turn]).permutation(space_N) for turn in range(3)]
    return Diagnostics(
        sample_rows=len(judged),
        language_leakage=_nmi(names, space_N),
        language_leakage_raw=_nmi(names, raw_N),
        language_leakage_chance=float(np.mean([_nmi(names, labels_N) for labels_N in shuffled])),
        silhouette=silhouette(space_ND[judged], space_N),
        silhouette_raw=silhouette(raw_ND[judged], raw_N),
        subject_nmi=_subject_nmi(topics, space_N),
        subject_nmi_raw=_subject_nmi(topics, raw_N),
    )


def _subject_nmi(subjects: Sequence[str | None], labels_N: NDArray[np.int32]) -> float | None:
    known = [row for row, subject in enumerate(subjects) if subject is not None]
    if not known:
        return None
    return _nmi(np.array([subjects[row] for row in known]), labels_N[known])


def _nmi(truth_N: NDArray[np.str_], labels_N: NDArray[np.int32]) -> float:
    from sklearn.metrics import normalized_mutual_info_score

    return float(normalized_mutual_info_score(truth_N, labels_N))
