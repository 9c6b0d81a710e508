"""What ``compare`` makes of scored items; training and scoring are made up here."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from compass_ray import compare
from compass_ray.artifacts import Artifact, Storage
from compass_ray.errors import UserError
from compass_ray.evaluation.scores import Comparison
from compass_ray.evaluation.stage import Evaluated
from compass_ray.evaluation.standings import BASE, REFERENCE, Answers


def items(right: list[bool]) -> pa.Table:
    return pa.table({"id": [str(i) for i in range(len(right))], "correct": right})


def test_answers_are_kept_by_task_and_seeds_stacked(monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = items([True, False]), items([True, True, False])
    comparisons = (
        Comparison("de", "items", few, few),
        Comparison("de", "global_mmlu", many, many),
    )
    evaluated = Evaluated(comparisons, reused_items=0, computed_items=0)
    monkeypatch.setattr(compare, "evaluate", lambda *_: evaluated)
    answers: Answers = {}
    nothing: Any = None
    for _seed in range(2):
        for name in (REFERENCE, "random"):
            compare._add_answers(answers, name, nothing, nothing, nothing, {})
    assert set(answers) == {REFERENCE, "random", BASE}
    for by in answers.values():
        assert by["de", "items"].right.tolist() == [[1, 0]] * 2
        assert by["de", "global_mmlu"].right.tolist() == [[1, 1, 0]] * 2
        assert by["de", "global_mmlu"].questions == ["0", "1", "2"]


def test_a_task_that_failed_leaves_nothing_to_compare(monkeypatch: pytest.MonkeyPatch) -> None:
    failures = {("de", "items"): "OutOfMemoryError: <gpu>"}
    evaluated = Evaluated((), reused_items=0, computed_items=0, failures=failures)
    monkeypatch.setattr(compare, "evaluate", lambda *_: evaluated)
    nothing: Any = None
    with pytest.raises(RuntimeError, match="de items could not be scored: OutOfMemoryError"):
        compare._add_answers({}, REFERENCE, nothing, nothing, nothing, {})


def test_a_strategy_without_rows_for_a_language_is_refused_before_anything_trains() -> None:
    storage = Storage.open(".")
    subsets = {
        language: Artifact(storage, "sample", language, "attempt-1", (), {"rows": rows})
        for language, rows in (("de", 8), ("sw", 0))
    }
    compare.check_rows("compass", {"de": subsets["de"]})
    message = "strategy target_only: sw has no own rows to train on; leave it out of --strategies"
    with pytest.raises(UserError, match=message):
        compare.check_rows("target_only", subsets)
