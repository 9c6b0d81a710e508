from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from compass_ray.artifacts import Storage
from compass_ray.search.results import Ledger, Trial, as_table, best_of, in_order, pareto_front


def finished(key: str, accuracy: float, tokens: int) -> Trial:
    return Trial(
        key, {"sampling.budget": tokens}, "finished", accuracy=accuracy, tokens=tokens, loss=1.0
    )


TRIALS = [
    finished("a", 0.5, 100),
    finished("b", 0.7, 300),
    finished("c", 0.6, 300),
    finished("d", 0.7, 400),
    Trial("e", {"sampling.budget": 9}, "stopped", steps=3, loss=2.0),
]


def test_the_ledger_gives_back_what_was_written(tmp_path: Path) -> None:
    ledger = Ledger(Storage.open(str(tmp_path)), "name")
    assert ledger.read() == []
    for trial in TRIALS:
        ledger.write(trial)
    assert sorted(ledger.read(), key=lambda trial: trial.key) == TRIALS


def test_the_best_is_of_the_finished_by_the_direction_of_its_metric() -> None:
    assert best_of(TRIALS, ["accuracy"]) is TRIALS[1]
    assert best_of(TRIALS, ["tokens"]) is TRIALS[0]
    assert best_of(TRIALS[-1:], ["accuracy"]) is None
    assert [trial.key for trial in in_order(TRIALS, ["accuracy"])] == ["b", "d", "c", "a", "e"]


def test_equals_are_told_apart_by_the_next_metric_then_by_tokens_then_by_key() -> None:
    quick, slow = (replace(TRIALS[3], key=key, device_hours=h) for key, h in (("z", 1.0), ("d", 2)))
    cheap = replace(slow, key="y", tokens=300)
    assert best_of([slow, quick, cheap], ["accuracy", "device_hours"]) is quick
    assert best_of([slow, quick, cheap], ["accuracy"]) is cheap
    assert best_of([quick, slow], ["accuracy"]) is slow
    worse = replace(quick, accuracy=0.1)
    ordered = in_order([cheap, slow, TRIALS[4], worse, quick], ["accuracy", "device_hours"])
    assert ordered == [quick, cheap, slow, worse, TRIALS[4]]
    rows = as_table([slow, quick], ["accuracy", "device_hours"]).to_pylist()
    assert [row["key"] for row in rows] == ["z", "d"]


def test_the_table_marks_the_front_and_has_a_column_a_key() -> None:
    rows = as_table(TRIALS, ["accuracy", "tokens"]).to_pylist()
    assert {row["key"] for row in rows if row["pareto"]} == {"a", "b"}
    assert [row["sampling.budget"] for row in rows] == [300, 400, 300, 100, 9]


points = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12)


@given(points)
def test_the_front_is_what_nothing_beats(values: list[tuple[int, int]]) -> None:
    found = pareto_front(np.array(values, float), [True, False])

    def beats(one: tuple[int, int], other: tuple[int, int]) -> bool:
        return one != other and one[0] >= other[0] and one[1] <= other[1]

    assert found == [not any(beats(one, point) for one in values) for point in values]
    assert any(found)
