"""What a row has, whatever shape it came in; what cannot be one is kept with a reason."""

from __future__ import annotations

import math
import subprocess
import sys
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from compass_ray.records import (
    EVALUATION_SCHEMA,
    REJECTED_SCHEMA,
    SCHEMA,
    row_id,
    to_rows,
)
from tests.unit.published import AYA, GLOBAL_MMLU, MMLU_PROX, read, reason, row


def test_the_answer_moves_with_its_option_when_an_earlier_one_is_null() -> None:
    gap = {**MMLU_PROX, "option_0": None, "option_3": "Nakuru", "answer_index": 2}
    item = row(gap, role="evaluation", language="de")
    assert item["options"][item["answer"]] == "Kisumu"


@pytest.mark.parametrize("answer", ["B", "b", " B ", 1, 1.0, "1", " 1 "])
def test_the_answer_is_a_letter_or_an_index(answer: Any) -> None:
    assert row({**GLOBAL_MMLU, "answer": answer}, role="evaluation")["answer"] == 1


def test_questions_that_differ_in_a_wrong_option_have_different_ids() -> None:
    other = {**GLOBAL_MMLU, "option_d": "Eldoret"}
    result = read(GLOBAL_MMLU, other, role="evaluation")
    assert len(set(result.rows["id"].to_pylist())) == 2


def test_our_own_rows_are_read_back_with_the_same_id() -> None:
    first = read({**AYA, "weight": 2.0, "subject": "geography"}).rows
    again = to_rows(first, role="train", language=None, source="data.jsonl").rows
    assert again.equals(first)


def test_usage_drops_the_response_of_any_format() -> None:
    read_row = row(AYA, role="usage")
    assert read_row["response"] is None
    assert read_row["id"] == row_id("sw", AYA["inputs"], None)


def test_the_language_of_the_config_fills_in_and_overrides_nothing() -> None:
    result = read({"text": "a"}, {"text": "b", "language": "de"}, role="usage", language="swh")
    assert result.rows["language"].to_pylist() == ["sw", "de"]
    assert reason({"text": "a"}, role="usage", language=None).startswith("no language")
    assert reason({"text": "a", "language": "qq"}, role="usage").startswith("unknown language 'qq'")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1_767_225_600, datetime(2026, 1, 1, tzinfo=UTC)),
        (1_767_225_600_000, datetime(2026, 1, 1, tzinfo=UTC)),
        (1_767_225_600.5, datetime(2026, 1, 1, 0, 0, 0, 500_000, tzinfo=UTC)),
        ("2026-01-01", datetime(2026, 1, 1, tzinfo=UTC)),
        ("2026-01-01 02:00:00+02:00", datetime(2026, 1, 1, tzinfo=UTC)),
        (datetime(2026, 1, 1), datetime(2026, 1, 1, tzinfo=UTC)),
        (date(2026, 1, 1), datetime(2026, 1, 1, tzinfo=UTC)),
        (1_767_225_600_000_001, datetime(2026, 1, 1, microsecond=1, tzinfo=UTC)),
        (1_767_225_600_000_000_000, datetime(2026, 1, 1, tzinfo=UTC)),
        ("1767225600", datetime(2026, 1, 1, tzinfo=UTC)),
        ("1767225600.0", datetime(2026, 1, 1, tzinfo=UTC)),
        (" 1711112101203 ", datetime(2024, 3, 22, 12, 55, 1, 203_000, tzinfo=UTC)),
        ("1767225600000000", datetime(2026, 1, 1, tzinfo=UTC)),
        ("20260101", datetime(2026, 1, 1, tzinfo=UTC)),
        (None, None),
        ("", None),
    ],
)
def test_a_timestamp_may_be_text_a_number_or_a_date(value: Any, expected: Any) -> None:
    assert row({"text": "a", "timestamp": value}, role="usage")["timestamp"] == expected


def test_nanoseconds_in_an_arrow_table_are_read() -> None:
    nanoseconds = pa.array([1_767_225_600_000_000_123], pa.timestamp("ns"))
    table = pa.table({"text": ["a"], "timestamp": nanoseconds})
    result = to_rows(table, role="usage", language="en", source="log.parquet")
    assert result.rows["timestamp"].to_pylist() == [datetime(2026, 1, 1, tzinfo=UTC)]


@pytest.mark.parametrize(
    "unreadable",
    [
        pa.array([3_000_000, 0], pa.date32()),
        pa.array([253_402_300_799_000_000, 0], pa.timestamp("us", tz="Asia/Tokyo")),
    ],
)
def test_a_date_that_python_has_none_for_rejects_its_row_if_it_is_used(
    unreadable: pa.Array,
) -> None:
    unused = to_rows(
        pa.table({"text": ["a", "b"], "expires": unreadable}),
        role="usage",
        language="en",
        source="log.parquet",
    )
    assert unused.rows["prompt"].to_pylist() == ["a", "b"]
    used = to_rows(
        pa.table({"text": ["a", "b"], "timestamp": unreadable}),
        role="usage",
        language="en",
        source="log.parquet",
    )
    assert used.rows["prompt"].to_pylist() == ["b"]
    assert used.rejected["reason"][0].as_py().endswith("'a date outside the years 1 to 9999'")


@pytest.mark.parametrize("weight", [2, "2", " 2.0 ", Decimal("2")])
def test_a_weight_may_be_a_number_in_text(weight: Any) -> None:
    assert row({"text": "a", "weight": weight}, role="usage")["weight"] == 2.0
    assert row({"text": "a", "weight": ""}, role="usage")["weight"] == 1.0


@pytest.mark.parametrize(
    ("labels", "subject"),
    [
        ({"category": 0}, "0"),
        ({"subject": 3.0}, "3"),
        ({"subject": ["a", "b"]}, None),
        ({"subject": True, "category": "music"}, "music"),
    ],
)
def test_a_label_that_is_no_text_costs_no_row(labels: dict[str, Any], subject: str | None) -> None:
    assert row({"prompt": "Hi", "response": "Hello", **labels})["subject"] == subject


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"prompt": ""}, "no prompt text"),
        ({"prompt": " \n\t"}, "no prompt text"),
        ({"prompt": None}, "no prompt text"),
        ({"prompt": 5}, "prompt is not text: 5"),
        ({"prompt": ["a"]}, "prompt[0] is not a turn: 'a'"),
        ({"prompt": {"a": 1}}, "prompt is not text: {'a': 1}"),
        ({"prompt": "half \ud83d of a pair"}, "prompt has a lone surrogate"),
        ({"prompt": "x" * 200_001}, "prompt has 200001 characters, more than 200000"),
        ({"response": " "}, "no response text"),
        ({"response": None}, "no response text"),
        ({"language": 7}, "language is not text: 7"),
        ({"language": "klingonese"}, "unknown language 'klingonese'"),
        ({"weight": math.nan}, "weight is not a finite number above 0: nan"),
        ({"weight": math.inf}, "weight is not a finite number above 0: inf"),
        ({"weight": 0}, "weight is not a finite number above 0: 0"),
        ({"weight": -1.5}, "weight is not a finite number above 0: -1.5"),
        ({"weight": 10**400}, "weight is not a finite number above 0"),
        ({"weight": "two"}, "weight is not a number: 'two'"),
        ({"weight": "inf"}, "weight is not a finite number above 0: 'inf'"),
        ({"weight": True}, "weight is not a number: True"),
        ({"timestamp": "yesterday"}, "timestamp is not ISO 8601"),
        ({"timestamp": 10**30}, "timestamp is not ISO 8601"),
        ({"timestamp": math.nan}, "timestamp is not ISO 8601"),
        ({"timestamp": True}, "timestamp is not ISO 8601"),
        ({"timestamp": "20260101120000"}, "timestamp is not ISO 8601 or an epoch number"),
        ({"timestamp": "17111121012"}, "timestamp is not ISO 8601 or an epoch number"),
        ({"timestamp": "0001-01-01T00:00:00+14:00"}, "timestamp is not ISO 8601"),
    ],
)
def test_a_row_that_cannot_be_used_is_rejected_with_its_reason(
    change: dict[str, Any], expected: str
) -> None:
    assert reason({"prompt": "Hi", "response": "Hello", **change}).startswith(expected)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"answer": "E"}, "the answer is out of range"),
        ({"answer": 4}, "the answer is out of range"),
        ({"answer": -1}, "answer is neither a letter nor an index"),
        ({"answer": "Nairobi"}, "answer is neither a letter nor an index"),
        ({"answer": None}, "answer is neither a letter nor an index"),
        ({"answer": "12"}, "answer is neither a letter nor an index"),
        ({"answer": "7"}, "the answer is out of range"),
        ({"option_b": " "}, "the answer is out of range"),
        ({"option_a": None, "option_c": None, "option_d": None}, "only 1 of the options"),
        ({"option_a": 4}, "option_a is not text"),
        ({"question": None}, "no prompt text"),
    ],
)
def test_a_question_without_a_right_option_is_rejected(
    change: dict[str, Any], expected: str
) -> None:
    for role in ("evaluation", "auxiliary"):
        assert reason({**GLOBAL_MMLU, **change}, role=role).startswith(expected)


def test_a_rejected_row_keeps_its_number_its_file_and_a_bounded_record() -> None:
    result = read({"text": "a"}, {"text": "", "junk": "x" * 9999}, role="usage", first_row=100)
    assert result.rows.num_rows == 1
    (only,) = result.rejected.to_pylist()
    assert (only["source"], only["row"]) == ("data.jsonl", 101)
    assert len(only["record"]) == 500


def test_tables_have_their_schema_even_without_rows() -> None:
    assert read().rows.schema == SCHEMA
    assert read(role="evaluation").rows.schema == EVALUATION_SCHEMA
    assert read().rejected.schema == REJECTED_SCHEMA
    assert read({"text": ""}, role="usage").rows.schema == SCHEMA


def test_importing_records_loads_nothing_heavy() -> None:
    heavy = "{'babel', 'datasets', 'torch', 'ray', 'pandas'}"
    script = f"import sys, compass_ray.records; found = {heavy} & set(sys.modules); "
    subprocess.run([sys.executable, "-c", script + "assert not found, found"], check=True)
