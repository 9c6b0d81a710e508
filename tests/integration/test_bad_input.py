"""Mistakes a user makes: one line on stderr, exit code 2, no traceback."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from compass_ray import cli

pytestmark = pytest.mark.ray

MakeConfig = Callable[..., Path]
Said = Callable[..., str]


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Said]:
    """Run a command that must be refused; returns what it said."""

    def run(*arguments: Any) -> str:
        monkeypatch.setattr(sys, "argv", ["compass-ray", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        said = capfd.readouterr().err
        assert stop.value.code == 2, said
        assert "Traceback" not in said
        complaints = [line for line in said.splitlines() if line.startswith("compass-ray: ")]
        assert len(complaints) == 1, said
        return complaints[0]

    yield run
    # The handler of the command holds the captured stream, which is closed after the test.
    logging.getLogger("compass_ray").handlers.clear()


def test_an_unknown_key(make_config: MakeConfig, refused: Said) -> None:
    said = refused("run", make_config(), "--set", "sampling.budgett=3")
    assert "unknown key sampling.budgett; did you mean budget?" in said


def test_a_missing_config(tmp_path: Path, refused: Said) -> None:
    assert "no such config file" in refused("run", tmp_path / "none.yaml")


def test_a_missing_corpus_file(make_config: MakeConfig, refused: Said) -> None:
    said = refused("run", make_config(corpora={"usage": [{"path": "/nowhere/usage.jsonl"}]}))
    assert "/nowhere/usage.jsonl" in said


def test_a_broken_line(make_config: MakeConfig, refused: Said, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": "a", "completion": "b", "language": "en"}\n{"prompt": \n')
    said = refused("run", make_config(corpora={"auxiliary": [{"path": str(broken)}]}))
    assert "broken.jsonl:2" in said


def test_columns_that_fit_no_format(make_config: MakeConfig, refused: Said, tmp_path: Path) -> None:
    odd = tmp_path / "odd.jsonl"
    odd.write_text('{"colour": "red", "size": 3}\n')
    said = refused("run", make_config(corpora={"auxiliary": [{"path": str(odd)}]}))
    assert "colour" in said and "size" in said
    assert "aya" in said and "alpaca" in said


def test_too_many_rows_rejected(make_config: MakeConfig, refused: Said, tmp_path: Path) -> None:
    rows = ['{"prompt": "a", "completion": "b", "language": "en"}'] * 5 + [
        '{"prompt": "", "completion": "b", "language": "en"}'
    ]
    path = tmp_path / "empty.jsonl"
    path.write_text("\n".join(rows))
    said = refused("run", make_config(corpora={"auxiliary": [{"path": str(path)}]}))
    assert "1 of 6 rows rejected" in said
    assert "empty.jsonl row 5" in said


def test_a_language_without_usage(make_config: MakeConfig, refused: Said) -> None:
    said = refused("run", make_config(languages=["de", "sw"]))
    assert "languages: sw has no rows in corpora.usage" in said
    assert "de, es" in said


def test_more_clusters_than_rows(make_config: MakeConfig, refused: Said) -> None:
    said = refused("run", make_config(clustering={"k": 5000}))
    assert "clustering.k: 5000 clusters asked of 272 auxiliary rows" in said


def test_a_model_folder_that_is_not_there(make_config: MakeConfig, refused: Said) -> None:
    said = refused("run", make_config(training={"model": "/nowhere/model"}))
    assert "training.model: no model folder /nowhere/model" in said


def test_an_encoder_that_is_not_there(make_config: MakeConfig, refused: Said) -> None:
    said = refused("run", make_config(embedding={"model": "nobody/nothing"}))
    assert "embedding.model: nobody/nothing is neither a folder here nor a model" in said


def test_an_encoder_that_gives_no_numbers(
    make_config: MakeConfig, refused: Said, tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import ByteLevelBPETokenizer

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(["a few words"], vocab_size=300)
    static = StaticEmbedding(bpe._tokenizer, embedding_dim=16)
    static.embedding.weight.data.fill_(float("nan"))
    SentenceTransformer(modules=[static], device="cpu").save(str(tmp_path / "encoder"))
    said = refused("run", make_config(embedding={"model": str(tmp_path / "encoder")}))
    assert "gave a vector that is not finite for row " in said


def test_more_workers_than_the_cluster_has(make_config: MakeConfig, refused: Said) -> None:
    settings = {"workers_per_language": 8, "batch_size": 8}
    said = refused("run", make_config(training=settings))
    assert "training.workers_per_language: 8 workers" in said


def test_an_evaluation_task_that_is_not_known(make_config: MakeConfig, refused: Said) -> None:
    said = refused("run", make_config(evaluation={"tasks": ["mmlu_proxx"]}))
    assert "evaluation.tasks: mmlu_proxx is not known; did you mean mmlu_prox?" in said


def test_a_benchmark_whose_data_is_out_of_reach(make_config: MakeConfig, refused: Said) -> None:
    said = refused("run", make_config(evaluation={"tasks": ["global_mmlu"]}))
    assert "global_mmlu needs the data set CohereForAI/Global-MMLU (de)" in said
    assert "evaluation.data.global_mmlu" in said


def test_a_folder_that_lacks_the_language(
    make_config: MakeConfig, refused: Said, tmp_path: Path
) -> None:
    settings = {"tasks": ["mmlu_prox"], "data": {"mmlu_prox": str(tmp_path)}}
    said = refused("run", make_config(evaluation=settings))
    assert f"evaluation.data.mmlu_prox: no de/test*.parquet or .jsonl below {tmp_path}" in said


def test_a_report_of_a_run_that_never_was(make_config: MakeConfig, refused: Said) -> None:
    assert "no run small" in refused("report", make_config())


def test_a_mistake_found_inside_a_ray_task(make_config: MakeConfig, refused: Said) -> None:
    sampling = {"strategy": "langrank", "transfer": {"de": {"ja": 0.5}}}
    said = refused("sample", make_config(sampling=sampling))
    assert said.endswith("none of the languages of de is in the pool, which has de, en, es, fr")
