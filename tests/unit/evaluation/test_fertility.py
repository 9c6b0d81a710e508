from __future__ import annotations

import pytest

from compass_ray.evaluation.fertility import fertility, unit


def test_spaced_languages_are_counted_in_words() -> None:
    assert unit("de") == unit("hi") == "word"
    assert fertility(["Wie heißt du?", "Ja, ja."], [6, 4], "de") == pytest.approx(10 / 5)


def test_vowel_signs_do_not_cut_a_word() -> None:
    assert fertility(["राजधानी क्या है"], [12], "hi") == pytest.approx(4)


def test_unspaced_languages_are_counted_in_characters() -> None:
    assert unit("zh") == unit("ja") == unit("th") == "character"
    assert fertility(["你好 吗"], [6], "zh") == pytest.approx(2)


def test_texts_that_are_not_there_do_not_count() -> None:
    assert fertility([None, "a b"], [None, 3], "en") == pytest.approx(1.5)
    assert fertility([None], [None], "en") is None
