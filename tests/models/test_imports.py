"""What is loaded by whom: on a cluster, every worker pays for it at its start."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Seconds each; whoever trains, scores or embeds loads what it needs itself.
HEAVY = {"torch", "transformers", "sklearn", "pandas", "scipy.stats", "datasets"}


@pytest.mark.parametrize(
    "module", ["compass_ray.pipeline", "compass_ray.continual.update", "compass_ray.plan"]
)
def test_drivers_and_light_workers_load_nothing_heavy(module: str) -> None:
    script = f"import sys, {module}; print(*sorted({HEAVY} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


TRAINING = """
import sys
from compass_ray.imports import load_deepspeed, load_peft

load_peft(quantised=False)
load_deepspeed()

from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 20}
model = AutoModelForCausalLM.from_config(LlamaConfig(**shape, num_attention_heads=2))
get_peft_model(model, LoraConfig(target_modules="all-linear"))
print(*sorted({"bitsandbytes", "deepspeed", "mlflow", "peft"} & set(sys.modules)))
"""


def test_training_workers_load_no_tracker_and_no_quantisation_that_they_do_not_use() -> None:
    done = subprocess.run([sys.executable, "-c", TRAINING], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "deepspeed peft"
