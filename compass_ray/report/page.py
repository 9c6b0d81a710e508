"""The page of a run: reads what the run left behind, works out what to show, fills the template.

Languages are read one after the other and only what is shown is kept, so a run of any size fits.
A stage that left nothing leaves a hole in the page, not an error. Knows nothing of how the numbers
came about.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa
import yaml
from markupsafe import Markup

from compass_ray import languages
from compass_ray.artifacts import Storage
from compass_ray.errors import UserError
from compass_ray.evaluation.scores import SCORES_SCHEMA
from compass_ray.report import figures, space
from compass_ray.report.figures import clean, columns, share
from compass_ray.report.production import production
from compass_ray.report.svg import PALETTE
from compass_ray.sampling.summary import unspent_reason

STAGES = ("records", "embed", "cluster", "sample", "train", "evaluate")
TOP_GAPS = 10
SHOWN_CLUSTERS = 30
SHOWN_SUBJECTS = 15
SHOWN_SOURCES = 20

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


def write_report(storage: Storage, run: str) -> str:
    """Write ``runs/<run>/report.html`` and return where a person can open it."""
    path = f"runs/{run}/report.html"
    storage.write_bytes(path, build_report(storage, run).encode())
    return storage.location(path)


def build_report(storage: Storage, run: str) -> str:
    """The page as HTML text that needs nothing but itself.

    Raises:
        UserError: The run has no manifest in this storage.
    """
    path = f"runs/{run}/manifest.json"
    if not storage.exists(path):
        raise UserError(f"run {run!r} has no manifest at {storage.location(path)}")
    manifest = storage.read_json(path)
    return _render(_context(storage, run, manifest))


def _context(storage: Storage, run: str, manifest: Row) -> dict[str, Any]:
    stages = manifest.get("stages") or {}
    scores = _read(storage, f"runs/{run}/scores.parquet")
    empty = dict.fromkeys(SCORES_SCHEMA.names)
    score_rows = [{**empty, **_without_nan(row)} for row in scores.to_pylist()] if scores else []
    clusters = _read(storage, f"runs/{run}/clusters.parquet")
    views = [
        _language(storage, run, code, stages, score_rows, clusters)
        for code in _codes(storage, run, manifest, score_rows)
    ]
    return {
        "run": manifest.get("name") or run,
        "manifest": manifest,
        "config": manifest.get("config") or {},
        "config_text": yaml.safe_dump(manifest.get("config"), sort_keys=False, allow_unicode=True),
        "stages": stages,
        "missing": [stage for stage in STAGES if stage not in stages],
        "failures": _failures(stages),
        "languages": views,
        "space": (stages.get("cluster") or {}).get("diagnostics"),
        "language_map": space.language_map(clusters, _name) if clusters else None,
        "left_out": _left_out((stages.get("cluster") or {}).get("near_duplicates")),
        "choice_curve": space.curve_of(stages.get("cluster") or {}),
        "search": _search(storage, run, manifest),
        "timings": [_timing(stage, stages[stage]) for stage in STAGES if stage in stages],
        "heat_map": _heat_map(views),
        "loss_figure": _loss_figure(views),
        "accuracy_figure": _accuracy_figure(views),
        "production": [
            told for view in views if (told := production(storage, run, view.code, view.name))
        ],
        "palette": PALETTE,
        "top_gaps": TOP_GAPS,
    }


def _codes(storage: Storage, run: str, manifest: Row, scores: Sequence[Row]) -> list[str]:
    """Target languages in the order of the config, then any that only left files."""
    files = storage.list_files(f"runs/{run}/subsets") + storage.list_files(f"runs/{run}/items")
    wanted = (manifest.get("config") or {}).get("languages") or []
    found = [Path(file).stem for file in files] + [row["language"] for row in scores]
    return list(dict.fromkeys([*wanted, *sorted(found)]))


def _language(
    storage: Storage,
    run: str,
    code: str,
    stages: Row,
    scores: Sequence[Row],
    clusters: pa.Table | None,
) -> LanguageView:
    def table(folder: str) -> pa.Table | None:
        return _read(storage, f"runs/{run}/{folder}/{code}.parquet")

    name = _name(code)
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


def _heat_map(views: Sequence[LanguageView]) -> Markup | None:
    picks = {view.name: view.picks.sources for view in views if view.picks and view.picks.picked}
    total = sum(picks.values(), Counter[str]())
    order = [code for code, _ in total.most_common()]
    if not order:
        return None
    shown, rest = order[:SHOWN_SOURCES], order[SHOWN_SOURCES:]
    labels = [_name(code) for code in shown]
    counts = [[sources[code] for sources in picks.values()] for code in shown]
    if rest:
        labels.append(f"{len(rest)} other languages")
        counts.append([sum(sources[code] for code in rest) for sources in picks.values()])
    label = (
        f"Picked rows by source language and target language. Most come from {labels[0]}: "
        f"{total[order[0]]:,} of {total.total():,}."
    )
    return Markup(figures.heat_map(labels, list(picks), counts, label=label))


def _loss_figure(views: Sequence[LanguageView]) -> Markup | None:
    tables = {view.name: view.losses for view in views if view.losses}
    curves = {name: (t["step"].to_numpy(), t["loss"].to_numpy()) for name, t in tables.items()}
    if not curves:
        return None
    last = {name: figures.smoothed(losses)[-1] for name, (_, losses) in curves.items()}
    told = ", ".join(f"{name} {share(value)}" for name, value in last.items())
    held_out = {name: seen for name, table in tables.items() if (seen := _validation(table))}
    label = f"Training loss by step. It ends at: {told}."
    return Markup(figures.loss_lines(curves, held_out, label=label))


def _validation(losses: pa.Table) -> tuple[list[int], list[float]] | None:
    """Steps and losses of the looks at rows held out; None if there were none."""
    if "validation_loss" not in losses.column_names:
        return None
    seen = losses.filter(losses["validation_loss"].is_valid())
    if not seen.num_rows:
        return None
    return seen["step"].to_pylist(), seen["validation_loss"].to_pylist()


def _accuracy_figure(views: Sequence[LanguageView]) -> Markup | None:
    pairs = [(view, score) for view in views for score in view.scores if score["n"]]
    if not pairs:
        return None
    several = len({score["task"] for _, score in pairs}) > 1
    names = [f"{view.name} · {score['task']}" if several else view.name for view, score in pairs]
    base, adapter = (
        np.array([[score[f"{who}{end}"] for end in ("", "_low", "_high")] for _, score in pairs])
        for who in ("base", "adapter")
    )
    chance = [view.chance.get(score["task"], math.nan) for view, score in pairs]
    told = "; ".join(
        f"{name} base {share(score['base'])}, adapter {share(score['adapter'])}"
        for name, (_, score) in zip(names, pairs, strict=True)
    )
    label = f"Accuracy with 95 % intervals. {told}."
    return Markup(figures.accuracy_intervals(names, base, adapter, chance, label=label))


def _search(storage: Storage, run: str, manifest: Row) -> Row | None:
    """Trials of the search that this run is the best of, and the keys that were searched."""
    table = _read(storage, f"runs/{run}/search.parquet")
    settings = (manifest.get("config") or {}).get("search")
    if table is None or settings is None:
        return None
    named = settings["metric"]
    metrics = [named] if isinstance(named, str) else named
    return {"keys": list(settings["space"]), "metrics": metrics, "trials": table.to_pylist()}


def _by_subject(items: pa.Table) -> list[Row]:
    """Accuracy of base model and adapter for each task and subject, the most items first."""
    right = [("base_correct", "mean"), ("adapter_correct", "mean"), ("id", "count")]
    rows = items.group_by(["task", "subject"]).aggregate(right).to_pylist()
    return sorted(rows, key=lambda row: (row["task"], -row["id_count"], row["subject"] or ""))


def _left_out(counts: Mapping[str, int] | None) -> list[tuple[str, int]]:
    """Near duplicates by where they come from, the most first."""
    order = sorted((counts or {}).items(), key=lambda entry: -entry[1])
    shown, rest = order[:SHOWN_SOURCES], order[SHOWN_SOURCES:]
    if rest:
        shown.append((f"{len(rest)} other sources", sum(count for _, count in rest)))
    return shown


def _chance(items: pa.Table) -> dict[str, float]:
    """Accuracy of guessing, by task; none where answers are written and not chosen."""
    odds: dict[str, list[float]] = {}
    for task, options in zip(items["task"].to_pylist(), items["options"].to_pylist(), strict=True):
        if options:
            odds.setdefault(task, []).append(1 / len(options))
    return {task: float(np.mean(values)) for task, values in odds.items()}


def _timing(stage: str, told: Row) -> Row:
    """Seconds of a stage, and how much of its work was found done, in the stage's own unit."""
    each = (told.get("languages") or {}).values()
    languages_reused = sum(bool(one.get("reused")) for one in each)
    reused, computed, unit = {
        "records": (told.get("reused"), told.get("computed"), "sources"),
        "embed": (told.get("reused_rows"), told.get("computed_rows"), "rows"),
        "cluster": (int(bool(told.get("reused"))), int(not told.get("reused")), "clusterings"),
        "evaluate": (told.get("items_reused"), told.get("items_computed"), "items"),
    }.get(stage, (languages_reused, len(each) - languages_reused, "languages"))
    seconds = told.get("seconds")
    return {
        "stage": stage,
        "seconds": seconds,
        "reused": reused,
        "computed": computed,
        "unit": unit,
        "device_hours": told.get("device_hours"),
    }


def _failures(stages: Row) -> list[Row]:
    return [
        {"stage": stage, "name": _name(code), "cause": str(cause)}
        for stage, told in stages.items()
        for code, cause in (told.get("failures") or {}).items()
    ]


def _without_nan(row: Row) -> Row:
    """What was not measured as None, however it was written: a comparison with NaN says nothing."""
    return {key: None if value != value else value for key, value in row.items()}


def _read(storage: Storage, path: str) -> pa.Table | None:
    """The table, or None where there is none or it has no rows: both show nothing."""
    if not storage.exists(path):
        return None
    table = storage.read_table(path)
    return table if table.num_rows else None


def _cluster_label(cluster: int, dominant: Mapping[int, str]) -> str:
    return f"{cluster} · {dominant[cluster]}" if cluster in dominant else str(cluster)


def _name(code: str) -> str:
    """English name of a language; the code itself where it is not one we know."""
    try:
        return languages.name(code)
    except UserError:
        return clean(code)


def _excerpt(text: str | None, most: int) -> str:
    """The beginning of a text on one line, cut between words where the script has spaces."""
    plain = clean(text or "")
    most = most * len(plain) // max(1, columns(plain))  # wide characters fill the space sooner
    if len(plain) <= most:
        return plain
    head = plain[:most]
    words, space, _ = head.rpartition(" ")
    return (words if space and len(words) > most // 2 else head).rstrip() + "…"


def _render(context: Mapping[str, Any]) -> str:
    folder = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=folder,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(
        share=share, language=_name, excerpt=_excerpt, clean=clean, unspent=unspent_reason
    )
    environment.globals["line_style"] = figures.line_style
    return environment.get_template("page.html.jinja").render(context)
