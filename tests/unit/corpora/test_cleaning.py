from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from compass_ray.config import Cleaning
from compass_ray.corpora import atlas
from compass_ray.corpora.cleaning import OTHER_LANGUAGE, TOO_LONG, TOO_SHORT, clean, first_seen
from compass_ray.records import SCHEMA, row_id


def rows(*texts: tuple[str, str | None], language: str = "de") -> pa.Table:
    return pa.Table.from_pylist(
        [
            {
                "id": str(number),
                "language": language,
                "prompt": prompt,
                "response": response,
                "source": "test",
                "weight": 1.0,
            }
            for number, (prompt, response) in enumerate(texts)
        ],
        schema=SCHEMA,
    )


def test_nothing_is_dropped_by_default() -> None:
    table = rows(("a", "b"), ("c" * 10_000, None))
    kept, dropped = clean(table, Cleaning())
    assert kept.equals(table) and not dropped


def test_lengths_count_prompt_and_response_and_bounds_are_included() -> None:
    table = rows(("ab", "c"), ("äöü", "日本"), ("abc", None), ("x" * 4, "y" * 7))
    kept, dropped = clean(table, Cleaning(min_chars=4, max_chars=10))
    assert kept["id"].to_pylist() == ["1"]
    assert dropped == {TOO_SHORT: 2, TOO_LONG: 1}


GERMAN = "In welcher Stadt hat die Regierung des Landes seit Jahren ihren Sitz?"
FRENCH = "Dans quelle ville siège le gouvernement du pays depuis de nombreuses années ?"


def test_a_text_in_another_language_is_dropped() -> None:
    kept, dropped = clean(
        rows((GERMAN, "In Berlin."), (FRENCH, "À Paris.")), Cleaning(language_confidence=0.95)
    )
    assert kept["prompt"].to_pylist() == [GERMAN]
    assert dropped == {OTHER_LANGUAGE: 1}


def test_a_language_the_identifier_does_not_know_keeps_its_rows() -> None:
    table = rows((FRENCH, "À Paris."), language="ber")
    kept, dropped = clean(table, Cleaning(language_confidence=0.95))
    assert kept.num_rows == 1 and not dropped


def test_a_row_is_counted_for_one_reason() -> None:
    config = Cleaning(min_chars=1000, language_confidence=0.9)
    _, dropped = clean(rows((FRENCH, "À Paris.")), config)
    assert dropped == {TOO_SHORT: 1}


@pytest.mark.parametrize("language", atlas.LANGUAGES)
def test_rows_that_are_in_their_language_stay(language: str) -> None:
    table = atlas.rows("auxiliary", [language], 40)
    _, dropped = clean(table, Cleaning(language_confidence=0.99))
    assert not dropped


def test_rows_are_first_seen_once_over_all_tables() -> None:
    rng = np.random.default_rng(0)
    pool = [row_id("de", str(number), None) for number in range(50)]
    tables = [[pool[i] for i in rng.integers(0, 50, size)] for size in (0, 40, 1, 60)]
    seen: set[str] = set()
    for table, fresh in zip(tables, first_seen(tables), strict=True):
        assert len(fresh) == len(table)
        for name, is_fresh in zip(table, fresh, strict=True):
            assert is_fresh == (name not in seen)
            seen.add(name)


def test_ids_that_share_one_half_are_not_the_same() -> None:
    low, high = "0" * 16, "f" * 16
    (fresh,) = first_seen([[low + low, low + high, high + low, high + high, low + high]])
    assert fresh.tolist() == [True, True, True, True, False]
