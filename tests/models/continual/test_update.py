from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from compass_ray.continual import gate, update
from compass_ray.continual.runfolder import Locator, RunFolder
from compass_ray.evaluation.harness import SCORED_SCHEMA
from compass_ray.evaluation.scores import Comparison
from compass_ray.evaluation.stage import Evaluated


def scored(questions: list[str | None], correct: list[bool]) -> pa.Table:
    rows = zip(questions, correct, strict=True)
    return pa.Table.from_pylist([{"question": q, "correct": c} for q, c in rows], SCORED_SCHEMA)


def test_items_without_a_question_are_left_out(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder.open(str(make_run()))

    def evaluate(config: Any, storage: Any, corpus: Any, adapters: Mapping[str, Any]) -> Evaluated:
        better = bool(adapters["de"])
        mixed = scored(["Was ist 1 plus 2?", None], [better, False])
        none = scored([None], [True])
        told = [("de", "mixed", mixed), ("es", "none", none)]
        return Evaluated(tuple(Comparison(c, task, None, items) for c, task, items in told), 0, 0)

    monkeypatch.setattr(update, "evaluate", evaluate)
    answers: Any = update._scored(run.config, run.storage, None, {"de": 0}, {"de": 1})  # type: ignore[arg-type]
    locator = Locator(run)
    everywhere = np.ones(locator.k)
    pair = update._Weigh(locator, "de", answers["de"]).pair(everywhere)
    assert pair == gate.Pair(0.0, 1.0)
    assert update._Weigh(locator, "es", answers["es"]).pair(everywhere) is None
