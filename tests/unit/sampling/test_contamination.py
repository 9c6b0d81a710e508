from __future__ import annotations

import pytest

from compass_ray.sampling.contamination import CLEAN, EXACT, NEAR, Items

QUESTION = "Which river flows through the city of Vienna before it reaches the Black Sea?"
ITEMS = Items(
    [QUESTION, "フランスの首都はどこですか。", "What is the capital of Peru?", "12 + 30 = ?"],
    ["The Danube", "パリ", "Lima", "42"],
)


@pytest.mark.parametrize(
    ("prompt", "response", "expected"),
    [
        (QUESTION, "No idea", EXACT),
        (
            "which river flows through the city of Vienna, before it reaches the black sea",
            "",
            EXACT,
        ),
        ("フランスの首都はどこですか?", "東京", EXACT),
        (f"Question: {QUESTION}\nA. The Rhine\nB. The Danube\nAnswer:", "B", NEAR),
        (
            "Which river flows through the city of Vienna before it meets the Black Sea?",
            "It is the Danube.",
            CLEAN,
        ),
        (
            "Tell me which river flows through the city of Vienna before it reaches the Black Sea",
            "the danube, of course",
            NEAR,
        ),
        (f"Question: {QUESTION}", "The Rhine", CLEAN),
        ("What is the capital of Chile?", "Lima", CLEAN),
        ("Please tell: what is the capital of Peru?", "Lima", NEAR),
        ("12 + 31 = ?", "43", CLEAN),
        ("", "", CLEAN),
    ],
)
def test_what_repeats_an_item(prompt: str, response: str, expected: int) -> None:
    assert ITEMS.verdicts([prompt], [response]).tolist() == [expected]


def test_questions_of_one_pattern_do_not_give_each_other_away() -> None:
    countries = ["Spain", "Italy", "Ireland", "Portugal", "Greece", "Austria", "Finland"]
    pattern = "What is the official currency of {}?"
    items = Items([pattern.format(c) for c in countries[:3]], ["euro"] * 3)
    rows = [pattern.format(c) for c in countries]
    assert items.verdicts(rows, ["euro"] * 7).tolist() == [EXACT] * 3 + [CLEAN] * 4


def test_rows_come_back_in_order_and_items_may_be_none() -> None:
    rows = ["What is the capital of Peru?", "Something else entirely", QUESTION]
    assert ITEMS.verdicts(rows, [""] * 3).tolist() == [EXACT, CLEAN, EXACT]
    assert Items([], []).verdicts(rows, [""] * 3).tolist() == [CLEAN] * 3
    assert ITEMS.verdicts([], []).tolist() == []


def test_an_answer_is_found_as_whole_words_only() -> None:
    items = Items(["How many moons does the planet Mars have in all?"], ["2"])
    row = "Say how many moons does the planet Mars have in all?"
    assert items.verdicts([row, row], ["20", "It has 2."]).tolist() == [CLEAN, NEAR]
