"""The clusters as a map: whose rows they hold, where users ask for more, and how K was chosen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from markupsafe import Markup

from compass_ray.report import figures

_COLOURED = 6
_NAMED = 10


@dataclass(frozen=True)
class LanguageMap:
    """The map coloured by the language most of a cluster's rows are in, and its legend."""

    figure: Markup
    legend: Sequence[tuple[str, str]]


def language_map(clusters: pa.Table, name: Callable[[str], str]) -> LanguageMap:
    """Clusters of one language show strong; those of many, which gaps can be filled from, pale."""
    languages = clusters["language"].to_pylist()
    share_K = clusters["share"].to_numpy()
    leading = [code for code, _ in Counter(languages).most_common(_COLOURED)]
    colours = {code: f"line{place}" for place, code in enumerate(leading)}
    label = (
        f"{len(languages)} clusters. The most frequent language of a cluster holds "
        f"{figures.share(float(np.median(share_K)))} of its rows in the median."
    )
    figure = figures.cluster_map(
        _places(clusters),
        clusters["rows"].to_numpy(),
        [colours.get(code, "muted") for code in languages],
        share_K,
        _named(clusters["rows"].to_numpy()),
        label=label,
    )
    legend = [(colours[code], name(code)) for code in leading]
    if len(set(languages)) > len(leading):
        legend.append(("muted", "other"))
    return LanguageMap(Markup(figure), legend)


def gap_map(clusters: pa.Table, gaps: pa.Table, name: str) -> Markup | None:
    """Where one language's users ask for more than its rows hold, and for less."""
    if gaps["cluster"].to_pylist() != clusters["cluster"].to_pylist():
        return None
    gap_K = gaps["target"].to_numpy() - gaps["before"].to_numpy()
    label = (
        f"{name}: rows are missing in {int((gap_K > 0).sum())} of {len(gap_K)} clusters, "
        f"most in cluster {int(gap_K.argmax())}, {figures.share(float(gap_K.max()))}."
    )
    figure = figures.cluster_map(
        _places(clusters),
        clusters["rows"].to_numpy(),
        ["target" if gap > 0 else "after" for gap in gap_K],
        np.abs(gap_K) / max(float(np.abs(gap_K).max()), 1e-12),
        _named(gap_K),
        label=label,
    )
    return Markup(figure)


def curve_of(clustering: Mapping[str, Any]) -> Markup | None:
    """The measure over K, where several numbers of clusters were tried."""
    points = clustering.get("curve") or []
    if len(points) < 2:
        return None
    measure = {"silhouette": "silhouette", "dbcv": "DBCV"}[clustering["measure"]]
    ks, scores = [point["k"] for point in points], [point["score"] for point in points]
    told = ", ".join(f"{k}: {figures.share(score)}" for k, score in zip(ks, scores, strict=True))
    label = f"{measure} by number of clusters. {told}. Chosen: {clustering['k']}."
    return Markup(figures.choice_curve(ks, scores, clustering["k"], measure, label=label))


def _places(clusters: pa.Table) -> np.ndarray[Any, Any]:
    return np.column_stack([clusters["x"].to_numpy(), clusters["y"].to_numpy()])


def _named(values_K: np.ndarray[Any, Any]) -> dict[int, str]:
    """The numbers of the clusters of the largest values."""
    return {int(cluster): str(cluster) for cluster in np.argsort(-values_K)[:_NAMED]}
