"""Tiny random models of the architectures people train, and workers that train them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from compass_ray.training.group import join_group

Train = Callable[[int, list[dict[str, Any]]], None]

TURNS = {
    "qwen2": ("<|im_start|>{role}\n", "<|im_end|>\n"),
    "llama": ("<|start_header_id|>{role}<|end_header_id|>\n\n", "<|eot_id|>"),
    "phi3": ("<|{role}|>", "<|end|>"),
}
SPECIAL = {
    "qwen2": ["<|im_start|>", "<|im_end|>", "<|endoftext|>"],
    "llama": ["<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"],
    "phi3": ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"],
}
ENDS = {"qwen2": "<|im_end|>", "llama": "<|eot_id|>", "phi3": "<|end|>"}
PADS = {"qwen2": "<|endoftext|>", "llama": None, "phi3": None}


@pytest.fixture(scope="session")
def architectures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of a two-layer Qwen2, Llama and Phi-3 with chat templates of their own form."""
    root = tmp_path_factory.mktemp("architectures")
    return {name: _save(name, root / name) for name in TURNS}


@pytest.fixture(scope="session")
def rows() -> tuple[list[str], list[str]]:
    """Prompts and responses: sums, which a few steps of training make likelier."""
    pairs = [(a, b) for a in range(1, 13) for b in (3, 8, 11, 20)]
    return [f"What is {a} plus {b}?" for a, b in pairs], [str(a + b) for a, b in pairs]


@pytest.fixture(scope="session")
def world() -> Iterator[None]:
    """A process group of one, as a worker has it."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": "0"}
    os.environ.update({**address, "RANK": "0", "WORLD_SIZE": "1"})
    join_group(on_gpu=False, auto_mpi_discovery=False)
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="session")
def train_with(
    rows: tuple[list[str], list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Train:
    """Train with so many worker processes, as torchrun starts them; see ``worker.py``."""

    def launch(workers: int, runs: list[dict[str, Any]]) -> None:
        spec = tmp_path_factory.mktemp("spec") / "spec.json"
        spec.write_text(json.dumps({"prompts": rows[0], "responses": rows[1], "runs": runs}))
        script = str(Path(__file__).with_name("worker.py"))
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        done = subprocess.run(
            [*torchrun, f"--nproc-per-node={workers}", script, str(spec)],
            env={**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        cause = done.stderr.find("Traceback")
        assert done.returncode == 0, done.stderr[cause : cause + 5000]

    return launch


def _template(name: str) -> str:
    opening, closing = TURNS[name]
    before, after = opening.split("{role}")
    start = f"{before!r} + m['role'] + {after!r}"
    answer = f"{before!r} + 'assistant' + {after!r}"
    turns = f"{{% for m in messages %}}{{{{ {start} + m['content'] + {closing!r} }}}}{{% endfor %}}"
    return f"{turns}{{% if add_generation_prompt %}}{{{{ {answer} }}}}{{% endif %}}"


def _save(name: str, folder: Path) -> Path:
    from tokenizers import ByteLevelBPETokenizer
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        Phi3Config,
        Phi3ForCausalLM,
        PreTrainedTokenizerFast,
        Qwen2Config,
        Qwen2ForCausalLM,
    )

    from compass_ray.corpora import atlas

    bpe = ByteLevelBPETokenizer()
    rows = atlas.rows("auxiliary", ["en", "de", "sw"], 100, seed=0)
    bpe.train_from_iterator(
        rows["prompt"].to_pylist(), vocab_size=400, special_tokens=SPECIAL[name]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, eos_token=ENDS[name], pad_token=PADS[name]
    )
    tokenizer.chat_template = _template(name)
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    # What sets each apart: tied embeddings and biases; scaled rotary positions; fused projections
    # with positions on a part of each head.
    scaled = {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    partial = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.75}
    torch.manual_seed(0)
    model = {
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**shape, tie_word_embeddings=True)),
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**shape, rope_parameters=scaled)),
        "phi3": lambda: Phi3ForCausalLM(
            Phi3Config(**shape, rope_parameters=partial, tie_word_embeddings=True)
        ),
    }[name]()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
