from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from compass_ray import artifacts
from compass_ray.clustering.stage import Clustered
from compass_ray.continual import gate, proof, update
from compass_ray.continual.methods import Parent
from compass_ray.continual.registry import Version
from compass_ray.continual.runfolder import SPACE, Locator, RunFolder
from compass_ray.continual.stage import KEPT_COLUMNS
from compass_ray.evaluation.harness import SCORED_SCHEMA
from compass_ray.evaluation.scores import Comparison
from compass_ray.evaluation.stage import Evaluated
from compass_ray.loading import override
from compass_ray.sampling.subset import SUBSET, SUBSET_SCHEMA
from compass_ray.training.fisher import FISHER_FILE


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

    monkeypatch.setattr(proof, "evaluate", evaluate)
    answers = compared(run, {"de": 0}, {"de": 1})
    usage = np.ones(Locator(run).k)
    clusters = Locator(run).locate(answers["de"].questions, "de").clusters_N
    pair = answers["de"].pair(gate.item_weights(clusters, usage))
    assert pair == gate.Pair(0.0, 1.0, covered=1 / len(usage))
    assert answers["es"].pair(np.empty(0)) is None


def test_adapters_scored_on_different_items_are_not_compared(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder.open(str(make_run()))

    def evaluate(config: Any, storage: Any, corpus: Any, adapters: Mapping[str, Any]) -> Evaluated:
        names = pa.array(["a", "b"] if adapters["de"] else ["b", "a"])
        items = scored(["Eins?", "Zwei?"], [True, False]).set_column(0, "id", names)
        return Evaluated((Comparison("de", "items", None, items),), 0, 0)

    monkeypatch.setattr(proof, "evaluate", evaluate)
    assert compared(run, {"de": 1}, {"de": 1})["de"].current_N.tolist() == [1, 0]
    with pytest.raises(RuntimeError, match=r"update de: .* different items of items"):
        compared(run, {"de": 0}, {"de": 1})


def test_fisher_information_outlives_an_update_that_makes_none(
    make_run: Callable[..., Path],
) -> None:
    run = RunFolder.open(str(make_run()))
    registry = run.registry("de")
    updates = {}
    for number, (method, made) in enumerate(
        [("ecda", True), ("naive", False), ("ties", False), ("ewc", True), ("full_retrain", False)]
    ):
        parent = run.current("de")
        fisher = f"from update {number}".encode() if made else None
        version = finished(run, parent, method, fisher)
        kept = {name for name in run.storage.list_files(version.folder) if "fisher" in name}
        content = run.storage.read_bytes(f"{version.folder}/{FISHER_FILE}") if kept else None
        updates[method] = update.fisher_updates(run.storage, version), content
        registry.make_current(version, "for the next")
    assert updates == {
        "ecda": (1, b"from update 0"),
        "naive": (1, b"from update 0"),
        "ties": (1, b"from update 0"),
        "ewc": (2, b"from update 3"),
        "full_retrain": (0, None),
    }


def test_versions_from_before_fisher_information_was_counted_are_read(
    make_run: Callable[..., Path],
) -> None:
    run = RunFolder.open(str(make_run()))
    registry = run.registry("de")
    about = {"kind": "update", "parent": 1, "fingerprint": "second", "updates": 2}
    held, naive = registry.add({FISHER_FILE: b""}, about), registry.add({}, about)
    first = run.current("de")
    counts = [update.fisher_updates(run.storage, version) for version in (held, naive, first)]
    assert counts == [2, 0, 0]


def compared(run: RunFolder, current: Any, updated: Any) -> dict[str, gate.Answered]:
    nothing: Any = None
    return proof.answers(run.config, run.storage, nothing, current, updated)


def finished(run: RunFolder, parent: Version, method: str, fisher: bytes | None) -> Version:
    """What becomes of an update by ``method`` that trained to its end."""
    storage, reference = run.storage, run.reference(run.registry("de").versions()[0])
    key = f"{method}-{parent.number}"
    adapter = artifacts.begin(storage, "train", key)
    adapter.write_bytes("adapter/adapter_model.safetensors", b"weights")
    if fisher:
        adapter.write_bytes(f"adapter/{FISHER_FILE}", fisher)
    row = {"id": key, "language": "de", "prompt": "p", "source": "s", "weight": 1.0}
    told = {**row, "cluster": 0, "score": 0.5, "strategy": "compass"}
    rows = pa.Table.from_pylist([told], SUBSET_SCHEMA)
    if not storage.exists(f"{parent.folder}/anchors.parquet"):
        storage.write_table(f"{parent.folder}/anchors.parquet", rows.select(KEPT_COLUMNS))
    subset = artifacts.begin(storage, "sample", key)
    subset.write_table(SUBSET, rows)
    clustering = artifacts.begin(storage, "cluster", key)
    clustering.write_bytes("space.npz", storage.read_bytes(run.path(SPACE)))
    work = update._Work(
        run=run,
        config=override(run.config, [f"continual.method={method}"]),
        language="de",
        version=parent,
        parent=Parent("", "", update.fisher_updates(storage, parent), "", rows),
        before=reference,
        usage=reference,
        content=[],
        clustered=Clustered(clustering.commit(), (), reused=False),
    )
    verdict = gate.Verdict(False, "not tried", None, None)
    work.finish(adapter.commit(), subset.commit({"rows": 1}), verdict)
    return run.registry("de").versions()[-1]
