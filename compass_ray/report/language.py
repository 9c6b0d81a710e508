"""What a run's page shows of one target language, worked out from the tables the run left of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from typing import Any

import numpy as np
import pyarrow as pa
from markupsafe import Markup

from compass_ray import languages
from compass_ray.artifacts import Storage
from compass_ray.errors import UserError
from compass_ray.report import figures, space
from compass_ray.report.figures import clean, share

TOP_GAPS = 10
SHOWN_CLUSTERS = 30
SHOWN_SUBJECTS = 15

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Gaps:
    """How far one language's data was from its usage, and where that was mended most."""

    figure: Markup
    map: Markup | None
    rows: Sequence[Row]
    short_before: float
    short_after: float


@dataclass(frozen=True)
class Picks:
    """The subset of one language: own rows, picked rows, and picked rows worth reading."""

    own: int
    picked: int
    sources: Counter[str]
    subject_figure: Markup | None
    best: Mapping[int, Row]
    examples: Sequence[Row]
    dominant: Mapping[int, str]


@dataclass(frozen=True)
class LanguageView:
    """All that the page shows of one target language; None or empty where there is nothing."""

    code: str
    name: str
    sampled: Row
    trained: Row
    scores: Sequence[Row]
    gaps: Gaps | None
    picks: Picks | None
    losses: pa.Table | None
    subjects: Sequence[Row] = field(default=())
    chance: Mapping[str, float] = field(default_factory=dict)


def language_view(
    storage: Storage,
    run: str,
    code: str,
    stages: Row,
    scores: Sequence[Row],
    clusters: pa.Table | None,
) -> LanguageView:
    def table(folder: str) -> pa.Table | None:
        return read_table(storage, f"runs/{run}/{folder}/{code}.parquet")

    name = shown_name(code)
    gaps, subset, items = table("gaps"), table("subsets"), table("items")
    filled = _filled(gaps) if gaps else []
    picks = _picks(subset, name, filled) if subset else None
    return LanguageView(
        code=code,
        name=name,
        sampled=_of_language(stages, "sample", code),
        trained=_of_language(stages, "train", code),
        scores=[row for row in scores if row["language"] == code],
        gaps=_gaps(gaps, clusters, name, filled, picks.dominant if picks else {}) if gaps else None,
        picks=picks,
        losses=table("losses"),
        subjects=_by_subject(items) if items else (),
        chance=_chance(items) if items else {},
    )


def _of_language(stages: Row, stage: str, code: str) -> Row:
    found: Row = ((stages.get(stage) or {}).get("languages") or {}).get(code) or {}
    return found


def _filled(gaps: pa.Table) -> list[int]:
    """Rows of the table whose gap got picked rows, the largest gap first."""
    gap_K = gaps["target"].to_numpy() - gaps["before"].to_numpy()
    order = np.argsort(-gap_K, kind="stable")
    return [int(row) for row in order if gaps["added"][int(row)].as_py() > 0][:TOP_GAPS]


def _gaps(
    table: pa.Table,
    clusters: pa.Table | None,
    name: str,
    filled: Sequence[int],
    dominant: Mapping[int, str],
) -> Gaps:
    cluster_K = table["cluster"].to_pylist()
    shares = [table[column].to_numpy() for column in ("target", "before", "after")]
    target_K, before_K, after_K = shares
    order = np.argsort(before_K - target_K, kind="stable")
    shown, rest = order[:SHOWN_CLUSTERS], order[SHOWN_CLUSTERS:]
    labels = [_cluster_label(cluster_K[row], dominant) for row in shown]
    bars = [values[shown] for values in shares]
    if len(rest):
        labels.append(f"mean of the other {len(rest)}")
        bars = [
            np.append(bar, values[rest].mean()) for bar, values in zip(bars, shares, strict=True)
        ]
    label = (
        f"{name}: wanted share, share before and share after, for {len(shown)} clusters. "
        f"The largest gap is in cluster {labels[0]}: {share(target_K[order[0]])} wanted, "
        f"{share(before_K[order[0]])} before, {share(after_K[order[0]])} after."
    )
    return Gaps(
        figure=Markup(figures.gap_bars(labels, bars[0], bars[1], bars[2], label=label)),
        map=space.gap_map(clusters, table, name) if clusters else None,
        rows=table.take(pa.array(filled, pa.int64())).to_pylist(),
        short_before=float(np.maximum(target_K - before_K, 0).sum()),
        short_after=float(np.maximum(target_K - after_K, 0).sum()),
    )


def _picks(subset: pa.Table, name: str, filled: Sequence[int]) -> Picks:
    is_own = np.array([strategy == "own" for strategy in subset["strategy"].to_pylist()], bool)
    subjects = subset["subject"].to_pylist()
    own, picked = subset.filter(pa.array(is_own)), subset.filter(pa.array(~is_own))
    best, examples = _worth_reading(picked, filled)
    return Picks(
        own=own.num_rows,
        picked=picked.num_rows,
        sources=Counter(picked["language"].to_pylist()),
        subject_figure=_subject_figure(own, picked, name),
        best=best,
        examples=examples,
        dominant=_dominant(subset["cluster"].to_pylist(), subjects),
    )


def _worth_reading(picked: pa.Table, clusters: Sequence[int]) -> tuple[dict[int, Row], list[Row]]:
    """The best-scored picked row of each cluster, and ``TOP_GAPS`` more taken from them in turn."""
    cluster_N = picked["cluster"].to_numpy()
    score_N = np.nan_to_num(picked["score"].cast(pa.float64()).to_numpy(zero_copy_only=False))
    ranked = {}
    for cluster in clusters:
        rows = np.flatnonzero(cluster_N == cluster)
        best_first = rows[np.argsort(-score_N[rows], kind="stable")][: TOP_GAPS + 1]
        ranked[cluster] = picked.take(pa.array(best_first)).to_pylist()
    best = {cluster: rows[0] for cluster, rows in ranked.items() if rows}
    in_turn = zip_longest(*(rows[1:] or rows for rows in ranked.values()))
    examples = [row for row in chain.from_iterable(in_turn) if row is not None]
    return best, examples[:TOP_GAPS]


def _dominant(clusters: Sequence[int], subjects: Sequence[str | None]) -> dict[int, str]:
    """The most frequent known subject of each cluster."""
    counts = Counter(zip(clusters, subjects, strict=True))
    found: dict[int, str] = {}
    for (cluster, subject), _ in counts.most_common():
        if subject is not None:
            found.setdefault(cluster, clean(subject))
    return found


def _subject_figure(own: pa.Table, picked: pa.Table, name: str) -> Markup | None:
    had, got = (
        Counter(clean(subject) for subject in table["subject"].to_pylist() if subject is not None)
        for table in (own, picked)
    )
    order = [subject for subject, _ in (had + got).most_common()]
    if not order:
        return None
    labels, rest = order[:SHOWN_SUBJECTS], order[SHOWN_SUBJECTS:]
    bars = [[counts[subject] for subject in labels] for counts in (had, got)]
    if rest:
        labels = [*labels, f"{len(rest)} other subjects"]
        for bar, counts in zip(bars, (had, got), strict=True):
            bar.append(sum(counts[subject] for subject in rest))
    label = f"{name}: own rows and picked rows for {len(order)} subjects. Most rows: {order[0]}."
    return Markup(figures.subject_bars(labels, bars[0], bars[1], label=label))


def read_table(storage: Storage, path: str) -> pa.Table | None:
    """The table, or None where there is none or it has no rows: both show nothing."""
    if not storage.exists(path):
        return None
    table = storage.read_table(path)
    return table if table.num_rows else None


def shown_name(code: str) -> str:
    """English name of a language; the code itself where it is not one we know."""
    try:
        return languages.name(code)
    except UserError:
        return clean(code)


def _by_subject(items: pa.Table) -> list[Row]:
    """Accuracy of base model and adapter for each task and subject, the most items first."""
    right = [("base_correct", "mean"), ("adapter_correct", "mean"), ("id", "count")]
    rows = items.group_by(["task", "subject"]).aggregate(right).to_pylist()
    return sorted(rows, key=lambda row: (row["task"], -row["id_count"], row["subject"] or ""))


def _chance(items: pa.Table) -> dict[str, float]:
    """Accuracy of guessing, by task; none where answers are written and not chosen."""
    odds: dict[str, list[float]] = {}
    for task, options in zip(items["task"].to_pylist(), items["options"].to_pylist(), strict=True):
        if options:
            odds.setdefault(task, []).append(1 / len(options))
    return {task: float(np.mean(values)) for task, values in odds.items()}


def _cluster_label(cluster: int, dominant: Mapping[int, str]) -> str:
    return f"{cluster} · {dominant[cluster]}" if cluster in dominant else str(cluster)
