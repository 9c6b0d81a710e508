from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from compass_ray.continual.windows import Window, by_number, by_time
from compass_ray.errors import UserError

START = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)


def rows(*days: float | None) -> pa.Table:
    stamps = [None if day is None else START + day * DAY for day in days]
    return pa.table({"timestamp": pa.array(stamps, pa.timestamp("us", tz="UTC"))})


def shown(window: Window) -> tuple[list[float], float | None]:
    """Days since the start, of its rows and of its end."""
    table, end = window
    days = [(stamp - START) / DAY for stamp in table["timestamp"].to_pylist()]
    return days, None if end is None else (end - START) / DAY


def test_windows_by_number_leave_what_is_over() -> None:
    sizes = [[len(table) for table, _ in by_number(rows(*[0.0] * n), 2)] for n in (1, 2, 5)]
    assert sizes == [[1], [2, 0], [2, 2, 1]]


def test_a_time_takes_its_rows_in_whatever_order_they_came() -> None:
    cut = [shown(window) for window in by_time(rows(0.5, 1.5, 0.25), "1d", None, None)]
    assert cut == [([0.5, 0.25], 1), ([1.5], 2)]


def test_the_last_time_is_full_once_it_is_over() -> None:
    for now, full in ((1.9, 1), (2.0, 2)):
        cut = [shown(w) for w in by_time(rows(0.5, 1.5), "1d", None, START + now * DAY)]
        assert len(cut) - 1 == full
        assert cut[:2] == [([0.5], 1), ([1.5], 2)]


def test_late_rows_count_with_the_oldest_that_was_not_judged() -> None:
    judged = START + DAY
    cut = [shown(window) for window in by_time(rows(0.5, 2.5, 1.5), "1d", judged, None)]
    assert cut == [([0.5, 1.5], 2), ([2.5], 3)]
    assert [shown(w) for w in by_time(rows(0.5), "1d", judged, None)] == [([0.5], None)]


def test_a_row_without_its_time_is_refused() -> None:
    with pytest.raises(UserError, match=r"continual.window: 1d needs a timestamp .* 1 prompts"):
        list(by_time(rows(0.5, None), "1d", None, None))
