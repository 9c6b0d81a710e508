"""A stream of prompts cut into windows, by their number or by time. Knows nothing of drift.

Each function gives full windows, then what is left over, with no rows where nothing is. A window is
its rows and the end of its time, None where it has none.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa

from compass_ray.errors import UserError

Window = tuple[pa.Table, datetime | None]

_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def by_number(rows: pa.Table, size: int) -> Iterator[Window]:
    """Windows of ``size`` rows, in the order they came."""
    return ((rows[start : start + size], None) for start in range(0, len(rows) + 1, size))


def by_time(
    rows: pa.Table, window: str, judged: datetime | None, now: datetime | None
) -> Iterator[Window]:
    """Windows of a length such as ``1d``; a time is full when a later row is there.

    A row whose time was judged already, such as one from a server that uploads late, counts with
    the oldest rows whose time was not.

    Args:
        rows: with a ``timestamp`` each, at least one row.
        window: a number and its unit: m, h, d or w.
        judged: end of the last time that was judged.
        now: if given, the last time is full, too, if it is over.

    Raises:
        UserError: a row has no timestamp.
    """
    length = timedelta(**{_UNITS[window[-1]]: int(window[:-1])})
    stamps = rows["timestamp"].to_pylist()
    if None in stamps:
        raise UserError(
            f"continual.window: {window} needs a timestamp in every record; "
            f"{stamps.count(None)} prompts have none"
        )
    period_N = np.array([(stamp - _EPOCH) // length for stamp in stamps])
    late_N = period_N < ((judged - _EPOCH) // length if judged else period_N.min())
    if late_N.all():
        yield rows, None
        return
    period_N[late_N] = period_N[~late_N].min()
    for number in np.unique(period_N):
        end = _EPOCH + (int(number) + 1) * length
        yield rows.filter(pa.array(period_N == number)), end
    if now and end <= now:
        yield rows[:0], None
