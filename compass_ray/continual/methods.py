"""Ways to bring an adapter up to date, all behind one function: ``train_update``.

``ecda`` is what ``update`` uses; the others are what it is measured against. Each gets the same
new rows for the same usage; they differ in where they start, what else they train on, and what
holds them back.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import ray

from compass_ray import artifacts
from compass_ray.artifacts import Artifact, Storage
from compass_ray.config import Config
from compass_ray.resources import cluster, worker_shape
from compass_ray.sampling.stage import SUBSET
from compass_ray.training.launch import (
    ADAPTER,
    LOSS_FILE,
    STAGE,
    Outcome,
    StartFrom,
    train_languages,
)

Method = Literal[
    "ecda",
    "naive",
    "ewc",
    "random_rehearsal",
    "full_retrain",
    "ties",
    "dare_ties",
    "dare_linear",
    "linear",
]
METHODS: tuple[Method, ...] = get_args(Method)

# What each adapter weighs in PEFT's merging, so that two that are equal keep their scale. PEFT
# merges A and B apart, each by the root of the weight. A sum of two makes both twice as large;
# TIES' mean of what is kept does not; that of DARE, which doubles the half it keeps, 1.5 times.
_MERGES = {"ties": 1.0, "dare_ties": 1 / 1.5**2, "dare_linear": 1 / 2**2, "linear": 1 / 2**2}
# Share of each adapter's weights that TIES and DARE keep: the middle of what their papers try.
_DENSITY = 0.5


@dataclass(frozen=True)
class Parent:
    """The adapter that is to be updated.

    Attributes:
        folder: where in the storage its PEFT files, anchors and Fisher information are.
        fingerprint: of its training.
        updates: how many updates made it.
        anchors: names the rows of its history that are replayed.
        rows: all rows it was trained on (``prompt``, ``response`` and more).
    """

    folder: str
    fingerprint: str
    updates: int
    anchors: str
    rows: pa.Table


def train_update(
    method: Method,
    config: Config,
    storage: Storage,
    parents: Mapping[str, Parent],
    subsets: Mapping[str, Artifact],
) -> Outcome:
    """Train every language's update by ``method``, or find it in the cache.

    Args:
        method: one of ``METHODS``.
        config: of the run; ``training`` and ``continual`` say how.
        storage: where everything is.
        parents: the adapter of each language, and its history.
        subsets: the new rows of each language.
    """
    if method in _MERGES:
        trained = train_update("naive", config, storage, parents, subsets)
        for language, adapter in trained.adapters.items():
            merged = _merged(method, config, storage, parents[language], adapter)
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


def start_of(method: Method, config: Config, parent: Parent) -> StartFrom:
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
    method: Method, config: Config, storage: Storage, parent: Parent, subset: Artifact
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


def _merged(
    method: Method, config: Config, storage: Storage, parent: Parent, adapter: Artifact
) -> Artifact:
    key = artifacts.fingerprint(
        stage=STAGE,
        merge=method,
        of=[parent.fingerprint, adapter.fingerprint],
        density=_DENSITY,
        weight=_MERGES[method],
    )
    done = artifacts.find(storage, STAGE, key)
    if done:
        return done
    shape = worker_shape(config, cluster())
    merge = _merge.options(num_cpus=shape.cpus)
    merged: Artifact = ray.get(
        merge.remote(method, config.training.model, parent.folder, adapter, key)
    )
    return merged


@ray.remote
def _merge(method: str, model: str, parent: str, adapter: Artifact, key: str) -> Artifact:
    storage = adapter.storage
    with (
        storage.as_local_dir(parent) as old,
        storage.as_local_dir(f"{adapter.folder()}/{ADAPTER}") as new,
        tempfile.TemporaryDirectory() as name,
    ):
        merged = merge_adapters(method, model, Path(old), Path(new), Path(name))
        draft = artifacts.begin(storage, STAGE, key)
        for file in sorted(merged.iterdir()):
            draft.write_bytes(f"{ADAPTER}/{file.name}", file.read_bytes())
        draft.write_bytes(LOSS_FILE, adapter.read_bytes(LOSS_FILE))
        return draft.commit(adapter.summary)


def merge_adapters(method: str, model: str, old: Path, new: Path, to: Path) -> Path:
    """PEFT's own merging of two adapters of one base, on the CPU; returns the folder below ``to``.

    ``old`` and ``new`` are folders of adapters, ``method`` is one of PEFT's combination types.
    """
    import torch
    from peft import PeftModel

    from compass_ray.models import load_base

    options: dict[str, Any] = {} if method == "linear" else {"density": _DENSITY}
    torch.manual_seed(0)  # DARE drops weights at random
    peft = PeftModel.from_pretrained(load_base(model, torch.float32), str(old), adapter_name="old")
    peft.load_adapter(str(new), adapter_name="new")
    peft.add_weighted_adapter(
        ["old", "new"], [_MERGES[method]] * 2, "merged", combination_type=method, **options
    )
    peft.save_pretrained(str(to), selected_adapters=["merged"])
    return to / "merged"
