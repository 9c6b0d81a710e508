"""Tables of scores: what is shown and kept of base and adapter, item by item and in sum. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from compass_ray.evaluation.fertility import fertility, unit
from compass_ray.evaluation.statistics import (
    bootstrap_ci,
    cohens_d,
    holm,
    paired_permutation_test,
)

SCORES_SCHEMA = pa.schema(
    [
        pa.field("language", pa.string()),
        pa.field("task", pa.string()),
        pa.field("n", pa.int64()),
        *(
            pa.field(name, pa.float64())
            for name in (
                *("base", "base_low", "base_high"),
                *("adapter", "adapter_low", "adapter_high"),
                *("gain", "gain_low", "gain_high"),
                *("p_value", "p_holm", "cohens_d", "base_unparsed", "unparsed", "fertility"),
            )
        ),
        pa.field("fertility_unit", pa.string()),
        pa.field("note", pa.string()),
    ]
)


@dataclass(frozen=True, eq=False)
class Comparison:
    """The scored items (``harness.SCORED_SCHEMA``) of one language and task, in the same order."""

    language: str
    task: str
    base: pa.Table | None
    adapter: pa.Table


def score_table(
    comparisons: Sequence[Comparison],
    confidence: float,
    seed: int,
    lacking: Mapping[tuple[str, str], str] | None = None,
) -> pa.Table:
    """One row a language and task: accuracies, gain, bootstrap intervals, paired test.

    Shares are in 0 to 1. ``unparsed`` is the share of items in which no answer could be read; they
    count as wrong. ``p_holm`` is ``p_value`` adjusted for the languages of a task. ``fertility``
    is tokens of the model's tokenizer per ``fertility_unit`` of the questions. A language and
    task of ``lacking`` has no scored items; its reason is the ``note``.
    """
    rows = [_score(comparison, confidence, seed) for comparison in comparisons]
    for task in dict.fromkeys(row["task"] for row in rows):
        tested = [row for row in rows if row["task"] == task and "p_value" in row]
        adjusted = holm([row["p_value"] for row in tested])
        for row, p_value in zip(tested, adjusted, strict=True):
            row["p_holm"] = float(p_value)
    rows += [
        {"language": language, "task": task, "n": 0, "note": reason}
        for (language, task), reason in (lacking or {}).items()
    ]
    return pa.Table.from_pylist(rows, schema=SCORES_SCHEMA)


def _score(comparison: Comparison, confidence: float, seed: int) -> dict[str, Any]:
    adapter = _flags(comparison.adapter, "correct")
    language = comparison.language
    tokens_per_unit = fertility(
        comparison.adapter["question"].to_pylist(),
        comparison.adapter["tokens"].to_pylist(),
        language,
    )
    row: dict[str, Any] = {
        "language": language,
        "task": comparison.task,
        "n": len(adapter),
        "unparsed": 1 - float(_flags(comparison.adapter, "parsed").mean()),
        "fertility": tokens_per_unit,
        "fertility_unit": None if tokens_per_unit is None else unit(language),
    }
    row |= _with_interval("adapter", adapter, confidence, seed)
    if comparison.base is not None:
        base = _flags(comparison.base, "correct")
        row |= _with_interval("base", base, confidence, seed)
        row |= _with_interval("gain", adapter - base, confidence, seed)
        row["base_unparsed"] = 1 - float(_flags(comparison.base, "parsed").mean())
        row["p_value"] = paired_permutation_test(adapter, base, seed=seed)
        if len(adapter) > 1:
            row["cohens_d"] = cohens_d(adapter, base)
    return row


def _with_interval(name: str, values: np.ndarray, confidence: float, seed: int) -> dict[str, Any]:
    low, high = bootstrap_ci(values, confidence=confidence, seed=seed)
    return {name: float(values.mean()), f"{name}_low": low, f"{name}_high": high}


def item_table(comparisons: Sequence[Comparison]) -> pa.Table:
    """Items of one language, base beside adapter, a row an item and task."""
    return pa.concat_tables([_items(comparison) for comparison in comparisons])


def _items(comparison: Comparison) -> pa.Table:
    adapter, base = comparison.adapter, comparison.base
    count = adapter.num_rows
    columns = {
        "task": pa.array([comparison.task] * count, pa.string()),
        **{name: adapter[name] for name in ("id", "subject", "question", "options", "answer")},
    }
    for name in ("choice", "text", "parsed", "correct", "loglikelihoods"):
        field = adapter.schema.field(name)
        columns[f"base_{name}"] = base[name] if base else pa.nulls(count, field.type)
        columns[f"adapter_{name}"] = adapter[name]
    return pa.table(columns)


def _flags(items: pa.Table, column: str) -> np.ndarray:
    values: np.ndarray = items[column].to_numpy(zero_copy_only=False).astype(np.float64)
    return values
