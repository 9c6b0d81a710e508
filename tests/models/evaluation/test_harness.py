"""Our harness against lm-eval run by hand, and local copies through lm-eval's own definitions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from compass_ray.config import Evaluation, Training
from compass_ray.errors import UserError
from compass_ray.evaluation import named
from compass_ray.evaluation.harness import Harness
from compass_ray.evaluation.stage import _Worker
from compass_ray.resources import WorkerShape

from .conftest import make_adapter

GLOBAL = "global_mmlu_full_de_anatomy"
PROX = "mmlu_prox_de_law"


def by_hand(
    model: Path, adapter: Path | None, task: str, files: dict[str, str], **options: Any
) -> list[dict[str, Any]]:
    """``lm_eval.simple_evaluate`` with its own loading of model, adapter and rows."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    folder = named._definitions() / ("global_mmlu/full/de" if task == GLOBAL else "mmlu_prox/de")
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    kind = "json" if files["test"].endswith("jsonl") else "parquet"
    rows = {"dataset_path": kind, "dataset_name": None, "dataset_kwargs": {"data_files": files}}
    arguments = {"pretrained": str(model), "dtype": "float32"}
    if adapter:
        arguments["peft"] = str(adapter)
    results = lm_eval.simple_evaluate(
        model="hf",
        model_args=arguments,
        tasks=[{"group": "hand", "task": [{"task": task, **rows}]}],
        task_manager=manager,
        batch_size=4,
        device="cpu",
        bootstrap_iters=0,
        **options,
    )
    return results["samples"][task]


def test_scores_are_those_of_lm_eval_to_the_last_digit(
    tiny_model: Path, adapters: list[Path], global_mmlu: Path
) -> None:
    settings = Evaluation(batch_size=4, num_fewshot=2, chat_template=False)
    harness = Harness(Training(model=str(tiny_model)), settings)
    assert harness.precision == "float32"
    tasks = named.find("global_mmlu", "de", str(global_mmlu)).build()
    files = {split: str(global_mmlu / f"de/{split}.jsonl") for split in ("test", "dev")}
    expected = {
        adapter: by_hand(tiny_model, adapter, GLOBAL, files, num_fewshot=2)
        for adapter in (*adapters, None)
    }
    numbers = {}
    # Back and forth, so that what one adapter leaves behind would show.
    for adapter in (adapters[0], None, adapters[1], None, adapters[0]):
        rows = harness.score(tasks, adapter).to_pylist()
        mine = [row for row in rows if row["subject"] == "anatomy"]
        samples = expected[adapter]
        assert [row["id"] for row in mine] == [s["doc"]["sample_id"] for s in samples]
        assert [row["loglikelihoods"] for row in mine] == [
            [response[0] for response in sample["filtered_resps"]] for sample in samples
        ]
        assert [row["correct"] for row in mine] == [bool(sample["acc"]) for sample in samples]
        numbers[adapter] = [row["loglikelihoods"] for row in mine]
    assert numbers[adapters[0]] != numbers[adapters[1]] != numbers[None]


def test_written_answers_are_those_of_lm_eval(
    long_model: Path, adapters: list[Path], mmlu_prox: Path
) -> None:
    settings = Evaluation(batch_size=4, chat_template=True, limit=2)
    tasks = named.find("mmlu_prox", "de", str(mmlu_prox)).build()
    short = {"max_gen_toks": 24}  # of the 2048 that the definition allows
    for task in tasks:
        task.set_config(key="generation_kwargs", value=short, update=True)
    table = Harness(Training(model=str(long_model)), settings).score(tasks, adapters[0])
    files = {
        split: str(mmlu_prox / f"de/{split}-00000-of-00001.parquet")
        for split in ("test", "validation")
    }
    options = {"limit": 2, "apply_chat_template": True, "gen_kwargs": short}
    samples = by_hand(long_model, adapters[0], PROX, files, **options)
    mine = [row for row in table.to_pylist() if row["subject"] == "law"]
    assert [row["text"] for row in mine] == [sample["resps"][0][0] for sample in samples]
    assert [row["parsed"] for row in mine] == [
        sample["filtered_resps"][0] != "[invalid]" for sample in samples
    ]
    assert [len(row["options"]) for row in mine] == [6, 10]
    # A model of random weights never says the phrase that the German definition looks for.
    assert not any(row["parsed"] or row["correct"] for row in table.to_pylist())


def test_qlora_is_scored_on_the_weights_it_was_trained_on(
    wide_model: Path, global_mmlu: Path, tmp_path: Path
) -> None:
    training = Training(model=str(wide_model), adapter={"type": "qlora"})
    harness = Harness(training, Evaluation(limit=2, num_fewshot=0))
    assert torch.uint8 in {weight.dtype for weight in harness._base.parameters()}
    tasks = named.find("global_mmlu", "de", str(global_mmlu)).build()
    first, second = (make_adapter(wide_model, tmp_path / str(seed), seed) for seed in (1, 2))
    base, one, again, other = (
        np.array(harness.score(tasks, adapter)["loglikelihoods"].to_pylist())
        for adapter in (None, first, None, second)
    )
    # Kernels of CPUs reckon in bfloat16.
    assert np.allclose(base, again, atol=0.01)
    assert abs(one - base).max() > 0.05 < abs(other - one).max()


def test_a_batch_holds_fewer_of_what_is_long_and_half_of_what_did_not_fit(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Harness(Training(model=str(tiny_model)), Evaluation(batch_size=4))._lm
    lengths = (7, 99, 7, 399, 399, 7, 199)
    requests = [(("", ""), [i + 6] * length, [2]) for i, length in enumerate(lengths)]
    free = model._loglikelihood_tokens(requests)
    monkeypatch.setattr(model, "_most_tokens", 800)
    seen: list[tuple[int, ...]] = []
    call = model._model_call

    def in_small_memory(batch: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(batch.shape))
        if batch.numel() > 500:
            raise torch.OutOfMemoryError
        return call(batch)

    monkeypatch.setattr(model, "_model_call", in_small_memory)
    bounded = model._loglikelihood_tokens(requests)
    # The two of 399 did not fit together, after which a batch has 400 tokens.
    assert seen == [(2, 399), (1, 399), (1, 399), (1, 199), (4, 99)]
    assert np.allclose([one[0] for one in bounded], [one[0] for one in free], atol=1e-4)
    monkeypatch.setattr(model, "_model_call", lambda batch: in_small_memory(batch.repeat(1, 99)))
    with pytest.raises(torch.OutOfMemoryError):
        model._loglikelihood_tokens(requests)


def test_subjects_that_a_copy_lacks_are_left_out(global_mmlu: Path) -> None:
    tasks = named.find("global_mmlu", "de", str(global_mmlu)).build()
    names = {task.task_name.removeprefix("global_mmlu_full_de_") for task in tasks}
    assert names == {"anatomy", "virology", "philosophy"}


def test_the_text_a_task_asks_for_must_fit_the_model(tiny_model: Path, mmlu_prox: Path) -> None:
    tasks = named.find("mmlu_prox", "de", str(mmlu_prox)).build()
    with pytest.raises(UserError, match="2048 tokens, which leaves no room"):
        Harness(Training(model=str(tiny_model)), Evaluation()).score(tasks, None)


@pytest.mark.parametrize(
    ("task", "language", "name"),
    [
        ("global_mmlu", "sw", "global_mmlu_full_sw"),
        ("global_mmlu_lite", "sw", "global_mmlu_sw"),
        ("mmlu_prox", "zu", "mmlu_prox_zu"),
        ("mmlu_prox_lite", "wo", "mmlu_prox_lite_wo"),
        ("global_mmlu", "fil", "global_mmlu_full_fil"),
        ("global_mmlu", "zu", None),
        ("mmlu_prox", "so", None),
    ],
)
def test_the_language_map_decides_which_definition_is_used(
    task: str, language: str, name: str | None
) -> None:
    found = named.find(task, language, None)
    assert (found and found.name) == name


def test_the_benchmarks_have_as_many_languages_as_they_say() -> None:
    counts = {task: len(named._spellings(suite.folder)) for task, suite in named.SUITES.items()}
    assert counts == {
        "global_mmlu": 42,
        "global_mmlu_lite": 15,
        "mmlu_prox": 29,
        "mmlu_prox_lite": 29,
    }


def test_other_tasks_of_lm_eval_are_found_by_name_and_language() -> None:
    assert named.find("xstorycloze_{language}", "sw", None).name == "xstorycloze_sw"
    assert named.find("belebele_{language}", "sw", None).name == "belebele_swh_Latn"
    assert named.find("belebele_{language}", "zh-Hant", None).name == "belebele_zho_Hant"
    assert named.find("xstorycloze_{language}", "de", None) is None
    assert named.find("arc_easy", "de", None).name == "arc_easy"
    with pytest.raises(UserError, match="did you mean arc_easy"):
        named.find("arc_eazy", "de", None)


def test_a_broken_log_likelihood_is_not_an_answer(tiny_model: Path, global_mmlu: Path) -> None:
    import torch

    harness = Harness(Training(model=str(tiny_model)), Evaluation(limit=2))
    with torch.no_grad():
        harness._base.lm_head.weight.fill_(float("nan"))
    table = harness.score(named.find("global_mmlu", "de", str(global_mmlu)).build(), None)
    assert not any(table["parsed"].to_pylist()) and not any(table["correct"].to_pylist())
    assert isinstance(table, pa.Table)


def test_a_worker_whose_gpu_pytorch_cannot_use_does_not_score_without_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    worker = _Worker(Training(), Evaluation(), WorkerShape(1, 0.5))
    with pytest.raises(UserError, match=r"a worker was given 0\.5 GPU, but PyTorch"):
        worker.score(job=None)  # type: ignore[arg-type]
