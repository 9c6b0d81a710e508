"""Records in the shapes they are published in become rows; what cannot is kept with a reason."""

from __future__ import annotations

import math
import subprocess
import sys
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from compass_ray.errors import UserError
from compass_ray.records import (
    EVALUATION_SCHEMA,
    REJECTED_SCHEMA,
    SCHEMA,
    Normalised,
    Role,
    detect_format,
    row_id,
    to_rows,
)

AYA = {
    "inputs": "Mji mkuu wa Kenya ni upi?",
    "targets": "Nairobi.",
    "language": "Swahili",
    "language_code": "swa",
    "annotation_type": "original-annotations",
    "user_id": "ca908e583236b208e473e89dae5c7b7d3daf3662e2bbf6606f0702c718bb5c06",
}
AYA_COLLECTION = {
    "id": 7,
    "inputs": "法國的首都是哪裡？",
    "targets": "巴黎。",
    "dataset_name": "Mintaka-inst",
    "sub_dataset_name": "-",
    "task_type": "question-answering",
    "template_id": 1,
    "language": "zho",
    "script": "Hant",
    "split": "train",
}
GLOBAL_MMLU = {
    "sample_id": "geography/test/1",
    "subject": "high_school_geography",
    "subject_category": "Social Sciences",
    "question": "Mji mkuu wa Kenya ni upi?",
    "option_a": "Mombasa",
    "option_b": "Nairobi",
    "option_c": "Kisumu",
    "option_d": "Nakuru",
    "answer": "B",
    "required_knowledge": "['geographical']",
    "time_sensitive": "['No']",
    "reference": "[]",
    "culture": "[]",
    "region": "['Africa']",
    "country": "['Kenya']",
    "cultural_sensitivity_label": "CS",
    "is_annotated": True,
}
MMLU_PROX = {
    "question_id": 70,
    "question": "Was ist die Hauptstadt von Kenia?",
    **{f"option_{i}": None for i in range(10)},
    "option_0": "Mombasa",
    "option_1": "Nairobi",
    "option_2": "Kisumu",
    "answer": "B",
    "answer_index": 1,
    "cot_content": "A: Denken wir Schritt für Schritt nach.",
    "category": "geography",
    "src": "ori_mmlu-high_school_geography",
    "question_id_src": 70,
}


def read(*records: dict[str, Any], role: Role = "train", **options: Any) -> Normalised:
    options = {"language": "en", "source": "data.jsonl", **options}
    return to_rows(list(records), role=role, **options)


def row(record: dict[str, Any], role: Role = "train", **options: Any) -> dict[str, Any]:
    result = read(record, role=role, **options)
    assert result.rejected.num_rows == 0, result.rejected.to_pylist()
    (only,) = result.rows.to_pylist()
    return dict(only)


def reason(record: dict[str, Any], role: Role = "train", **options: Any) -> str:
    result = read(record, role=role, **options)
    assert result.rows.num_rows == 0
    (only,) = result.rejected.to_pylist()
    return str(only["reason"])


def test_a_row_of_the_aya_dataset_is_read_with_its_own_language() -> None:
    assert row(AYA) == {
        "id": row_id("sw", "Mji mkuu wa Kenya ni upi?", "Nairobi."),
        "language": "sw",
        "prompt": "Mji mkuu wa Kenya ni upi?",
        "response": "Nairobi.",
        "subject": None,
        "source": "data.jsonl",
        "weight": 1.0,
        "timestamp": None,
    }


def test_a_row_of_the_aya_collection_is_told_apart_by_its_script() -> None:
    assert row(AYA_COLLECTION)["language"] == "zh-Hant"


def test_aya_tells_the_two_kinds_of_chinese_apart_by_name_only() -> None:
    chinese = {**AYA, "language_code": "zho"}
    assert row({**chinese, "language": "Traditional Chinese"})["language"] == "zh-Hant"
    assert row({**chinese, "language": "Simplified Chinese"})["language"] == "zh"
    assert row({**chinese, "language": "a name nobody knows"})["language"] == "zh"


def test_a_row_of_global_mmlu_is_a_question_or_its_right_answer_by_role() -> None:
    as_item = row(GLOBAL_MMLU, role="evaluation", language="sw")
    assert as_item == {
        "id": as_item["id"],
        "language": "sw",
        "question": "Mji mkuu wa Kenya ni upi?",
        "options": ["Mombasa", "Nairobi", "Kisumu", "Nakuru"],
        "answer": 1,
        "subject": "high_school_geography",
        "source": "data.jsonl",
    }
    as_row = row(GLOBAL_MMLU, role="auxiliary", language="sw")
    assert (as_row["prompt"], as_row["response"]) == ("Mji mkuu wa Kenya ni upi?", "Nairobi")
    assert as_row["subject"] == "high_school_geography"


def test_a_row_of_mmlu_prox_leaves_out_the_options_it_does_not_have() -> None:
    item = row(MMLU_PROX, role="evaluation", language="de")
    assert item["options"] == ["Mombasa", "Nairobi", "Kisumu"]
    assert item["answer"] == 1
    assert item["subject"] == "geography"


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


def test_a_single_turn_chat_is_its_two_texts() -> None:
    chat = {
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello"},
        ]
    }
    read_row = row(chat)
    assert (read_row["prompt"], read_row["response"]) == ("Hi", "Hello")


def test_a_long_chat_is_all_turns_before_the_last_answer_without_labels_and_instructions() -> None:
    chat = {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello"},
            {"role": "Developer", "content": "Be polite."},
            {"role": "user", "content": "Bye"},
            {"role": "assistant", "content": "See you"},
            {"role": "user", "content": "Are you there?"},
        ]
    }
    read_row = row(chat)
    assert read_row["prompt"] == "Hi\n\nHello\n\nBye"
    assert read_row["response"] == "See you"


def test_a_logged_chat_that_nobody_answered_is_usage() -> None:
    chat = {"messages": [{"role": "user", "content": "Hi"}]}
    assert row(chat, role="usage")["prompt"] == "Hi"
    assert reason(chat, role="train") == "no response text"


def turns(*said: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in said]


@pytest.mark.parametrize(
    ("chat", "asked"),
    [
        ([("user", "A"), ("assistant", "B"), ("user", "C")], "A\n\nB\n\nC"),
        ([("user", "A"), ("assistant", "B"), ("user", "C"), ("assistant", "D")], "A\n\nB\n\nC"),
        ([("system", "Be brief."), ("assistant", "Hi"), ("user", "Reset")], "Hi\n\nReset"),
        ([("user", "A"), ("assistant", "B"), ("assistant", "C")], "A"),
        ([("user", "A"), ("assistant", None), ("tool", "18 °C"), ("assistant", "Mild")], "A"),
        ([("user", "A"), ("assistant", "B"), ("user", " ")], "A"),
    ],
)
def test_what_is_asked_in_a_chat_is_all_of_it_up_to_the_last_turn_of_the_user(
    chat: list[tuple[str, Any]], asked: str
) -> None:
    assert row({"messages": turns(*chat)}, role="usage")["prompt"] == asked
    assert row({"prompt": turns(*chat)}, role="usage")["prompt"] == asked


def test_a_chat_in_which_no_user_speaks_asks_nothing() -> None:
    chat = {"messages": turns(("system", "Be brief."), ("assistant", "Hi"))}
    assert reason(chat, role="usage") == "no prompt text"


def test_calls_of_tools_are_turns_without_text() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    weather = [*turns(("user", "Weather?")), call, *turns(("tool", "18 °C"), ("assistant", "Mild"))]
    read_row = row({"messages": [*weather, call]})
    assert (read_row["prompt"], read_row["response"]) == ("Weather?\n\n18 °C", "Mild")


def test_the_text_of_a_turn_may_come_in_parts() -> None:
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}, "text": None},
        {"type": "text", "text": "And this?"},
    ]
    answer = [{"type": "text", "text": "A cat."}]
    read_row = row({"messages": turns(("user", parts), ("assistant", answer))})
    assert (read_row["prompt"], read_row["response"]) == ("What is this?\n\nAnd this?", "A cat.")


@pytest.mark.parametrize("column", ["messages", "conversations"])
def test_turns_are_read_under_either_column_in_either_spelling(column: str) -> None:
    openai = turns(("user", "Hi"), ("assistant", "Hello"))
    sharegpt = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    arrow = pa.table({column: [openai, sharegpt]}).to_pylist()
    for chat in ({column: openai}, {column: sharegpt}, *arrow):
        read_row = row(chat)
        assert (read_row["prompt"], read_row["response"]) == ("Hi", "Hello")


@pytest.mark.parametrize(
    "pair",
    [
        {"prompt": "Hi", "completion": "Hello"},
        {
            "prompt": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Hi"},
            ],
            "completion": [{"role": "assistant", "content": "Hello"}],
        },
    ],
)
def test_a_trl_pair_is_two_strings_or_two_message_lists(pair: dict[str, Any]) -> None:
    read_row = row(pair)
    assert (read_row["prompt"], read_row["response"]) == ("Hi", "Hello")


def test_an_alpaca_row_joins_its_instruction_and_input() -> None:
    alpaca = {"instruction": "Add.", "input": "1 and 2", "output": "3", "text": "Below is an …"}
    assert row(alpaca)["prompt"] == "Add.\n\n1 and 2"
    assert row({**alpaca, "input": ""})["prompt"] == "Add."
    assert row(alpaca)["response"] == "3"


def test_a_sharegpt_conversation_is_a_chat_by_other_names() -> None:
    chat = {
        "id": "abc_0",
        "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}],
    }
    read_row = row(chat)
    assert (read_row["prompt"], read_row["response"]) == ("Hi", "Hello")


def test_a_usage_log_carries_time_weight_and_language() -> None:
    logged = {
        "text": "Habari?",
        "timestamp": "2026-03-01T12:00:00Z",
        "weight": 3,
        "language": "swh",
    }
    read_row = row(logged, role="usage")
    assert read_row["prompt"] == "Habari?"
    assert read_row["response"] is None
    assert read_row["timestamp"] == datetime(2026, 3, 1, 12, tzinfo=UTC)
    assert read_row["weight"] == 3.0
    assert read_row["language"] == "sw"


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


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ("Hi", "messages is not a list of turns"),
        (["Hi"], "messages[0] is not a turn"),
        ([{"role": "user", "content": None}], "no prompt text"),
        ([{"role": "user", "content": 5}], "messages[0] needs role and content, or from and value"),
        ([{"content": "Hi"}], "messages[0] needs role and content, or from and value"),
        ([], "no prompt text"),
        ([{"role": "assistant", "content": "Hello"}], "no prompt text"),
    ],
)
def test_a_chat_that_is_none_is_rejected(messages: Any, expected: str) -> None:
    assert reason({"messages": messages}).startswith(expected)


def test_a_rejected_row_keeps_its_number_its_file_and_a_bounded_record() -> None:
    result = read({"text": "a"}, {"text": "", "junk": "x" * 9999}, role="usage", first_row=100)
    assert result.rows.num_rows == 1
    (only,) = result.rejected.to_pylist()
    assert (only["source"], only["row"]) == ("data.jsonl", 101)
    assert len(only["record"]) == 500


@pytest.mark.parametrize(
    ("columns", "name"),
    [
        (AYA, "aya"),
        (AYA_COLLECTION, "aya"),
        (GLOBAL_MMLU, "global_mmlu"),
        (MMLU_PROX, "mmlu_prox"),
        (["prompt", "prompt_id", "messages"], "messages"),
        (["prompt", "completion"], "trl"),
        (["instruction", "input", "output", "text"], "alpaca"),
        (["id", "conversations"], "sharegpt"),
        (["text", "timestamp"], "usage"),
        (SCHEMA.names, "rows"),
    ],
)
def test_a_format_is_recognised_from_its_published_columns(columns: Any, name: str) -> None:
    assert detect_format(columns) == name


def test_unknown_columns_are_refused_with_what_each_format_needs() -> None:
    with pytest.raises(UserError) as caught:
        detect_format(["body", "id"])
    message = str(caught.value)
    assert message.startswith("columns body, id fit no known format")
    assert "aya (inputs, targets)" in message
    assert "answer_index|answer" in message
    assert "\n" not in message


def test_a_format_nobody_knows_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="format 'alpacca' is not known; did you mean alpaca"):
        read({"text": "a"}, format="alpacca")


def test_a_forced_format_wins_over_the_columns() -> None:
    record = {"prompt": "Hi", "response": "Hello", "text": "Only this"}
    assert row(record, role="usage", format="usage")["prompt"] == "Only this"


def test_evaluation_needs_multiple_choice() -> None:
    with pytest.raises(UserError, match="role evaluation needs one of global_mmlu, mmlu_prox"):
        read(AYA, role="evaluation")


def test_tables_have_their_schema_even_without_rows() -> None:
    assert read().rows.schema == SCHEMA
    assert read(role="evaluation").rows.schema == EVALUATION_SCHEMA
    assert read().rejected.schema == REJECTED_SCHEMA
    assert read({"text": ""}, role="usage").rows.schema == SCHEMA


def test_importing_records_loads_nothing_heavy() -> None:
    heavy = "{'babel', 'datasets', 'torch', 'ray', 'pandas'}"
    script = f"import sys, compass_ray.records; found = {heavy} & set(sys.modules); "
    subprocess.run([sys.executable, "-c", script + "assert not found, found"], check=True)
