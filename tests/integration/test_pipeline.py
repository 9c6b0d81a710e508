from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import ray
import torch

from compass_ray import cli, load_config, run
from compass_ray.artifacts import Storage
from compass_ray.clustering.stage import cluster_corpus
from compass_ray.compare import compare
from compass_ray.corpora.stage import read_corpora
from compass_ray.embedding.stage import embed
from compass_ray.models import load_base
from compass_ray.pipeline import RunResult
from compass_ray.sampling.actor import gap_sampler

pytestmark = pytest.mark.ray

MakeConfig = Callable[..., Path]


@pytest.fixture(scope="module")
def shared_storage(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("shared") / "storage")


@pytest.fixture
def config_path(make_config: MakeConfig, shared_storage: str) -> Path:
    return make_config(run={"storage": shared_storage, "trackers": ["tensorboard"]})


def manifest(result: RunResult) -> dict[str, Any]:
    return json.loads(Path(result.folder, "manifest.json").read_text())


def test_a_run_leaves_everything_its_user_looks_for(config_path: Path) -> None:
    result = run(load_config(config_path))
    folder = Path(result.folder)
    assert result.failures == {}
    assert Path(str(result.report)).read_text().lower().startswith("<!doctype html>")
    stages = manifest(result)["stages"]
    assert list(stages) == ["records", "embed", "cluster", "sample", "train", "evaluate"]
    assert stages["records"]["rows"] == {
        "auxiliary": 272,
        "train": 16,
        "usage": 60,
        "evaluation": 20,
    }
    for language in ("de", "es"):
        subset = pq.read_table(folder / f"subsets/{language}.parquet")
        picked = subset.filter(pc.not_equal(subset["strategy"], "own"))
        assert subset.num_rows == 48 and picked.num_rows == 40
        assert language not in picked["language"].to_pylist()
        gaps = pq.read_table(folder / f"gaps/{language}.parquet")
        assert sum(gaps["added"].to_pylist()) == 40
        assert sum(gaps["have"].to_pylist()) == 8
        told = result.languages[language]
        assert told["js_after"] < told["js_before"]
        assert list((folder / f"tensorboard/{language}").iterdir())
        losses = pq.read_table(folder / f"losses/{language}.parquet")["loss"].to_pylist()
        assert losses[-1] < losses[0]
        items = pq.read_table(folder / f"items/{language}.parquet")
        score = told["scores"]["items"]
        assert items.num_rows == score["n"] == 10
        assert score["adapter"] == pytest.approx(sum(items["adapter_correct"].to_pylist()) / 10)


def test_usage_that_own_rows_lack_is_what_gets_picked(config_path: Path) -> None:
    result = run(load_config(config_path), until="sample")
    subset = pq.read_table(Path(result.folder, "subsets/de.parquet"))
    picked = subset.filter(pc.equal(subset["strategy"], "compass"))
    subjects = picked["subject"].to_pylist()
    assert subjects.count("sum") >= 0.9 * len(subjects)


def test_the_adapter_loads_with_peft(config_path: Path, tiny_model: Path) -> None:
    from peft import PeftModel

    result = run(load_config(config_path))
    base = load_base(str(tiny_model), torch.float32)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        before = base(input_ids=ids).logits
        model = PeftModel.from_pretrained(base, f"{result.folder}/adapters/de/v0001")
        assert not torch.allclose(model(input_ids=ids).logits, before)


def test_its_card_tells_of_its_data_and_its_score(config_path: Path, tiny_model: Path) -> None:
    result = run(load_config(config_path))
    card = Path(result.folder, "adapters/de/v0001/README.md").read_text()
    assert f"base_model: {tiny_model}" in card
    assert "- 8 rows of the language itself" in card
    assert "- 40 rows from other languages, chosen by `compass`" in card
    assert "| items | 10 |" in card


def test_a_merged_adapter_is_a_model_of_its_own(
    config_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    folder = run(load_config(config_path)).folder
    to = tmp_path / "merged"
    command = ["compass-ray", "merge", folder, "--language", "de", "--to", str(to)]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    logging.getLogger("compass_ray").handlers.clear()
    assert not stop.value.code
    assert AutoModelForCausalLM.from_pretrained(to).config.model_type == "llama"


def test_a_second_run_does_nothing_again(config_path: Path) -> None:
    run(load_config(config_path))
    stages = manifest(run(load_config(config_path)))["stages"]
    assert stages["records"]["computed"] == 0
    assert stages["embed"]["computed_rows"] == 0
    assert stages["cluster"]["reused"]
    assert all(told["reused"] for told in stages["sample"]["languages"].values())
    assert all(told["reused"] for told in stages["train"]["languages"].values())
    assert stages["evaluate"]["items_computed"] == 0


def test_a_new_budget_embeds_and_clusters_nothing_again(config_path: Path) -> None:
    run(load_config(config_path), until="sample")
    result = run(load_config(config_path, ["sampling.budget=20"]), until="sample")
    stages = manifest(result)["stages"]
    assert stages["embed"]["computed_rows"] == 0
    assert stages["cluster"]["reused"]
    assert not any(told["reused"] for told in stages["sample"]["languages"].values())
    assert result.languages["de"]["picked"] == 20


def test_a_new_corpus_file_embeds_only_its_own_rows(
    make_config: MakeConfig, corpus: Path, shared_storage: str, tmp_path: Path
) -> None:
    run(load_config(make_config(run={"storage": shared_storage})), until="embed")
    more = tmp_path / "more.jsonl"
    more.write_text('{"prompt": "A new one?", "completion": "Yes", "language": "en"}\n')
    sources = [{"path": str(corpus / "auxiliary.jsonl")}, {"path": str(more)}]
    path = make_config(run={"storage": shared_storage}, corpora={"auxiliary": sources})
    stages = manifest(run(load_config(path), until="embed"))["stages"]
    assert stages["embed"]["computed_rows"] == 1
    assert stages["embed"]["reused_rows"] == 348


def test_the_subset_is_a_function_of_data_config_and_seed(
    make_config: MakeConfig, config_path: Path, tmp_path: Path
) -> None:
    first = run(load_config(config_path), until="sample")
    path = make_config("again.yaml", run={"storage": str(tmp_path / "elsewhere")})
    second = run(load_config(path), until="sample")
    other = run(load_config(path, ["run.seed=1", "run.name=other"]), until="sample")
    for language in ("de", "es"):
        ids = [
            pq.read_table(Path(result.folder, f"subsets/{language}.parquet"))["id"].to_pylist()
            for result in (first, second, other)
        ]
        assert ids[0] == ids[1]
        assert ids[0] != ids[2]


def test_a_killed_gap_sampler_still_answers(config_path: Path) -> None:
    config = load_config(config_path)
    storage = Storage.open(config.run.storage)
    corpus = read_corpora(config, storage)
    clustered = cluster_corpus(config, storage, corpus, embed(config, storage, corpus))
    sampler = gap_sampler(clustered)
    before = ray.get(sampler.subset.remote("de", config.sampling, 0))
    answers = [sampler.subset.remote("de", config.sampling, 0) for _ in range(4)]
    ray.kill(sampler, no_restart=False)
    for answer in ray.get(answers):
        assert answer.selection.rows_B.tolist() == before.selection.rows_B.tolist()
    for _ in range(2):  # one that is gone has its name for a moment more
        ray.kill(sampler)
        sampler = gap_sampler(clustered)
    again = ray.get(sampler.subset.remote("de", config.sampling, 0))
    assert again.selection.rows_B.tolist() == before.selection.rows_B.tolist()


def test_compare_gives_every_strategy_the_same_steps_and_items(config_path: Path) -> None:
    config = load_config(config_path, ["languages=[de]"])
    rows = {row.strategy: row for row in compare(config, ["all"], 1)}
    assert set(rows) == {"base", "compass", "all"}
    assert {row.items for row in rows.values()} == {10}
    assert rows["compass"].p_value is None
    for name in ("base", "all"):
        expected = rows["compass"].accuracy - rows[name].accuracy
        assert rows[name].difference == pytest.approx(expected)
        assert 0 < rows[name].p_value <= 1
    summaries = [
        json.loads(commit.read_text())["summary"]
        for commit in Path(config.run.storage).glob("cache/train/*/_COMMITTED")
    ]
    steps = [told["steps"] for told in summaries if told["rows"] > 200]
    assert steps, "the strategy all trains on every row"
    assert max(steps) <= 10


@pytest.mark.parametrize("strategy", ["uniform", "nearest", "langsim", "langrank", "dsir"])
def test_every_strategy_fills_the_budget(config_path: Path, strategy: str) -> None:
    overrides = [f"sampling.strategy={strategy}", f"run.name={strategy}"]
    result = run(load_config(config_path, overrides), until="sample")
    assert [told["picked"] for told in result.languages.values()] == [40, 40]


def test_langrank_learns_from_measured_transfer(config_path: Path) -> None:
    scores = {target: {"en": 0.1, "es": 0.2, "de": 0.2, "fr": 0.9} for target in ("de", "es")}
    overrides = [f"sampling.transfer={json.dumps(scores)}", "sampling.strategy=langrank"]
    result = run(load_config(config_path, [*overrides, "run.name=learned"]), until="sample")
    assert [told["picked"] for told in result.languages.values()] == [40, 40]


def test_hdbscan_a_budget_in_tokens_and_contaminated_rows(
    make_config: MakeConfig, corpus: Path, tmp_path: Path
) -> None:
    items = [json.loads(line) for line in (corpus / "evaluation.jsonl").read_text().splitlines()]
    pool = [json.loads(line) for line in (corpus / "auxiliary.jsonl").read_text().splitlines()]
    leaked = [row for row in pool if row["language"] == "fr" and row["subject"] == "sum"][:15]
    repeated = [
        {**items[0], "question": row["prompt"].upper(), "option_a": row["completion"]}
        for row in leaked
    ]
    file = tmp_path / "items.jsonl"
    file.write_text("".join(json.dumps(item) + "\n" for item in repeated))
    path = make_config(
        corpora={"evaluation": [{"path": str(file)}]},
        clustering={"method": "hdbscan", "k": {"from": 3, "to": 30}},
        sampling={"budget": 900, "budget_unit": "tokens", "max_share": 0.5},
    )
    result = run(load_config(path), until="sample")
    stages = manifest(result)["stages"]
    assert stages["cluster"]["noise"] >= 0
    assert stages["cluster"]["measure"] == "dbcv"
    clusters = pq.read_table(Path(result.folder, "clusters.parquet"))
    assert sum(clusters["rows"].to_pylist()) == 272
    told = stages["sample"]["languages"]["de"]
    assert told["refused_contaminated"] == 15
    assert told["picked_tokens"] == 900 - told["unspent"] > 800
    picked = pq.read_table(Path(result.folder, "subsets/de.parquet")).to_pylist()
    assert not {row["prompt"] for row in leaked} & {row["prompt"] for row in picked}
    assert {row["source"] for row in picked} <= {
        str(corpus / f"{name}.jsonl") for name in ("auxiliary", "train")
    }
