"""The stages in order: what is done already, what is not, and the run directory they leave.

Each stage takes the configuration and what the stage before it committed. The manifest is written
after every stage, so a run that dies tells how far it came.
"""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, TypeVar, get_args

from compass_ray.artifacts import Artifact, Storage
from compass_ray.clustering.stage import MAP, Clustered, cluster_corpus
from compass_ray.config import ROLES, Config
from compass_ray.continual.stage import keepsakes, register
from compass_ray.corpora.stage import Corpus, read_corpora
from compass_ray.device_hours import HELD_BY, device_hours, unit
from compass_ray.embedding.encoders import check_encoder
from compass_ray.embedding.stage import Embedded, embed
from compass_ray.errors import UserError
from compass_ray.evaluation.benchmarks import check_tasks, unchecked_tasks
from compass_ray.evaluation.scores import item_table, score_table
from compass_ray.evaluation.stage import Evaluated, evaluate
from compass_ray.metrics import record
from compass_ray.models import check_model, check_training
from compass_ray.reach import check_reach
from compass_ray.report.card import write_cards
from compass_ray.report.page import write_report
from compass_ray.resources import check_attention, cluster, parallel_languages
from compass_ray.sampling.stage import Sampled, sample
from compass_ray.sampling.subset import GAPS, SUBSET
from compass_ray.training.launch import LOSS_FILE, Outcome, train_languages
from compass_ray.training.tracking import check_trackers

log = logging.getLogger(__name__)

Stage = Literal["embed", "cluster", "sample", "train", "evaluate", "report"]
STAGES: tuple[Stage, ...] = get_args(Stage)

Result = TypeVar("Result")


@dataclass
class RunResult:
    """What a run came to: its folder, the score table, and the languages that failed."""

    folder: str
    languages: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    report: str | None = None


def run(config: Config, until: Stage = "report") -> RunResult:
    """Carry out every stage up to ``until``; what the cache holds is not done again.

    Raises ``UserError`` before anything starts for a model, encoder or source that is not there.
    A language whose training or scoring fails is in ``failures``; the others go on.
    """
    storage = Storage.open(config.run.storage)
    book = _Book(config, storage)
    last = STAGES.index(until)
    check_config(config, last)

    corpus = book.stage("records", lambda: read_corpora(config, storage), _records_entry)
    check_corpus(config, corpus)
    embedded = book.stage("embed", lambda: embed(config, storage, corpus), _embed_entry)
    if last < STAGES.index("cluster"):
        return book.close()
    clustered = book.stage(
        "cluster", lambda: cluster_corpus(config, storage, corpus, embedded), _cluster_entry
    )
    book.copy_map(clustered)
    if last < STAGES.index("sample"):
        return book.close()
    unchecked = unchecked_tasks(config)
    if unchecked:
        log.warning("sample: rows that repeat items of %s are not looked for", ", ".join(unchecked))
    sampled = book.stage(
        "sample",
        lambda: sample(config, storage, clustered),
        lambda sampled: {**_sample_entry(sampled), "unchecked": unchecked},
    )
    book.copy_subsets(sampled)
    if last < STAGES.index("train"):
        return book.close()
    trained = book.stage(
        "train", lambda: train_languages(config, storage, sampled.subsets), _train_entry
    )
    kept = keepsakes(config, storage, clustered, sampled.subsets)
    register(storage, config.run.name, clustered, trained.adapters, kept)
    book.copy_losses(trained)
    book.write_cards()
    if last < STAGES.index("evaluate"):
        return book.close()
    evaluated = book.stage(
        "evaluate",
        lambda: evaluate(config, storage, corpus, trained.adapters),
        _evaluate_entry,
    )
    book.write_scores(evaluated)
    book.write_cards()
    if last < STAGES.index("report"):
        return book.close()
    return book.close(with_report=True)


def write_only_report(config: Config) -> str:
    """Write the report of a run that is there already; returns where it is."""
    storage = Storage.open(config.run.storage)
    if not storage.exists(f"runs/{config.run.name}/manifest.json"):
        raise UserError(
            f"run.name: no run {config.run.name} in {storage.location('runs')}; "
            "compass-ray run makes one"
        )
    return write_report(storage, config.run.name)


def check_config(config: Config, last: int) -> None:
    """Raise ``UserError`` for what the stages up to ``last`` need and is not there."""
    storage = Storage.open(config.run.storage)
    storage.make()
    check_reach(storage)
    check_encoder(config.embedding)
    if last >= STAGES.index("train"):
        check_model(config.training.model)
        check_training(config.training)
        check_trackers(config)
        check_attention(config, cluster())
        parallel_languages(config, cluster())
    if last >= STAGES.index("evaluate"):
        check_tasks(config, storage)


def check_corpus(config: Config, corpus: Corpus) -> None:
    """Raise ``UserError`` for what the rows read cannot give, before any of them is embedded."""
    pool = corpus.rows("auxiliary")
    if not pool:
        raise UserError("corpora.auxiliary: no rows, so there is nothing to fill gaps from")
    most = max(config.clustering.candidates())
    if most > pool:
        raise UserError(
            f"clustering.k: {most} clusters asked of {pool} auxiliary rows; "
            f"choose k of at most {pool}"
        )
    asked = corpus.languages("usage")
    for language in config.languages:
        if not asked[language]:
            known = ", ".join(sorted(asked)) or "none"
            raise UserError(
                f"languages: {language} has no rows in corpora.usage, so what its users ask is "
                f"not known; languages there: {known}"
            )


def _records_entry(corpus: Corpus) -> dict[str, Any]:
    return {
        "reused": corpus.reused,
        "computed": corpus.computed,
        "rows": {role: corpus.rows(role) for role in ROLES},
        "rejected": corpus.rejected,
        "dropped": corpus.dropped,
    }


def _embed_entry(embedded: Embedded) -> dict[str, Any]:
    return {
        "reused_rows": embedded.reused_rows,
        "computed_rows": embedded.computed_rows,
        "dimension": embedded.dimension,
    }


def _cluster_entry(clustered: Clustered) -> dict[str, Any]:
    return {
        "fingerprint": clustered.artifact.fingerprint,
        "reused": clustered.reused,
        **clustered.artifact.summary,
    }


def _sample_entry(sampled: Sampled) -> dict[str, Any]:
    return {
        "languages": {
            language: {
                "fingerprint": subset.fingerprint,
                "reused": language in sampled.reused,
                **subset.summary,
            }
            for language, subset in sampled.subsets.items()
        }
    }


def _train_entry(trained: Outcome) -> dict[str, Any]:
    return {
        "languages": {
            language: {
                "fingerprint": adapter.fingerprint,
                "reused": language in trained.reused,
                **adapter.summary,
            }
            for language, adapter in trained.adapters.items()
        },
        "failures": trained.failures,
    }


def _evaluate_entry(evaluated: Evaluated) -> dict[str, Any]:
    return {
        "items_reused": evaluated.reused_items,
        "items_computed": evaluated.computed_items,
        "failures": _by_language(evaluated.failures),
    }


def _by_language(failures: Mapping[tuple[str, str], str]) -> dict[str, str]:
    """The tasks that failed and why, a line a language."""
    told: dict[str, list[str]] = {}
    for (language, task), cause in failures.items():
        told.setdefault(language, []).append(f"{task}: {cause}")
    return {language: "; ".join(causes) for language, causes in told.items()}


class _Book:
    """Keeps the run directory: the manifest, and what people look for by name."""

    def __init__(self, config: Config, storage: Storage) -> None:
        self._config = config
        self._storage = storage
        self._folder = f"runs/{config.run.name}"
        self._started = time.monotonic()
        self._result = RunResult(
            storage.location(self._folder), {language: {} for language in config.languages}
        )
        self._manifest: dict[str, Any] = {
            "name": config.run.name,
            "seed": config.run.seed,
            "config": config.model_dump(mode="json", by_alias=True),
            "versions": _versions(),
            "started": _now(),
            "finished": None,
            "seconds": 0.0,
            "stages": {},
        }

    def stage(
        self, name: str, work: Callable[[], Result], describe: Callable[[Result], dict[str, Any]]
    ) -> Result:
        """Do one stage, time it, and write down what came of it."""
        started = time.monotonic()
        result = work()
        seconds = time.monotonic() - started
        entry = describe(result)
        reused = _all_reused(entry)
        told = {**entry, "seconds": seconds}
        if name in HELD_BY and not reused:
            told["device_hours"] = device_hours(name, entry, seconds, self._config, cluster())
        self._manifest["stages"][name] = told
        self._write_manifest()
        record("compass_stage_seconds", seconds, run=self._config.run.name, stage=name)
        log.info("%s: %s in %.1f s", name, "reused" if reused else "done", seconds)
        return result

    def copy_map(self, clustered: Clustered) -> None:
        self._copy(clustered.artifact, MAP, "clusters.parquet")

    def copy_subsets(self, sampled: Sampled) -> None:
        for language, subset in sampled.subsets.items():
            self._copy(subset, SUBSET, f"subsets/{language}.parquet")
            self._copy(subset, GAPS, f"gaps/{language}.parquet")
            summary = subset.summary
            names = ("own", "picked", "js_before", "js_after")
            self._result.languages[language] |= {name: summary[name] for name in names}

    def write_cards(self) -> None:
        write_cards(self._storage, self._config.run.name)

    def copy_losses(self, trained: Outcome) -> None:
        self._result.failures = trained.failures
        for language, adapter in trained.adapters.items():
            self._copy(adapter, LOSS_FILE, f"losses/{language}.parquet")

    def write_scores(self, evaluated: Evaluated) -> None:
        config = self._config
        self._result.failures = {**self._result.failures, **_by_language(evaluated.failures)}
        failed = {key: f"failed: {cause}" for key, cause in evaluated.failures.items()}
        scores = score_table(
            evaluated.comparisons,
            config.evaluation.confidence,
            config.run.seed,
            {**evaluated.lacking, **failed},
        )
        self._storage.write_table(f"{self._folder}/scores.parquet", scores)
        for row in scores.to_pylist():
            self._result.languages[row["language"]].setdefault("scores", {})[row["task"]] = row
            for model in ("base", "adapter"):
                if row[model] is not None:
                    about = {"language": row["language"], "task": row["task"], "model": model}
                    record("compass_accuracy", row[model], run=config.run.name, **about)
        for language in {comparison.language for comparison in evaluated.comparisons}:
            mine = [c for c in evaluated.comparisons if c.language == language]
            self._storage.write_table(f"{self._folder}/items/{language}.parquet", item_table(mine))

    def close(self, with_report: bool = False) -> RunResult:
        self._manifest["finished"] = _now()
        self._write_manifest()
        self._tell_device_hours()
        if with_report:
            self._result.report = write_report(self._storage, self._config.run.name)
        return self._result

    def _tell_device_hours(self) -> None:
        stages = self._manifest["stages"]
        hours = {n: told["device_hours"] for n, told in stages.items() if "device_hours" in told}
        if not hours:
            return
        device = unit(cluster())
        for name, amount in hours.items():
            tags = {"run": self._config.run.name, "stage": name, "device": device}
            record("compass_stage_device_hours", amount, **tags)
        parts = ", ".join(f"{name} {amount:.3f}" for name, amount in hours.items())
        log.info("%s: %.3f (%s)", device, sum(hours.values()), parts)

    def _copy(self, artifact: Artifact, name: str, target: str) -> None:
        self._storage.write_bytes(f"{self._folder}/{target}", artifact.read_bytes(name))

    def _write_manifest(self) -> None:
        self._manifest["seconds"] = time.monotonic() - self._started
        self._storage.write_json(f"{self._folder}/manifest.json", self._manifest)


def _all_reused(entry: Mapping[str, Any]) -> bool:
    if "languages" in entry:
        flags = [told["reused"] for told in entry["languages"].values()]
        return bool(flags) and all(flags) and not entry.get("failures")
    if "reused" in entry and isinstance(entry["reused"], bool):
        return entry["reused"]
    counts = ("computed", "computed_rows", "items_computed")
    return not any(entry.get(name) for name in (*counts, "failures"))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    packages = ("compass-ray", "ray", "torch", "deepspeed", "transformers", "peft", "lm-eval")
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
