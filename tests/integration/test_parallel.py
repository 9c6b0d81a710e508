from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from compass_ray.parallel import TRIES, map_parts, map_parts_on_actors

pytestmark = pytest.mark.ray


def die(tries: Path, item: int) -> None:
    """What kills the process, as a library that crashes or a node out of memory would."""
    (tries / str(os.getpid())).touch()
    os.kill(os.getpid(), signal.SIGKILL)


def make(tries: Path) -> Callable[[int], None]:
    return partial(die, tries)


def test_work_that_kills_its_process_comes_to_an_end(tmp_path: Path) -> None:
    by_task, by_actor = tmp_path / "task", tmp_path / "actor"
    by_task.mkdir()
    by_actor.mkdir()
    passes = [
        lambda: list(map_parts([0], partial(die, by_task))),
        lambda: list(map_parts_on_actors([0], partial(make, by_actor), actors=1, cpus=1)),
    ]
    with ThreadPoolExecutor() as threads:
        ended = [threads.submit(run) for run in passes]
        told = [str(end.exception(timeout=300)) for end in ended]
    assert all(re.fullmatch(rf"a process ended, and so did {TRIES} .*", line) for line in told), (
        told
    )
    assert [len(list(tries.iterdir())) for tries in (by_task, by_actor)] == [1 + TRIES] * 2
