"""What became of a budget, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def unspent_reason(told: Mapping[str, Any]) -> str:
    """Why the budget could not be spent, in words, from a subset's summary."""
    if told["budget_unit"] == "tokens":
        return f"{told['unspent']:,} of {told['budget']:,} tokens unspent"
    beyond = told["available"] - told["picked"] - told["refused_far"] - told["refused_duplicates"]
    causes = [
        (told["refused_far"], "are too far from usage"),
        (told["refused_duplicates"], "are near duplicates"),
        (beyond, "are beyond what one language may give"),
    ]
    named = [f"{count:,} {cause}" for count, cause in causes if count > 0]
    have = f"{told['available']:,} rows of other languages could be picked"
    return f"{told['unspent']:,} of {told['budget']:,} rows unspent: " + (
        f"{have}, of which {', '.join(named)}" if named else f"only {have}"
    )
