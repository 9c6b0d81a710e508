"""JSON for scripts that read what a command prints. Knows nothing of what it holds."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def to_json(value: Any, indent: int | None = 1) -> str:
    """``value`` as JSON, where numbers that JSON has none for (infinite, NaN) become null.

    Args:
        value: made of mappings, lists, tuples, text, numbers, booleans and None.
        indent: spaces of each level; None: all on one line.

    Raises:
        TypeError: it holds something else.
    """
    return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(inside) for key, inside in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inside) for inside in value]
    return value
