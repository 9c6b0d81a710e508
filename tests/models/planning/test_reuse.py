"""What the plan finds in the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from compass_ray import artifacts
from compass_ray.artifacts import Artifact, Storage
from compass_ray.clustering.stage import Clustered, clustering_fingerprint
from compass_ray.config import Config
from compass_ray.corpora import stage as records_stage
from compass_ray.embedding import stage as embedding_stage
from compass_ray.embedding.stage import embed
from compass_ray.evaluation.items import Items
from compass_ray.evaluation.stage import _fingerprint
from compass_ray.plan import make_plan
from compass_ray.records import SCHEMA
from compass_ray.resources import Cluster, Node
from compass_ray.sampling.stage import subset_fingerprint
from compass_ray.sampling.subset import SUBSET
from compass_ray.training.launch import adapter_fingerprint

from .conftest import language, stage


class _Encoder:
    dimension = 8

    def encode(self, texts: Sequence[str]) -> Any:
        return np.ones((len(texts), 8), np.float32)


def _inline(items: Sequence[Any], build: Callable[[], Any], **_: Any) -> Iterator[Any]:
    return map(build(), items)


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first stages run in this process."""
    monkeypatch.setattr(records_stage, "map_parts", lambda items, work: map(work, items))
    monkeypatch.setattr(embedding_stage, "map_parts_on_actors", _inline)
    monkeypatch.setattr(embedding_stage, "cluster", lambda: Cluster((Node(2, 0),)))
    monkeypatch.setattr(embedding_stage, "load_encoder", lambda *_: _Encoder())
    monkeypatch.setattr(embedding_stage, "claim", lambda *_: nullcontext())


def _subset(config: Config, storage: Storage, clustered: Clustered, code: str) -> Artifact:
    draft = artifacts.begin(storage, "sample", subset_fingerprint(config, clustered, code))
    own = {"id": "1", "language": code, "prompt": "b", "response": "c", "source": "x"}
    picked = {**own, "id": "2", "language": "fr", "response": "c d e f"}
    rows = [{**own, "weight": 1.0}] * 3 + [{**picked, "weight": 1.0}] * 5
    draft.write_table(SUBSET, pa.Table.from_pylist(rows, schema=SCHEMA))
    return draft.commit({"rows": 8, "own": 3, "picked": 5})


@pytest.mark.usefixtures("without_ray")
def test_what_the_cache_holds_is_told_as_reused(make: Callable[..., Config]) -> None:
    config = make()
    unread = make_plan(config)
    storage = Storage.open(config.run.storage)
    corpus = records_stage.read_corpora(config, storage)
    read = make_plan(config)
    assert (stage(read, "records").reused, stage(read, "records").computed) == (4, 0)
    assert (stage(read, "embed").reused, stage(read, "embed").computed) == (0, 80)
    assert read.training.languages == unread.training.languages

    embedded = embed(config, storage, corpus)
    clusters = artifacts.begin(storage, "cluster", clustering_fingerprint(config, embedded))
    items = corpus.of("evaluation")
    clustered = Clustered(clusters.commit(), embedded.parts, reused=False, items=items)
    subset = _subset(config, storage, clustered, "de")
    artifacts.begin(storage, "train", adapter_fingerprint(config, "de", subset)).commit()
    plan = make_plan(config)
    told = {work.stage: (work.reused, work.computed) for work in plan.stages}
    assert told["embed"] == (80, 0)
    assert told["cluster"] == (1, 0)
    assert told["sample"] == told["train"] == (1, 1)
    german, swahili = language(plan, "de"), language(plan, "sw")
    assert (german.own, german.picked, german.reused) == (3, 5, True)
    assert german.steps is not None
    assert german.steps.tokens_per_epoch == 3 * 3 + 5 * 6
    assert plan.training.wall_seconds == swahili.seconds

    assert told["evaluate"] == (0, 2)
    # The base is scored once, whatever the budget of an adapter that is yet to come.
    asked = Items(storage, "de", corpus.of("evaluation"))
    artifacts.begin(storage, "evaluate", _fingerprint(config, "de", "items", asked, None)).commit()
    evaluating = stage(make_plan(config), "evaluate")
    assert (evaluating.reused, evaluating.computed) == (1, 1)

    other = make_plan(make(sampling={"budget": 31}))
    assert stage(other, "evaluate").reused == 1
    assert (stage(other, "cluster").reused, stage(other, "sample").reused) == (1, 0)


@pytest.mark.parametrize("changed", ["weights", "answers", "subjects"])
def test_what_users_ask_most_right_answers_and_labels_are_no_part_of_clusters_but_of_all_after(
    make: Callable[..., Config],
    corpora: dict[str, list[dict[str, str]]],
    without_ray: None,
    changed: str,
) -> None:
    def placed() -> tuple[Clustered, Items]:
        corpus = records_stage.read_corpora(config, storage)
        embedded = embed(config, storage, corpus)
        key = clustering_fingerprint(config, embedded)
        entry = artifacts.find(storage, "cluster", key)
        entry = entry or artifacts.begin(storage, "cluster", key).commit()
        items = corpus.of("evaluation")
        return Clustered(entry, embedded.parts, False, items), Items(storage, "de", items)

    config = make()
    storage = Storage.open(config.run.storage)
    clustered, items = placed()
    keys = [subset_fingerprint(config, clustered, code) for code in config.languages]
    if changed == "weights":
        config = make(corpora={**corpora, "usage": [{**corpora["usage"][0], "weight": 2.0}]})
    elif changed == "subjects":
        file = Path(corpora["auxiliary"][0]["path"])
        file.write_text(file.read_text().replace('{"prompt"', '{"subject": "music", "prompt"'))
    else:
        file = Path(corpora["evaluation"][0]["path"])
        file.write_text(file.read_text().replace('"answer": "A"', '"answer": "B"'))
    clustered_again, items_again = placed()
    assert clustered_again.artifact.fingerprint == clustered.artifact.fingerprint
    again = [subset_fingerprint(config, clustered_again, code) for code in config.languages]
    assert not set(again) & set(keys)
    assert (items_again.identity() == items.identity()) == (changed != "answers")


def test_one_more_source_leaves_only_that_one_to_read(
    make: Callable[..., Config],
    corpora: dict[str, list[dict[str, str]]],
    without_ray: None,
    tmp_path: Path,
) -> None:
    config = make()
    records_stage.read_corpora(config, Storage.open(config.run.storage))
    more = tmp_path / "data" / "more.jsonl"
    more.write_text('{"prompt": "a", "completion": "b", "language": "fr"}\n')
    plan = make_plan(
        make(corpora={**corpora, "auxiliary": [*corpora["auxiliary"], {"path": str(more)}]})
    )
    assert (stage(plan, "records").reused, stage(plan, "records").computed) == (4, 1)
