"""What scripts read is JSON, whatever the numbers are."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from typing import Any, NoReturn

import numpy as np
import pytest

from compass_ray.strict_json import to_json


def refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def test_a_number_that_json_has_none_for_becomes_null_at_any_depth() -> None:
    told = {"d": math.inf, "windows": [{"loss": (math.nan, -np.inf, 0.5)}], "language": "अ"}
    text = to_json(told)
    assert json.loads(text, parse_constant=refuse) == {
        "d": None,
        "windows": [{"loss": [None, None, 0.5]}],
        "language": "अ",
    }
    assert "अ" in text


@pytest.mark.parametrize(("indent", "lines"), [(None, 1), (1, 3)])
def test_json_is_on_one_line_or_indented(indent: Any, lines: int) -> None:
    assert len(to_json({"a": 1}, indent).splitlines()) == lines


def test_importing_it_loads_nothing_heavy() -> None:
    script = (
        "import sys, compass_ray.strict_json; "
        "found = {'torch', 'ray', 'numpy', 'pyarrow'} & set(sys.modules); assert not found, found"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
