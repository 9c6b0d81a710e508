"""Ways to bring an adapter up to date, all behind one function: ``train_update``.

``continual.method`` chooses, and ``benchmarks/ecda.py`` compares. Each gets the same new rows for
the same usage; they differ in where they start, what else they train on, and what holds them back.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray

from compass_ray import artifacts
from compass_ray.artifacts import Artifact, Storage
from compass_ray.config import Config, UpdateMethod
from compass_ray.sampling.subset import SUBSET
from compass_ray.training.launch import (
    ADAPTER,
    LOSS_FILE,
    STAGE,
    Outcome,
    StartFrom,
    train_languages,
)

# What each adapter weighs in PEFT's merging, so that two that are equal keep their scale: a sum of
# two needs a half; TIES' mean of what is kept does not; that of DARE, which doubles the half it
# keeps, comes out 1.5 times as large.
_MERGES = {"ties": 1.0, "dare_ties": 1 / 1.5, "dare_linear": 1 / 2, "linear": 1 / 2}
# Share of each adapter's weights that TIES and DARE keep: the middle of what their papers try.
_DENSITY = 0.5


@dataclass(frozen=True)
class Parent:
    """The adapter that is to be updated.

    Attributes:
        folder: where in the storage its PEFT files, anchors and Fisher information are.
        fingerprint: of its training.
        updates: how many updates its Fisher information is the mean of.
        anchors: names the rows of its history that are replayed.
        rows: all rows it was trained on (``prompt``, ``response`` and more).
    """

    folder: str
    fingerprint: str
    updates: int
    anchors: str
    rows: pa.Table


def train_update(
    method: UpdateMethod,
    config: Config,
    storage: Storage,
    parents: Mapping[str, Parent],
    subsets: Mapping[str, Artifact],
) -> Outcome:
    """Train every language's update by ``method``, or find it in the cache.

    Args:
        method: see ``config.Continual``.
        config: of the run; ``training`` and ``continual`` say how.
        storage: where everything is.
        parents: the adapter of each language, and its history.
        subsets: the new rows of each language.
    """
    if method in _MERGES:
        trained = train_update("naive", config, storage, parents, subsets)
        for language, adapter in trained.adapters.items():
            merged = _merged(method, storage, parents[language], adapter)
            trained.adapters[language] = merged
        return trained
    data = {
        language: _data(method, config, storage, parents[language], subset)
        for language, subset in subsets.items()
    }
    if method == "full_retrain":
        return train_languages(config, storage, data)
    starts = {language: start_of(method, config, parents[language]) for language in subsets}
    return train_languages(config, storage, data, starts=starts)


def start_of(method: UpdateMethod, config: Config, parent: Parent) -> StartFrom:
    """Where a method that trains on goes on from, and what it holds on to."""
    ewc_lambda = config.continual.ewc_lambda if method in ("ecda", "ewc") else 0.0
    replay_beta = config.continual.replay_beta if method == "ecda" else 0.0
    return StartFrom(
        folder=parent.folder,
        fingerprint=parent.fingerprint,
        anchors=parent.anchors if ewc_lambda or replay_beta else "",
        ewc_lambda=ewc_lambda,
        replay_beta=replay_beta,
        updates=parent.updates,
    )


def _data(
    method: UpdateMethod, config: Config, storage: Storage, parent: Parent, subset: Artifact
) -> Artifact:
    """The rows to train on: the new ones, and with some methods old ones among them."""
    if method not in ("random_rehearsal", "full_retrain"):
        return subset
    key = artifacts.fingerprint(
        stage="rehearsal",
        method=method,
        subset=subset.fingerprint,
        history=parent.fingerprint,
        fraction=config.continual.replay_fraction,
        seed=config.run.seed,
    )
    done = artifacts.find(storage, "rehearsal", key)
    if done:
        return done
    old = parent.rows.select(["prompt", "response"])
    if method == "random_rehearsal":
        rng = np.random.default_rng(config.run.seed)
        count = max(1, round(config.continual.replay_fraction * old.num_rows))
        old = old.take(np.sort(rng.choice(old.num_rows, count, replace=False)))
    rows = pa.concat_tables([old, subset.read_table(SUBSET, ["prompt", "response"])])
    draft = artifacts.begin(storage, "rehearsal", key)
    draft.write_table(SUBSET, rows)
    return draft.commit({"rows": rows.num_rows})


def _merged(method: UpdateMethod, storage: Storage, parent: Parent, adapter: Artifact) -> Artifact:
    key = artifacts.fingerprint(
        stage=STAGE,
        version=2,
        merge=method,
        of=[parent.fingerprint, adapter.fingerprint],
        density=_DENSITY,
        weight=_MERGES[method],
    )
    done = artifacts.find(storage, STAGE, key)
    if done:
        return done
    merged: Artifact = ray.get(_merge.remote(method, parent.folder, adapter, key))
    return merged


@ray.remote(num_cpus=1)
def _merge(method: UpdateMethod, parent: str, adapter: Artifact, key: str) -> Artifact:
    storage = adapter.storage
    with (
        storage.as_local_dir(parent) as old,
        storage.as_local_dir(f"{adapter.folder()}/{ADAPTER}") as new,
        tempfile.TemporaryDirectory() as merged,
    ):
        merge_adapters(method, Path(old), Path(new), Path(merged))
        draft = artifacts.begin(storage, STAGE, key)
        for file in sorted(Path(merged).iterdir()):
            draft.write_bytes(f"{ADAPTER}/{file.name}", file.read_bytes())
        draft.write_bytes(LOSS_FILE, adapter.read_bytes(LOSS_FILE))
        return draft.commit(adapter.summary)


def merge_adapters(method: UpdateMethod, old: Path, new: Path, to: Path) -> None:
    """Merge two adapters of one shape, folders in PEFT's format, into a third.

    ``add_weighted_adapter`` of PEFT would put the scale, alpha over r, into the weights, which
    changes what a learning rate means to the next update; here it stays in the configuration.
    Magnitudes of DoRA are averaged: none of them can be left out.
    """
    import torch
    from peft.utils.merge_utils import dare_linear, dare_ties, task_arithmetic, ties
    from safetensors.torch import load_file, save_file

    from compass_ray.training.adapters import WEIGHTS_FILE

    before, after = (load_file(str(folder / WEIGHTS_FILE)) for folder in (old, new))
    weights = torch.full((2,), _MERGES[method])
    torch.manual_seed(0)  # DARE drops weights at random
    merged = {}
    for name in sorted(after):
        both = [before[name], after[name]]
        if method == "linear" or "lora_magnitude_vector" in name:
            merged[name] = task_arithmetic(both, torch.full((2,), 0.5))
        elif method == "ties":
            merged[name] = ties(both, weights, _DENSITY)
        elif method == "dare_ties":
            merged[name] = dare_ties(both, weights, _DENSITY)
        else:
            merged[name] = dare_linear(both, weights, _DENSITY)
    save_file(merged, str(to / WEIGHTS_FILE), metadata={"format": "pt"})
    config = "adapter_config.json"
    (to / config).write_bytes((new / config).read_bytes())
