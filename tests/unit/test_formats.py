"""Records in the shapes they are published in become rows."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest

from compass_ray.errors import UserError
from compass_ray.records import (
    SCHEMA,
    detect_format,
    row_id,
)
from tests.unit.published import AYA, AYA_COLLECTION, GLOBAL_MMLU, MMLU_PROX, read, reason, row


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
