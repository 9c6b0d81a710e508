"""Tables of scores: what is shown and kept of base and adapter, item by item and in sum. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from compass_ray.evaluation.statistics import bootstrap_ci, cohens_d, paired_permutation_test

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
                *("p_value", "cohens_d", "unparsed"),
            )
        ),
    ]
)


@dataclass(frozen=True, eq=False)
class Comparison:
    """The scored items (``harness.SCORED_SCHEMA``) of one language and task, in the same order."""

    language: str
    task: str
    base: pa.Table | None
    adapter: pa.Table


def score_table(comparisons: Sequence[Comparison], confidence: float, seed: int) -> pa.Table:
    """One row a language and task: accuracies, gain, bootstrap intervals, paired test.

    Shares are in 0 to 1. ``unparsed`` is the share of items without an answer that could be
    read; a choice by log-likelihood always has one.
    """
    rows = [_score(comparison, confidence, seed) for comparison in comparisons]
    return pa.Table.from_pylist(rows, schema=SCORES_SCHEMA)


def _score(comparison: Comparison, confidence: float, seed: int) -> dict[str, object]:
    adapter = _correct(comparison.adapter)
    row: dict[str, object] = {
        "language": comparison.language,
        "task": comparison.task,
        "n": len(adapter),
        "unparsed": 0.0,
    }
    row |= _with_interval("adapter", adapter, confidence, seed)
    if comparison.base is not None:
        base = _correct(comparison.base)
        row |= _with_interval("base", base, confidence, seed)
        row |= _with_interval("gain", adapter - base, confidence, seed)
        row["p_value"] = paired_permutation_test(adapter, base, seed=seed)
        row["cohens_d"] = cohens_d(adapter, base)
    return row


def _with_interval(
    name: str, values: np.ndarray, confidence: float, seed: int
) -> dict[str, object]:
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
    for name in ("choice", "correct", "loglikelihoods"):
        field = adapter.schema.field(name)
        columns[f"base_{name}"] = base[name] if base else pa.nulls(count, field.type)
        columns[f"adapter_{name}"] = adapter[name]
    return pa.table(columns)


def _correct(items: pa.Table) -> np.ndarray:
    values: np.ndarray = items["correct"].to_numpy(zero_copy_only=False).astype(np.float64)
    return values
