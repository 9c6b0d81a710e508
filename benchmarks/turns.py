"""Times ways to do one thing: they take turns, so that what slows the machine slows them all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any


def in_turn(
    ways: Mapping[str, Callable[[], Any]], turns: int, warm_up: int = 1
) -> tuple[dict[str, float], dict[str, Any]]:
    """Median seconds and last result of each way; the turns to warm up do not count."""
    spent: dict[str, list[float]] = {name: [] for name in ways}
    found: dict[str, Any] = {}
    for _ in range(warm_up + turns):
        for name, work in ways.items():
            print(".", end="", flush=True)
            started = time.perf_counter()
            found[name] = work()
            spent[name].append(time.perf_counter() - started)
    print()
    return {name: statistics.median(seconds[warm_up:]) for name, seconds in spent.items()}, found
