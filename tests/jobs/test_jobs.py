"""Jobs on a cluster of two nodes, with a token."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.compute as pc
import pytest

from compass_ray.artifacts import Storage

from .conftest import poll

pytestmark = pytest.mark.ray

MakeConfig = Callable[..., Path]
# A checkpoint takes a quarter of a second at least: time to submit a job and to stop another.
TRAINING = {"max_steps": 120, "epochs": 1, "checkpoint_steps": 2, "learning_rate": 0.003}


def test_a_submit_without_the_token_is_refused(head, make_config: MakeConfig) -> None:  # type: ignore[no-untyped-def]
    refused = head.submit("jobs/adapt.py", make_config(), token=False)
    assert refused.returncode != 0
    assert "token" in refused.stdout.lower()
    assert "SUCCEEDED" not in refused.stdout


def test_a_failing_config_makes_the_job_fail(head, make_config: MakeConfig) -> None:  # type: ignore[no-untyped-def]
    config = make_config(embedding={"model": "no/such-encoder"})
    failed = head.submit("jobs/adapt.py", config, "--submission-id=failing")
    assert failed.returncode == 1
    assert head.status("failing") == "FAILED"
    # Ray shows the log as it comes, and its end once more when the job has failed.
    (line,) = {row for row in failed.stdout.splitlines() if row.startswith("compass-ray: ")}
    assert "embedding.model: no/such-encoder" in line
    assert "Traceback" not in failed.stdout


def attempts(storage: Storage, stage: str) -> dict[str, int]:
    """How often each cache entry of a stage was begun."""
    found: dict[str, set[str]] = {}
    for file in storage.list_files(f"cache/{stage}"):
        entry, _, rest = file.partition("/")
        if rest.startswith("attempt-"):
            found.setdefault(entry, set()).add(rest.partition("/")[0])
    return {entry: len(names) for entry, names in found.items()}


def has_checkpoint(storage: Storage) -> bool:
    snapshots = [
        file
        for file in storage.list_files("cache/train")
        if file.endswith("checkpoint_manager_snapshot.json")
    ]
    return any(
        json.loads(storage.read_bytes(f"cache/train/{file}"))["checkpoint_results"]
        for file in snapshots
    )


def test_two_runs_share_the_cache_and_a_stopped_one_goes_on(  # type: ignore[no-untyped-def]
    head, storage: Storage, make_config: MakeConfig, corpus: Path
) -> None:
    configs = {
        name: make_config(
            f"{name}.yaml",
            run={"name": name, "storage": storage.uri},
            languages=["de"],
            training=TRAINING,
        )
        for name in ("one", "two")
    }
    first = head.submit("jobs/adapt.py", configs["one"], "--submission-id=one", "--no-wait")
    assert first.returncode == 0, first.stdout
    poll(lambda: has_checkpoint(storage), "checkpoint")
    second = head.submit("jobs/adapt.py", configs["two"], "--submission-id=two", "--no-wait")
    assert second.returncode == 0, second.stdout
    poll(lambda: "ray_compass_progress_done{" in head.metrics(), "metrics of the run")
    assert head.status("one") == "RUNNING"
    assert head.ray("job", "stop", "one").returncode == 0
    assert head.status("one") == "STOPPED"

    again = head.submit("jobs/adapt.py", configs["one"], "--submission-id=one-again")
    assert again.returncode == 0, again.stdout
    head.ray("job", "logs", "--follow", "two")
    assert head.status("two") == "SUCCEEDED"
    for name in configs:
        stages = storage.read_json(f"runs/{name}/manifest.json")["stages"]
        assert list(stages) == ["records", "embed", "cluster", "sample", "train", "evaluate"]
        assert not stages["train"]["failures"]
        page = storage.read_bytes(f"runs/{name}/report.html").decode()
        assert page.lower().startswith("<!doctype html>") and name in page
        assert "adapter_model.safetensors" in str(storage.list_files(f"runs/{name}/adapters"))
    told = [
        storage.read_json(f"runs/{name}/manifest.json")["stages"]["train"]["languages"]
        for name in configs
    ]
    assert told[0]["de"]["fingerprint"] == told[1]["de"]["fingerprint"]
    resumed = [after for told in told[0].values() for after in told["resumed_after"]]
    assert resumed and all(after > 0 for after in resumed)
    for stage in ("embed", "cluster", "sample", "train"):
        assert set(attempts(storage, stage).values()) == {1}, stage

    usage = str(corpus / "usage.jsonl")
    watch = ["jobs/monitor.py", "--run", storage.location("runs/one"), "--usage", usage, "--once"]
    watched = head.start(watch)
    assert watched.returncode == 0, watched.stdout
    assert storage.exists("runs/one/monitor/state.json")


def test_a_stopped_search_repeats_no_finished_trial(  # type: ignore[no-untyped-def]
    head, storage: Storage, make_config: MakeConfig
) -> None:
    config = make_config(
        run={"name": "searched", "storage": storage.uri},
        languages=["de"],
        training={"max_steps": 4},
        search={"space": {"sampling.budget": [10, 20]}, "max_parallel_trials": 1},
    )
    folder = "runs/searched/search/trials"
    head.submit("jobs/search.py", config, "--submission-id=search", "--no-wait")
    poll(lambda: bool(storage.list_files(folder)), "first trial")
    assert head.ray("job", "stop", "search").returncode == 0
    finished = {name: storage.read_bytes(f"{folder}/{name}") for name in storage.list_files(folder)}
    assert len(finished) == 1

    again = head.submit("jobs/search.py", config)
    assert again.returncode == 0, again.stdout
    assert "2 trials, 1 of them over already" in again.stdout
    for name, trial in finished.items():
        assert storage.read_bytes(f"{folder}/{name}") == trial
    table = storage.read_table("runs/searched/search.parquet")
    assert sorted(table["sampling.budget"].to_pylist()) == [10, 20]
    assert pc.all(pc.equal(table["status"], "finished")).as_py()
    assert storage.exists("runs/searched/best.yaml")
