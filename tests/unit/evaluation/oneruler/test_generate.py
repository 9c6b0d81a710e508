"""Items of all tasks in all languages: what they hide, how long they are, how they are scored."""

from __future__ import annotations

import re
from typing import get_args

import pytest

from compass_ray.config import ONERULER_TASKS, OneRulerTask
from compass_ray.errors import UserError
from compass_ray.evaluation.oneruler import templates
from compass_ray.evaluation.oneruler.generate import NEEDLES, generate
from compass_ray.evaluation.oneruler.haystack import Material, material
from compass_ray.evaluation.oneruler.scoring import answer_pattern, answer_tag, is_right

LENGTH = 2000
TEXT = "A first sentence of a haystack. Another one, somewhat longer than the first! And a third?"


def count_tokens(text: str) -> int:
    """Words cut to pieces of four characters, and marks: as long as real tokenizers make them."""
    return sum(-(-len(word) // 4) for word in re.findall(r"\w+", text)) + len(
        re.findall(r"[^\w\s]", text)
    )


def made(language: str) -> Material:
    return material(language, templates.own(language), [TEXT] * 3)


def read(answer: str, tag: str = "Answer") -> str | None:
    found = re.findall(answer_pattern(tag), answer)
    return found[-1].strip() if found else None


def test_there_are_twenty_six_languages() -> None:
    expected = "cs da de en es fa fi fr hi hu it ja ko nl no pl pt ru sr st sv sw ta uk vi zh"
    assert templates.languages() == tuple(expected.split())


@pytest.mark.parametrize("language", templates.languages())
def test_items_are_of_the_wanted_length_and_an_oracle_is_right(language: str) -> None:
    said = templates.own(language)
    hay = made(language)
    for task in ONERULER_TASKS:
        for item in generate(task, hay, LENGTH, 2, count_tokens):
            assert 0.98 * LENGTH <= count_tokens(item["input"]) == item["length"] <= LENGTH
            assert not re.search(r"{\w+}", item["input"]), "a place that was not filled"
            if task in NEEDLES:
                check_needles(task, item, said)
            else:
                check_words(task, item)
            right = f"I think <Answer> {', '.join(item['outputs'])} </Answer>"
            assert is_right(task, item["outputs"], read(right), said.none)
            for constant in ("1234567", said.none[0], "the ten words"):
                wanted = task == "niah_none" and constant == said.none[0]
                assert is_right(task, item["outputs"], constant, said.none) == wanted


def check_needles(task: str, item: dict, said: templates.Templates) -> None:
    wanted = NEEDLES[task]
    hidden = re.findall(r"\d{7}", item["input"])
    assert len(hidden) == len(set(hidden)) == wanted.keys * wanted.values
    if task == "niah_none":
        assert item["outputs"] == [said.none[0]]
        return
    assert len(item["outputs"]) == wanted.asked * wanted.values
    for number in item["outputs"]:
        assert item["input"].count(number) == 1
    assert set(item["outputs"]) <= set(hidden)


def check_words(task: str, item: dict) -> None:
    listed = re.findall(r"\d+\. (.+?)(?= \d+\. | </List>)", item["input"])
    counts = {word: listed.count(word) for word in set(listed)}
    common = {counts[word] for word in item["outputs"]}
    others = [count for word, count in counts.items() if word not in item["outputs"]]
    assert len(item["outputs"]) == 10 and len(common) == 1
    assert others and max(others) < min(common)


def test_the_key_of_a_none_item_is_not_in_the_haystack() -> None:
    said = templates.own("en")
    for item in generate("niah_none", made("en"), LENGTH, 20, count_tokens):
        keys = re.findall(r'number of "([^"]+)" is', item["input"])
        asked = re.findall(r'numbers of "([^"]+)" does', item["input"])
        assert len(keys) == 4 and len(asked) == 1
        assert asked[0] not in keys
    assert said.none == ("none",)


@pytest.mark.parametrize("task", get_args(OneRulerTask))
def test_items_repeat_and_differ_by_index_and_seed(task: OneRulerTask) -> None:
    hay = made("sw")
    first, again, other = (
        [item["input"] for item in generate(task, hay, 1000, 3, count_tokens, seed)]
        for seed in (0, 0, 1)
    )
    assert first == again
    assert len({*first, *other}) == 6


def test_needles_lie_at_all_depths() -> None:
    places = [
        item["input"].index(item["outputs"][0]) / len(item["input"])
        for item in generate("niah_single", made("en"), LENGTH, 60, count_tokens)
    ]
    assert min(places) < 0.2 and max(places) > 0.8


@pytest.mark.parametrize(
    ("task", "answer", "right"),
    [
        ("niah_single", "1234567", True),
        ("niah_single", "one number: 1234567.", True),
        ("niah_single", "1234567 1234567", True),
        ("niah_single", "1234567, 7654321", False),
        ("niah_single", "1234567 or none", False),
        ("niah_single", "１２３４５６７", True),
        ("niah_none", "None.", True),
        ("niah_none", "1234567", False),
    ],
)
def test_the_published_rules(task: OneRulerTask, answer: str, right: bool) -> None:
    outputs = ["none"] if task == "niah_none" else ["1234567"]
    assert is_right(task, outputs, answer, ["none"]) == right


def test_common_words_must_all_be_there() -> None:
    assert is_right("cwe_easy", ["Apple", "pear"], "1. apple 2. Pear", [])
    assert not is_right("cwe_easy", ["Apple", "pear"], "apple", [])


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<Answer> 12 </Answer>", "12"),
        ("First <Answer>1</Answer>, no: <answer>\n2\n</answer> so", "2"),
        ("<Answer> cut off", "cut off"),
        ("twelve", None),
    ],
)
def test_answers_are_read_from_their_tags(text: str, answer: str | None) -> None:
    assert read(text) == answer


def test_published_prompts_name_the_tag_in_the_language() -> None:
    tag = answer_tag("<问题> 哪些？</问题> 格式：<答案> 在此处列出所有数字 </答案>")
    assert tag == "答案"
    assert read("<答案> 12、34 </答案>", tag) == "12、34"
    assert answer_tag("no tag at all") == "Answer"


def test_instructions_that_do_not_fit_are_the_users_error() -> None:
    with pytest.raises(UserError, match="20 tokens do not hold the instructions in en"):
        generate("niah_single", made("en"), 20, 1, count_tokens)
