from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from compass_ray.evaluation.scores import SCORES_SCHEMA, Comparison, item_table, score_table
from compass_ray.evaluation.statistics import holm


def scored(correct: list[bool], parsed: list[bool] | None = None) -> pa.Table:
    count = len(correct)
    return pa.table(
        {
            "id": [str(i) for i in range(count)],
            "subject": ["s"] * count,
            "question": ["one two"] * count,
            "options": [["a", "b"]] * count,
            "answer": pa.array([0] * count, pa.int32()),
            "choice": pa.array([0] * count, pa.int32()),
            "correct": correct,
            "loglikelihoods": [[-1.0, -2.0]] * count,
            "text": pa.nulls(count, pa.string()),
            "parsed": parsed or [True] * count,
            "tokens": pa.array([3] * count, pa.int32()),
        }
    )


def comparisons() -> list[Comparison]:
    rng = np.random.default_rng(0)
    return [
        Comparison(
            language,
            "items",
            scored((rng.random(80) < 0.4).tolist()),
            scored((rng.random(80) < 0.4 + gain).tolist(), [i % 4 > 0 for i in range(80)]),
        )
        for language, gain in (("de", 0.3), ("fr", 0.2), ("sw", 0.0))
    ]


def test_a_row_says_how_far_the_adapter_is_from_the_base() -> None:
    compared = comparisons()[0]
    (row,) = score_table([compared], 0.95, 0).to_pylist()
    base, adapter = (
        np.mean(items["correct"].to_pylist()) for items in (compared.base, compared.adapter)
    )
    assert (row["base"], row["adapter"]) == (pytest.approx(base), pytest.approx(adapter))
    assert row["gain"] == pytest.approx(adapter - base)
    assert row["gain_low"] < row["gain"] < row["gain_high"]
    assert row["unparsed"] == pytest.approx(0.25) and row["base_unparsed"] == 0
    assert row["fertility"] == pytest.approx(1.5) and row["fertility_unit"] == "word"


def test_p_values_are_adjusted_for_the_languages_of_a_task() -> None:
    other = [Comparison("de", "atlas", c.base, c.adapter) for c in comparisons()[:1]]
    rows = score_table([*comparisons(), *other], 0.95, 0).to_pylist()
    mine = [row for row in rows if row["task"] == "items"]
    assert [row["p_holm"] for row in mine] == holm([row["p_value"] for row in mine]).tolist()
    assert rows[-1]["p_holm"] == rows[-1]["p_value"]


def test_a_language_without_items_is_a_row_with_the_reason() -> None:
    table = score_table(comparisons()[:1], 0.95, 0, {("zu", "mmlu_prox"): "not in mmlu_prox"})
    assert table.schema == SCORES_SCHEMA
    row = table.to_pylist()[1]
    assert (row["language"], row["n"], row["note"]) == ("zu", 0, "not in mmlu_prox")
    assert row["adapter"] is None and row["p_value"] is None


def test_without_a_base_there_is_nothing_to_test() -> None:
    compared = comparisons()[0]
    alone = Comparison("de", "items", None, compared.adapter)
    (row,) = score_table([alone], 0.95, 0).to_pylist()
    assert row["adapter"] is not None
    assert row["base"] is None and row["p_holm"] is None


def test_items_stand_side_by_side() -> None:
    compared = comparisons()[0]
    rows = item_table([compared]).to_pylist()
    assert [row["base_correct"] for row in rows] == compared.base["correct"].to_pylist()
    assert [row["adapter_parsed"] for row in rows] == compared.adapter["parsed"].to_pylist()
