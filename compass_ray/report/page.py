"""The page of a run: reads what the run left behind, works out what to show, fills the template.

Languages are read one after the other and only what is shown is kept, so a run of any size fits.
A stage that left nothing leaves a hole in the page, not an error. Knows nothing of how the numbers
came about.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa
import yaml
from markupsafe import Markup

from compass_ray.artifacts import Storage
from compass_ray.errors import UserError
from compass_ray.evaluation.scores import SCORES_SCHEMA
from compass_ray.report import figures, space
from compass_ray.report.figures import clean, columns, share
from compass_ray.report.language import (
    TOP_GAPS,
    LanguageView,
    Row,
    language_view,
    read_table,
    shown_name,
)
from compass_ray.report.production import production
from compass_ray.report.svg import PALETTE
from compass_ray.sampling.summary import unspent_reason

STAGES = ("records", "embed", "cluster", "sample", "train", "evaluate")
SHOWN_SOURCES = 20
# Level of the intervals of runs that did not record theirs.
CONFIDENCE = 0.95


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
    scores = read_table(storage, f"runs/{run}/scores.parquet")
    empty = dict.fromkeys(SCORES_SCHEMA.names)
    score_rows = [{**empty, **_without_nan(row)} for row in scores.to_pylist()] if scores else []
    clusters = read_table(storage, f"runs/{run}/clusters.parquet")
    views = [
        language_view(storage, run, code, stages, score_rows, clusters)
        for code in _codes(storage, run, manifest, score_rows)
    ]
    settings = (manifest.get("config") or {}).get("evaluation") or {}
    confidence = settings.get("confidence", CONFIDENCE)
    percent = f"{100 * confidence:g} %"
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
        "language_map": space.language_map(clusters, shown_name) if clusters else None,
        "left_out": _left_out((stages.get("cluster") or {}).get("near_duplicates")),
        "choice_curve": space.curve_of(stages.get("cluster") or {}),
        "search": _search(storage, run, manifest),
        "timings": [_timing(stage, stages[stage]) for stage in STAGES if stage in stages],
        "heat_map": _heat_map(views),
        "loss_figures": _loss_figures(views),
        "accuracy_figure": _accuracy_figure(views, percent),
        "confidence": confidence,
        "percent": percent,
        "unchecked": (stages.get("sample") or {}).get("unchecked"),
        "compared": ((stages.get("records") or {}).get("rows") or {}).get("evaluation") != 0,
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


def _heat_map(views: Sequence[LanguageView]) -> Markup | None:
    picks = {view.name: view.picks.sources for view in views if view.picks and view.picks.picked}
    total = sum(picks.values(), Counter[str]())
    order = [code for code, _ in total.most_common()]
    if not order:
        return None
    shown, rest = order[:SHOWN_SOURCES], order[SHOWN_SOURCES:]
    labels = [shown_name(code) for code in shown]
    counts = [[sources[code] for sources in picks.values()] for code in shown]
    if rest:
        labels.append(f"{len(rest)} other languages")
        counts.append([sum(sources[code] for code in rest) for sources in picks.values()])
    label = (
        f"Picked rows by source language and target language. Most come from {labels[0]}: "
        f"{total[order[0]]:,} of {total.total():,}."
    )
    return Markup(figures.heat_map(labels, list(picks), counts, label=label))


def _loss_figures(views: Sequence[LanguageView]) -> list[Row]:
    """Figures of as many languages as there are kinds of lines, so that each can be told."""
    tables = [(view.name, view.losses) for view in views if view.losses]
    most = figures.LINE_STYLES
    return [_loss_figure(dict(tables[i : i + most])) for i in range(0, len(tables), most)]


def _loss_figure(tables: Mapping[str, pa.Table]) -> Row:
    curves = {name: (t["step"].to_numpy(), t["loss"].to_numpy()) for name, t in tables.items()}
    last = {name: figures.smoothed(losses)[-1] for name, (_, losses) in curves.items()}
    told = ", ".join(f"{name} {share(value)}" for name, value in last.items())
    held_out = {name: seen for name, table in tables.items() if (seen := _validation(table))}
    label = f"Training loss by step. It ends at: {told}."
    drawn = Markup(figures.loss_lines(curves, held_out, label=label))
    return {"names": list(tables), "figure": drawn}


def _validation(losses: pa.Table) -> tuple[list[int], list[float]] | None:
    """Steps and losses of the looks at rows held out; None if there were none."""
    if "validation_loss" not in losses.column_names:
        return None
    seen = losses.filter(losses["validation_loss"].is_valid())
    if not seen.num_rows:
        return None
    return seen["step"].to_pylist(), seen["validation_loss"].to_pylist()


def _accuracy_figure(views: Sequence[LanguageView], percent: str) -> Markup | None:
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
    label = f"Accuracy with {percent} intervals. {told}."
    return Markup(figures.accuracy_intervals(names, base, adapter, chance, label=label))


def _search(storage: Storage, run: str, manifest: Row) -> Row | None:
    """Trials of the search that this run is the best of, and the keys that were searched."""
    table = read_table(storage, f"runs/{run}/search.parquet")
    settings = (manifest.get("config") or {}).get("search")
    if table is None or settings is None:
        return None
    named = settings["metric"]
    metrics = [named] if isinstance(named, str) else named
    return {"keys": list(settings["space"]), "metrics": metrics, "trials": table.to_pylist()}


def _left_out(counts: Mapping[str, int] | None) -> list[tuple[str, int]]:
    """Near duplicates by where they come from, the most first."""
    order = sorted((counts or {}).items(), key=lambda entry: -entry[1])
    shown, rest = order[:SHOWN_SOURCES], order[SHOWN_SOURCES:]
    if rest:
        shown.append((f"{len(rest)} other sources", sum(count for _, count in rest)))
    return shown


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
        {"stage": stage, "name": shown_name(code), "cause": str(cause)}
        for stage, told in stages.items()
        for code, cause in (told.get("failures") or {}).items()
    ]


def _without_nan(row: Row) -> Row:
    """What was not measured as None, however it was written: a comparison with NaN says nothing."""
    return {key: None if value != value else value for key, value in row.items()}


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
        share=share, language=shown_name, excerpt=_excerpt, clean=clean, unspent=unspent_reason
    )
    environment.globals["line_style"] = figures.line_style
    return environment.get_template("page.html.jinja").render(context)
