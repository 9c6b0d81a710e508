"""The plan is checked against numbers worked out by hand; see ``conftest.py``."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import ray

from compass_ray.config import ONERULER_TASKS, Config
from compass_ray.errors import UserError
from compass_ray.evaluation.harness import Harness
from compass_ray.evaluation.items import Atlas
from compass_ray.plan import format_plan, make_plan
from compass_ray.planning import evaluation
from compass_ray.planning.hardware import Hardware

from .conftest import LAPTOP, language, stage, stand_on

GPU_NODE = Hardware("10.0.0.1:6379", 1, 16, 2, "NVIDIA L40S", 48_000_000_000, 128_000_000_000)


def test_rows_are_told_by_role_and_language(make: Callable[..., Config]) -> None:
    rows = {told.role: told for told in make_plan(make()).rows}
    assert rows["auxiliary"].languages == {"de": 10, "fr": 40}
    assert rows["train"].languages == {"de": 20}
    assert rows["usage"].languages == {"de": 5, "sw": 5}
    assert rows["evaluation"].languages == {"de": 1}
    assert {told.certainty for told in rows.values()} == {"exact"}


def test_parameters_are_counted_exactly(make: Callable[..., Config]) -> None:
    size = make_plan(make()).training.size
    layer = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 64 + 2 * 32
    assert size.parameters == 2 * 100 * 32 + 2 * layer + 32
    assert size.embeddings == 2 * 100 * 32
    # r (in + out) of q, k, v, o, gate, up and down.
    pairs = (64, 48, 48, 64, 96, 96, 96)
    assert size.adapter_parameters == 2 * 16 * sum(pairs)
    # DoRA adds a magnitude for each output.
    dora = make_plan(make(training={"adapter": {"type": "dora"}}))
    assert dora.training.size.adapter_parameters == 2 * (
        16 * 512 + 32 + 16 + 16 + 32 + 64 + 64 + 32
    )
    assert any("vLLM does not serve it" in note for note in dora.notes)
    few = make_plan(make(training={"adapter": {"r": 8, "target_modules": ["q_proj"]}}))
    assert few.training.size.adapter_parameters == 2 * 8 * 64


def test_tokens_and_steps_follow_from_own_and_picked_rows(make: Callable[..., Config]) -> None:
    plan = make_plan(make())
    german = language(plan, "de")
    assert (german.own, german.picked, german.certain) == (20, 30, True)
    assert german.steps is not None
    assert german.steps.tokens_per_epoch == 20 * 6 + 30 * 9
    assert german.steps.tokens_per_row == pytest.approx(7.8)
    assert german.steps.steps == 13
    swahili = language(plan, "sw")
    assert (swahili.own, swahili.picked) == (0, 30)
    assert swahili.steps is not None
    assert swahili.steps.tokens_per_epoch == 6 * 10 + 24 * 9
    assert "sw has no own rows: it trains on picked ones alone" in plan.notes


def test_packing_and_epochs_change_the_steps(make: Callable[..., Config]) -> None:
    packed = make_plan(make(training={"packing": True}, sampling={"strategy": "target_only"}))
    german = language(packed, "de")
    assert (german.picked, german.steps and german.steps.sequences) == (0, 7)
    assert german.steps is not None
    assert german.steps.steps == 2
    twice = make_plan(make(training={"epochs": 2}))
    assert [told.steps and told.steps.steps for told in twice.training.languages] == [25, 15]


def test_no_more_is_picked_than_the_pool_has_in_other_languages(
    make: Callable[..., Config],
) -> None:
    plan = make_plan(make(sampling={"budget": 1000}))
    assert [told.picked for told in plan.training.languages] == [40, 50]
    assert "de: 40 rows of other languages for a budget of 1,000" in plan.notes
    everything = make_plan(make(sampling={"strategy": "all"}))
    assert [told.picked for told in everything.training.languages] == [40, 50]


def test_time_follows_from_tokens_and_what_runs_side_by_side(make: Callable[..., Config]) -> None:
    plan = make_plan(make(training={"max_steps": 10}))
    german = language(plan, "de")
    assert german.steps is not None
    seconds = 20 + 4 * plan.training.size.parameters * german.steps.padded_tokens / 0.08e12
    assert german.seconds == pytest.approx(seconds)
    both = [told.seconds or 0 for told in plan.training.languages]
    assert plan.training.parallel == 2
    assert plan.training.wall_seconds == max(both)
    assert plan.training.device_hours == pytest.approx(sum(both) / 3600)
    alone = make_plan(make(training={"max_steps": 10}, resources={"max_parallel_languages": 1}))
    assert alone.training.wall_seconds == pytest.approx(sum(both))


def test_nothing_is_written_and_no_ray_is_started(
    make: Callable[..., Config], tmp_path: Path, model: Path
) -> None:
    before = sorted(str(path) for path in (*tmp_path.rglob("*"), *model.rglob("*")))
    make_plan(make())
    after = sorted(str(path) for path in (*tmp_path.rglob("*"), *model.rglob("*")))
    assert after == before
    assert not ray.is_initialized()


def test_before_anything_has_run_everything_is_to_do(make: Callable[..., Config]) -> None:
    plan = make_plan(make())
    told = {work.stage: (work.reused, work.computed) for work in plan.stages}
    assert told == {
        "records": (0, 4),
        "embed": (0, 80),
        "cluster": (0, 1),
        "sample": (0, 2),
        "train": (0, 2),
        "evaluate": (0, 2),
        "report": (0, 1),
    }
    assert plan.embedding.rows == 80
    assert plan.embedding.actors == 2


def test_a_gpu_is_reckoned_with_in_bfloat16(
    make: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_on(monkeypatch, GPU_NODE)
    training = make_plan(make()).training
    assert training.device == "cuda"
    assert training.memory.bytes.base == 2 * training.size.parameters
    assert training.memory.available == 48_000_000_000
    assert training.memory.fits
    assert training.flops_per_second == pytest.approx(0.4 * 362e12)
    half = make_plan(make(resources={"gpus_per_worker": 0.5})).training
    assert half.memory.available == 24_000_000_000
    assert half.flops_per_second == pytest.approx(0.2 * 362e12)


def test_what_does_not_fit_comes_with_a_micro_batch_that_does(
    make: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_on(monkeypatch, replace(GPU_NODE, gpu_bytes=601_000_000))
    plan = make_plan(make(training={"batch_size": 16}))
    memory = plan.training.memory
    assert (memory.fits, memory.micro_batch) == (False, 16)
    assert memory.largest_micro_batch in (1, 2, 4, 8)
    advice = f"set training.micro_batch_size to {memory.largest_micro_batch} or less"
    assert any(advice in note for note in plan.notes)
    smaller = make(training={"batch_size": 16, "micro_batch_size": memory.largest_micro_batch})
    assert make_plan(smaller).training.memory.fits
    stand_on(monkeypatch, replace(GPU_NODE, gpu_bytes=1_000_000))
    hopeless = make_plan(make())
    assert hopeless.training.memory.largest_micro_batch is None
    assert any("take a smaller model" in note for note in hopeless.notes)


def test_evaluation_holds_the_whole_base_on_one_gpu(
    make: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_on(monkeypatch, GPU_NODE)
    plan = make_plan(make())
    assert plan.training.memory.scoring == 2 * plan.training.size.parameters + 600_000_000
    assert not [note for note in plan.notes if note.startswith("evaluation")]
    stand_on(monkeypatch, replace(GPU_NODE, gpu_bytes=plan.training.memory.scoring - 1))
    notes = [note for note in make_plan(make()).notes if note.startswith("evaluation")]
    assert len(notes) == 1 and "holds the whole base on one worker, 0.6 GB" in notes[0]


def test_options_are_read_one_by_one_and_answers_written_token_by_token(
    make: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for code in ("de", "sw"):
        folder = tmp_path / "prox" / code
        folder.mkdir(parents=True)
        for split, rows in (("test", 20), ("validation", 3)):
            (folder / f"{split}.jsonl").write_text('{"question": "asked"}\n' * rows)
    tasks = {"tasks": ["items", "mmlu_prox"], "data": {"mmlu_prox": str(tmp_path / "prox")}}
    stand_on(monkeypatch, GPU_NODE)
    plan = make_plan(make(evaluation=tasks))
    items, prox = plan.scoring.tasks
    # A question of one word before each of four options of one word.
    assert (items.languages, items.items, items.read, items.passes) == (1, 1, 8, 2)
    # Four texts of two tokens: weights on each, and causal attention in two layers of 32.
    reading = 2 * 4 * (2 * plan.training.size.parameters * 2 + 2 * 2 * 32 * 2**2)
    assert items.device_hours == pytest.approx(reading / (0.4 * 362e12) / 3600)
    assert (prox.languages, prox.items, prox.written, prox.passes) == (2, 20, 2048, 4)
    # Eight of them at once: three batches, two layers.
    writing = 4 * 3 * 2048 * 2 * 8 / 314 / 32
    assert prox.device_hours == pytest.approx(writing / 3600, rel=1e-3)
    # Two GPUs share the four passes.
    assert plan.scoring.wall_seconds == pytest.approx(writing / 2 + 20, rel=1e-3)
    assert any("for mmlu_prox the model writes up to 2,048 tokens" in note for note in plan.notes)
    assert "<=2,048" in format_plan(plan)

    half = make_plan(make(evaluation={**tasks, "limit": 1, "baseline": False})).scoring.tasks[1]
    assert (half.items, half.passes) == (14, 2), "one of each subject"
    stand_on(monkeypatch, LAPTOP)
    slow = make_plan(make(evaluation=tasks))
    size = slow.training.size
    # Each of 20 items of 2,000 tokens and 2,048 written ones, by one thread.
    work = 2 * size.parameters * (2000 + 2048) + 2 * 2 * 32 * 2000**2
    assert slow.scoring.tasks[1].device_hours == pytest.approx(4 * 20 * work / 0.08e12 / 3600)
    built_in = make_plan(make(evaluation={"tasks": ["atlas"]})).scoring.tasks[0]
    assert (built_in.languages, built_in.passes) == (2, 4) and built_in.device_hours


@pytest.mark.parametrize("chat_template", ["auto", False])
def test_what_the_model_reads_is_counted_as_it_reads_it(
    make: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
    tiny_model: Path,
    chat_template: str | bool,
) -> None:
    settings = {"tasks": ["atlas"], "chat_template": chat_template}
    training = {"model": str(tiny_model), "system_prompt": "Be brief."}
    config = make(evaluation=settings, training=training)
    monkeypatch.setattr(evaluation, "SAMPLED_ITEMS", 100)
    (told,) = make_plan(config).scoring.tasks
    harness = Harness(config.training, config.evaluation)
    read = []
    harness._lm._loglikelihood_tokens = lambda requests, **_: [
        read.append(len(context) + len(option)) or (0.0, False) for _, context, option in requests
    ]
    for code in ("de", "sw"):
        harness.score(Atlas(code).build(), None)
    assert told.items == 100
    assert told.read == pytest.approx(sum(read) / 200, rel=0.02)


def test_long_texts_are_written_fewer_at_once(
    make: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_on(monkeypatch, GPU_NODE)
    lengths = {"lengths": [1700], "samples": 10}
    settings = {"tasks": ["oneruler"], "oneruler": lengths, "limit": 5, "batch_size": 32}
    told = make_plan(make(evaluation=settings)).scoring.tasks[0]
    items = 5 * len(ONERULER_TASKS)
    assert (told.items, told.read, told.written, told.passes) == (items, 1700, 256, 4)
    # 32,768 tokens at most: 16 of 1,956.
    writing = 4 * math.ceil(items / 16) * 256 * 2 * 8 / 314 / 32
    assert told.device_hours == pytest.approx(writing / 3600, rel=1e-3)


def test_the_hub_leaves_open_what_cannot_be_known(
    make: Callable[..., Config], corpora: dict[str, list[dict[str, str]]]
) -> None:
    plan = make_plan(make(corpora={**corpora, "auxiliary": [{"path": "hf:owner/name"}]}))
    assert next(told.rows for told in plan.rows if told.role == "auxiliary") is None
    assert stage(plan, "embed").computed is None
    german = language(plan, "de")
    assert (german.picked, german.certain) == (30, False)
    assert german.steps is not None
    assert german.steps.tokens_per_epoch == 50 * 6
    assert language(plan, "sw").steps is None
    assert plan.training.wall_seconds is None
    assert "?" in format_plan(plan)
    items = {**corpora, "evaluation": [{"path": "hf:owner/name"}]}
    scoring = make_plan(make(corpora=items)).scoring
    assert scoring.passes == 4
    assert scoring.tasks[0].items is scoring.device_hours is scoring.wall_seconds is None


def test_a_plan_is_json_and_fits_a_terminal(make: Callable[..., Config]) -> None:
    plan = make_plan(make())
    assert json.loads(json.dumps(asdict(plan)))["training"]["size"]["layers"] == 2
    text = format_plan(plan)
    assert "nothing is run or written" in text
    assert max(len(line) for line in text.splitlines()) <= 160
    for word in (
        "records",
        "activations",
        "core-hours",
        "2 of 2 side by side",
        "fits into 8.00 GB",
    ):
        assert word in text


def test_what_the_run_would_refuse_the_plan_refuses(
    make: Callable[..., Config],
    corpora: dict[str, list[dict[str, str]]],
) -> None:
    def refused(**sections: Any) -> str:
        with pytest.raises(UserError) as caught:
            make_plan(make(**sections))
        return str(caught.value)

    assert "no such file" in refused(corpora={**corpora, "train": [{"path": "gone.jsonl"}]})
    assert refused(languages=["de", "fr"]).startswith("languages: fr has no rows in corpora.usage")
    assert refused(clustering={"k": 51}).endswith("choose k of at most 50")
    no_pool = refused(corpora={**corpora, "auxiliary": []})
    assert no_pool.startswith("corpora.auxiliary: no rows, so there is nothing")
    assert refused(corpora={**corpora, "usage": []}).endswith("languages there: none")
    assert "fits 2" in refused(training={"workers_per_language": 4})
    assert refused(embedding={"threads": 3}).startswith("embedding.threads: 3 CPUs")
    assert refused(embedding={"prefix": ""}).startswith("embedding.prefix")
    assert refused(training={"model": "/gone"}).startswith("training.model: no model folder /gone")
    wrong = refused(training={"adapter": {"target_modules": ["gone_proj"]}})
    assert wrong.startswith("training.adapter.target_modules: Target modules")
    empty = Path(corpora["train"][0]["path"]).parent
    assert refused(training={"model": str(empty)}).startswith("training.model: ")
