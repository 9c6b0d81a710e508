from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from compass_ray.config import Training
from compass_ray.training.engine import deepspeed_config
from compass_ray.training.loop import learning_rate


def test_the_rate_warms_up_peaks_and_falls_to_a_tenth() -> None:
    config = Training(learning_rate=1.0, warmup_ratio=0.1)
    rates = [learning_rate(step, 100, config) for step in range(100)]
    assert rates[:3] == pytest.approx([0.1, 0.2, 0.3])
    assert max(rates) == 1.0
    assert rates.index(1.0) in (9, 10)
    assert all(a >= b for a, b in pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(0.1, abs=0.01)


def test_one_step_needs_no_warm_up() -> None:
    assert learning_rate(0, 1, Training(learning_rate=1.0)) == 1.0


def test_the_global_batch_is_spread_over_workers() -> None:
    config = Training(batch_size=16, workers_per_language=4, deepspeed={"zero_stage": 3})
    made = deepspeed_config(config, torch.float32)
    assert made["train_micro_batch_size_per_gpu"] == 4
    assert made["zero_optimization"] == {"stage": 3}
    assert made["bf16"] == {"enabled": False}
