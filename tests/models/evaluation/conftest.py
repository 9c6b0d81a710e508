"""Small copies of Global-MMLU and MMLU-ProX in their published columns, and two adapters."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import write_jsonl

SUBJECTS = {"anatomy": "STEM", "virology": "Medical", "philosophy": "Humanities"}
CATEGORIES = ("law", "computer science")


@pytest.fixture(scope="session")
def long_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with room for five solved examples and the text MMLU-ProX asks for."""
    folder = tmp_path_factory.mktemp("models") / "long"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    config["max_position_embeddings"] = 4096
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def wide_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as wide as bitsandbytes' blocks of weights, which on some CPUs it must be."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = shutil.copytree(tiny_model, tmp_path_factory.mktemp("models") / "wide")
    config = LlamaConfig.from_pretrained(folder)
    config.update({"hidden_size": 64, "intermediate_size": 128, "head_dim": 16})
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def adapters(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two LoRA adapters that change what the model says, each in its own way."""
    return [make_adapter(tiny_model, tmp_path_factory.mktemp("a"), seed) for seed in (1, 2)]


def make_adapter(model: Path, folder: Path, seed: int) -> Path:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(model)
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear"))
    for name, weights in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.1)
    adapted.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def global_mmlu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JSON lines, German: eight questions and five solved ones in each of three subjects."""
    folder = tmp_path_factory.mktemp("global-mmlu") / "de"
    folder.mkdir()
    for split, count in (("test", 8), ("dev", 5)):
        rows = [
            {
                "sample_id": f"{subject}/{split}/{number}",
                "subject": subject,
                "subject_category": category,
                "question": f"Was ist {number} plus {number} in {subject}?",
                **{f"option_{letter}": str(number * 2 + i) for i, letter in enumerate("abcd")},
                "answer": "ABCD"[number % 4],
                "required_knowledge": None,
                "cultural_sensitivity_label": "-",
                "is_annotated": False,
            }
            for subject, category in SUBJECTS.items()
            for number in range(count)
        ]
        write_jsonl(folder / f"{split}.jsonl", rows)
    return folder.parent


@pytest.fixture(scope="session")
def mmlu_prox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parquet, German: ten options, of which every other item leaves the last four empty."""
    folder = tmp_path_factory.mktemp("mmlu-prox") / "de"
    folder.mkdir()
    for split, count in (("test", 3), ("validation", 5)):
        rows = [
            prox_item(f"{category}{number}", category, number)
            for category in CATEGORIES
            for number in range(count)
        ]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}-00000-of-00001.parquet")
    return folder.parent


def prox_item(name: str, category: str, number: int) -> dict[str, Any]:
    options = [str(number + i) if i < 6 or number % 2 else None for i in range(10)]
    return {
        "question_id": name,
        "question": f"Was ist {number}?",
        **{f"option_{i}": option for i, option in enumerate(options)},
        "answer": "A",
        "answer_index": 0,
        "cot_content": f"A: Let's think step by step. {number}. Die Antwort ist (A)",
        "category": category,
        "src": "made",
    }
