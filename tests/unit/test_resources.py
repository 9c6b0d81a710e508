from __future__ import annotations

import pytest

from compass_ray.config import Embedding
from compass_ray.errors import UserError
from compass_ray.loading import build_config
from compass_ray.resources import (
    Cluster,
    Node,
    check_address,
    check_attention,
    encoder_actors,
    parallel_languages,
    worker_shape,
)

LAPTOP = Cluster((Node(2, 0),))
GPUS = Cluster((Node(32, 4), Node(32, 4)))


def config(languages: int = 3, **sections: object):
    names = ["de", "fr", "es", "it", "pt", "nl", "sv", "pl", "tr", "id", "vi", "sw"]
    return build_config({"languages": names[:languages], **sections})


def test_a_laptop_trains_two_languages_side_by_side() -> None:
    assert parallel_languages(config(), LAPTOP) == 2


def test_a_worker_takes_a_gpu_where_there_are_any() -> None:
    assert worker_shape(config(), GPUS).gpus == 1
    assert worker_shape(config(), LAPTOP).gpus == 0
    assert parallel_languages(config(12), GPUS) == 8
    assert parallel_languages(config(12, training={"workers_per_language": 4}), GPUS) == 2


def test_a_kernel_for_gpus_needs_workers_with_gpus() -> None:
    asked = {"attention": "flash_attention_2"}
    check_attention(config(training=asked), GPUS)
    check_attention(config(), LAPTOP)
    with pytest.raises(UserError, match=r"training.attention: flash_attention_2 needs a GPU"):
        check_attention(config(training=asked), LAPTOP)
    with pytest.raises(UserError, match="the workers have none"):
        check_attention(config(training=asked, resources={"gpus_per_worker": 0}), GPUS)


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "https://ray.example.org"])
def test_a_dashboard_is_no_cluster_to_join(address: str) -> None:
    with pytest.raises(UserError, match=rf"RAY_ADDRESS: {address} is a dashboard"):
        check_address(address)
    for joined in ("auto", "10.0.0.1:6379", "ray://10.0.0.1:10001"):
        check_address(joined)


def test_never_more_side_by_side_than_asked() -> None:
    assert parallel_languages(config(12, resources={"max_parallel_languages": 3}), GPUS) == 3


def test_a_worker_must_fit_on_one_node() -> None:
    two_halves = Cluster((Node(2, 0), Node(2, 0)))
    assert two_halves.slots(cpus=3, gpus=0) == 0
    with pytest.raises(UserError, match="fits 0"):
        parallel_languages(config(resources={"threads_per_worker": 3}), two_halves)


def test_parts_of_a_gpu_are_all_used_and_none_spans_two() -> None:
    assert [Cluster((Node(64, 1),)).slots(1, part) for part in (0.1, 0.2, 0.3, 0.5)] == [
        10,
        5,
        3,
        2,
    ]
    assert [GPUS.slots(1, gpus) for gpus in (0.6, 1, 2)] == [8, 8, 4]
    assert Cluster((Node(0.3, 0),)).slots(0.1, 0) == 3


def test_workers_of_a_language_do_not_share_a_gpu() -> None:
    shared = {"resources": {"gpus_per_worker": 0.2}}
    assert parallel_languages(config(12, **shared), GPUS) == 12
    with pytest.raises(UserError, match=r"resources.gpus_per_worker: 0.2 .* the 2 of training"):
        parallel_languages(config(training={"workers_per_language": 2}, **shared), GPUS)


def test_encoders_leave_no_core_oversubscribed() -> None:
    assert encoder_actors(Embedding(threads=1), LAPTOP, "cpu") == 2
    assert encoder_actors(Embedding(threads=2), LAPTOP, "cpu") == 1
    assert encoder_actors(Embedding(), GPUS, "cuda") == 8
    assert encoder_actors(Embedding(actors=1), LAPTOP, "cpu") == 1
    with pytest.raises(UserError, match=r"embedding.threads: 3"):
        encoder_actors(Embedding(threads=3), LAPTOP, "cpu")


def test_an_encoder_on_a_gpu_needs_its_cpus_beside_it() -> None:
    assert encoder_actors(Embedding(threads=16), GPUS, "cuda") == 4
    with pytest.raises(UserError, match=r"embedding.threads: 33 .* beside a GPU"):
        encoder_actors(Embedding(threads=33), GPUS, "cuda")
