from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from compass_ray import load_config, run
from compass_ray.clustering import lloyd, sharded
from compass_ray.clustering.kmeans import ITERATIONS
from compass_ray.clustering.lloyd import Sums, iterate, next_centroids, part_sums
from compass_ray.clustering.sharded import Rows, fit_sharded

pytestmark = pytest.mark.ray


def blobs() -> np.ndarray:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(20, 16)) * 4
    return (centres[rng.integers(20, size=4000)] + rng.normal(size=(4000, 16))).astype(np.float32)


def shard(number: int, pids: Path) -> Rows:
    Path(pids, f"{number}-{os.getpid()}").touch()
    return Rows(blobs()[number * 2000 : (number + 1) * 2000])


def test_shards_give_the_clusters_of_the_whole_though_an_actor_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = torch.from_numpy(blobs())
    start = blobs()[:20]
    expected, _ = iterate(partial(part_sums, rows, None), start, ITERATIONS)
    passes: list[float] = []

    def killing(sums: Sums, centroids: np.ndarray) -> np.ndarray:
        passes.append(sums.inertia)
        if len(passes) == 3:
            (victim,) = tmp_path.glob("1-*")
            os.kill(int(victim.name.split("-")[1]), signal.SIGKILL)
        return next_centroids(sums, centroids)

    monkeypatch.setattr(lloyd, "next_centroids", killing)
    found = fit_sharded([partial(shard, n, tmp_path) for n in range(2)], start, cpus=0.5)
    assert len(list(tmp_path.glob("1-*"))) == 2, "the second shard was loaded again"
    assert passes == sorted(passes, reverse=True)
    assert found.centroids == pytest.approx(expected, abs=1e-4)
    _, distance = found.assign(blobs())
    assert found.inertia == pytest.approx(float((distance.astype(float) ** 2).sum()), rel=1e-5)


def test_fits_that_cannot_all_have_their_places_come_to_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharded, "PATIENCE_S", 0.5)
    fit = partial(fit_sharded, [partial(shard, n, tmp_path) for n in range(2)], blobs()[:20])
    stays = ray.remote(num_cpus=1)(_Stays).remote()
    ray.get(stays.here.remote())
    with ThreadPoolExecutor() as threads:
        fits = [threads.submit(fit) for _ in range(2)]
        found = [waited.result(timeout=120) for waited in fits]
    ray.kill(stays)
    assert len(list(tmp_path.glob("0-*"))) == 2, "each fit had one place for both shards"
    assert found[0].centroids.tolist() == found[1].centroids.tolist()


class _Stays:
    def here(self) -> None: ...


def test_fit_rows_all_fits_on_every_row_of_the_pool(make_config: Callable[..., Path]) -> None:
    sections = {"clustering": {"k": 8, "fit_rows": "all"}, "corpora": {"rows_per_part": 50}}
    result = run(load_config(make_config(**sections)), until="cluster")
    manifest = json.loads(Path(result.folder, "manifest.json").read_text())
    told = manifest["stages"]["cluster"]
    assert told["backend"] == "sharded"
    assert told["fit_rows"] == manifest["stages"]["records"]["rows"]["auxiliary"]
    assert told["k"] == 8 and told["inertia"] > 0
