"""Commands that are started, watched and killed, and a cluster that outlives them."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from compass_ray.resources import LOCAL_RAY
from tests.conftest import KEEP_IDLE

PATIENCE_S = 600
# More steps than workers take in the seconds that they outlive their driver.
STEPS, INTERVAL = 300, 10
TRAINING = {
    "max_steps": STEPS,
    "epochs": 1,
    "checkpoint_steps": INTERVAL,
    "learning_rate": 0.003,
    "workers_per_language": 2,
    # Each loss comes after a checkpoint that the one before has not seen.
    "max_failures": 1,
}
COMMAND = [sys.executable, "-c", "from compass_ray.cli import main; main()"]


@dataclass(frozen=True)
class Started:
    """A command that runs, and where it writes what it has to say."""

    process: subprocess.Popen[bytes]
    log: Path

    def wait_until(self, reached: Callable[[], Any], every: float = 0.05) -> Any:
        """What ``reached``, asked again ``every`` so many seconds, says once it is true.

        Fails where the command ends before.
        """
        deadline = time.monotonic() + PATIENCE_S
        while not (found := reached()):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(every)
        return found

    def finish(self) -> None:
        assert self.process.wait(timeout=PATIENCE_S) == 0, self.log.read_text()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def children(self, name: str) -> list[psutil.Process]:
        """Ray processes of that name, of a Ray that the command started."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if name in " ".join(child.cmdline()):
                    found.append(child)
            except psutil.Error:
                continue
        return found


def start(log: Path, *arguments: object) -> Started:
    """``compass-ray`` with these arguments; several may follow each other on one log."""
    with log.open("ab") as file:
        words = [*COMMAND, *map(str, arguments)]
        process = subprocess.Popen(words, stdout=file, stderr=file, start_new_session=True)
    return Started(process, log)


@pytest.fixture(scope="package")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage in which the stages before training are done once for all tests."""
    return tmp_path_factory.mktemp("sampled") / "storage"


@pytest.fixture(scope="package")
def running_cluster() -> Iterator[Any]:
    """A node of two slots with a dashboard."""
    from ray.cluster_utils import Cluster

    # The Ray of other tests may have the port that a dashboard takes by default.
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    head = {"num_cpus": 2, "include_dashboard": True, "dashboard_port": port}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEEP_IDLE, LOCAL_RAY[KEEP_IDLE])
        cluster = Cluster(initialize_head=True, head_node_args=head)
    yield cluster
    cluster.shutdown()


@pytest.fixture
def cluster(running_cluster: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The cluster that commands find by ``RAY_ADDRESS``; a test leaves it the nodes it had."""
    monkeypatch.setenv("RAY_ADDRESS", running_cluster.address)
    return running_cluster
