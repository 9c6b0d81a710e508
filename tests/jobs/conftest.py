"""A Ray cluster of two nodes with token authentication, as jobs meet it."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pyarrow.fs as pafs
import pytest

from compass_ray.artifacts import Storage
from compass_ray.resources import LOCAL_RAY
from tests.conftest import KEEP_IDLE

REPOSITORY = Path(__file__).parents[2]
RAY = str(Path(sys.executable).parent / "ray")
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


def poll(true: Callable[[], bool], what: str, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.2)


@dataclass(frozen=True)
class Head:
    """Where jobs are submitted, and the environment a user with the token has."""

    dashboard: str
    metrics_port: int
    environment: dict[str, str]

    def ray(self, *arguments: str, token: bool = True) -> subprocess.CompletedProcess[str]:
        environment = dict(self.environment)
        if not token:
            # Ray makes a token for its user where none is given.
            environment |= {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": ""}
        return subprocess.run(
            [RAY, *arguments],
            env=environment,
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
        )

    def submit(
        self, script: str, config: Path, *options: str, token: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """A job of a configuration; see ``start``."""
        return self.start([script, "--config", str(config)], *options, token=token)

    def start(
        self, command: Sequence[str], *options: str, token: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """``ray job submit``; waits for the job's end without ``--no-wait``."""
        words = ["job", "submit", "--working-dir", ".", *options]
        return self.ray(*words, "--", sys.executable, *command, token=token)

    def metrics(self) -> str:
        """What Prometheus would read from the head."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics") as page:
            text: str = page.read().decode()
            return text

    def status(self, job: str) -> str:
        shown = self.ray("job", "status", job).stdout
        ended = re.search(r"Job '[^']+' (?:was )?(failed|succeeded|stopped)", shown)
        found = ended or re.search(r"\b(PENDING|RUNNING)\b", shown)
        assert found, shown
        return found[1].upper()


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """Two nodes of two slots each, on ports and in a folder of their own."""
    port, dashboard, metrics = free_port(), free_port(), free_port()
    # Unix sockets live in there, and their paths may not be long.
    folder = tempfile.mkdtemp(prefix="ray-")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "PYTHONPATH": str(REPOSITORY),
        "HF_HUB_OFFLINE": "1",
        **CREDENTIALS,
    }
    started = {**environment, KEEP_IDLE: LOCAL_RAY[KEEP_IDLE]}

    log = Path(folder, "start.log")

    def start(*arguments: str) -> subprocess.Popen[bytes]:
        agent = f"--dashboard-agent-listen-port={free_port()}"
        command = [RAY, "start", "--block", "--num-cpus=2", "--disable-usage-stats", agent]
        command += arguments
        with log.open("ab") as told:
            return subprocess.Popen(command, env=started, stdout=told, stderr=told, cwd=folder)

    def listening() -> bool:
        assert nodes[0].poll() is None, log.read_text()
        return ready.ray("job", "list").returncode == 0

    nodes = [
        start(
            "--head",
            f"--port={port}",
            f"--dashboard-port={dashboard}",
            f"--metrics-export-port={metrics}",
            f"--temp-dir={folder}",
            f"--ray-client-server-port={free_port()}",
        )
    ]
    ready = Head(f"http://127.0.0.1:{dashboard}", metrics, environment)
    try:
        poll(listening, "dashboard")
        nodes.append(start(f"--address=127.0.0.1:{port}"))
        yield ready
    finally:
        for node in nodes:
            stop_tree(node)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def storage() -> Iterator[Storage]:
    """A bucket of a server that speaks S3, which is all that the nodes share."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    options = f"region=us-east-1&scheme=http&endpoint_override={host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        store, _ = pafs.FileSystem.from_uri(f"s3://compass?{options}&allow_bucket_creation=true")
        store.create_dir("compass")
        yield Storage.open(f"s3://compass/storage?{options}")
    server.stop()


def stop_tree(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and what it started, by their ids; asked to end, a node takes long."""
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.kill()
    process.wait()
    for child in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
