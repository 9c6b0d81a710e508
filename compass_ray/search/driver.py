"""The search: which trials are still to be run, Tune to run them, and what is left behind.

Everything goes through the cache and the ledger of finished trials, so a search that is broken
off goes on where it was, whatever Tune itself remembers.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import yaml

from compass_ray.artifacts import Storage
from compass_ray.config import Config
from compass_ray.corpora.stage import read_corpora
from compass_ray.embedding.stage import embed
from compass_ray.pipeline import STAGES, check_config, check_corpus, run
from compass_ray.search.results import Ledger, Trial, as_table, best_of
from compass_ray.search.space import Values, check_space, combinations, trial_key, with_values
from compass_ray.search.text import as_rows, trial_table
from compass_ray.search.tuning import run_trials
from compass_ray.strict_json import to_json

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SearchResult:
    """Every trial, and where the run of the best one, its configuration and its report are."""

    folder: str
    trials: tuple[Trial, ...]
    best: Trial | None
    best_config: str | None
    report: str | None


@dataclass(frozen=True)
class _Search:
    """What stays the same over all trials."""

    config: Config
    storage: Storage
    contents: list[list[str]]
    ledger: Ledger

    def key(self, values: Values) -> str:
        return trial_key(with_values(self.config, values), self.contents)


def search(config: Config) -> SearchResult:
    """Run the trials that are not over yet; write the table and the best configuration.

    Raises ``UserError`` for a key or value that no trial could run with. A trial that fails is in
    the result with its cause, and is tried again by the next search.
    """
    check_space(config)
    check_config(config, STAGES.index("evaluate"))
    storage = Storage.open(config.run.storage)
    corpus = read_corpora(config, storage)
    check_corpus(config, corpus)
    embed(config, storage, corpus)
    contents = [[part.role, *part.identity()] for part in corpus.parts]
    settled = _Search(config, storage, contents, Ledger(storage, config.run.name))

    grid = combinations(config)
    over = _over(settled, grid)
    wanted = len(grid) if grid else config.search.num_samples
    log.info("search: %d trials, %d of them over already", wanted, len(over))
    failed = []
    if len(over) < wanted:
        done = {trial.key for trial in over}
        left = grid and [values for values in grid if settled.key(values) not in done]
        failed = run_trials(config, storage, contents, settled.key, left, over, wanted)
    trials = [*_over(settled, grid), *failed]
    return _write(settled, trials)


def _over(settled: _Search, grid: Sequence[Values] | None) -> list[Trial]:
    """Trials of earlier searches that belong to this one: same keys, data and settings."""
    keys = set(settled.config.search.space)
    known = [trial for trial in settled.ledger.read() if set(trial.values) == keys]
    if settled.config.search.asha is None:
        # What ASHA stopped in an earlier search is run to its end once ASHA is off.
        known = [trial for trial in known if trial.status == "finished"]
    same = [trial for trial in known if settled.key(trial.values) == trial.key]
    if grid is None:
        return same[: settled.config.search.num_samples]
    wanted = {settled.key(values) for values in grid}
    return [trial for trial in same if trial.key in wanted]


def _write(settled: _Search, trials: Sequence[Trial]) -> SearchResult:
    """The table of trials, and the run of the best one, which is in the cache by now."""
    config, storage = settled.config, settled.storage
    folder = f"runs/{config.run.name}"
    metrics = config.search.metrics
    storage.write_table(f"{folder}/search.parquet", as_table(trials, metrics))
    best = best_of(trials, metrics)
    report = None
    if best:
        storage.write_bytes(f"{folder}/best.yaml", best_yaml(config, best).encode())
        report = run(with_values(config, best.values)).report
    return SearchResult(
        folder=storage.location(folder),
        trials=tuple(trials),
        best=best,
        best_config=storage.location(folder, "best.yaml") if best else None,
        report=report,
    )


def best_yaml(config: Config, best: Trial) -> str:
    """The configuration of a trial, ready for ``compass-ray run``."""
    named = with_values(config, best.values)
    data = named.model_dump(mode="json", by_alias=True, exclude={"search"})
    data["run"]["name"] = f"{config.run.name}-best"
    text: str = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    return text


def format_result(result: SearchResult, config: Config) -> str:
    """The table of trials, and where things are."""
    lines = [trial_table(result.trials, config.search.metrics), "", f"run: {result.folder}"]
    if result.best_config:
        lines += [f"best: {result.best_config}", f"report: {result.report}"]
    return "\n".join(lines)


def as_json(result: SearchResult, config: Config) -> str:
    told = {
        "folder": result.folder,
        "trials": as_rows(result.trials, config.search.metrics),
        "best_config": result.best_config,
        "report": result.report,
    }
    return to_json(told)
