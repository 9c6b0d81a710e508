"""What each language is asked in each task of the configuration.

Knows nothing of models, caches or Ray.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from compass_ray.artifacts import Storage
from compass_ray.config import Config, Source
from compass_ray.corpora import atlas
from compass_ray.corpora.stage import Corpus, Part
from compass_ray.evaluation import named
from compass_ray.evaluation.items import Atlas, Items
from compass_ray.evaluation.oneruler import templates
from compass_ray.evaluation.oneruler.items import OneRulerItems
from compass_ray.evaluation.suites import SUITES

if TYPE_CHECKING:
    from lm_eval.api.task import Task

ITEMS, ATLAS, ONERULER = "items", "atlas", "oneruler"


class Benchmark(Protocol):
    """Items of one task and language; small, so that it can be sent to a worker."""

    def identity(self) -> dict[str, Any]:
        """What decides the items, as JSON."""

    def build(self) -> list[Task]:
        """The items as lm-eval's tasks."""


@dataclass(frozen=True)
class Lacking:
    """A task that has nothing for a language, and why."""

    reason: str


def benchmark(
    config: Config, storage: Storage, corpus: Corpus, task: str, language: str
) -> Benchmark | Lacking:
    """The items of one task and language."""
    if task == ITEMS:
        parts = tuple(part for part in corpus.of("evaluation") if language in part.languages)
        return Items(storage, language, parts) if parts else Lacking("not in corpora.evaluation")
    if task == ATLAS:
        return Atlas(language) if language in atlas.LANGUAGES else Lacking(f"not in {ATLAS}")
    if task == ONERULER:
        if language not in templates.languages():
            return Lacking(f"not in {task}")
        parts = corpus.of("auxiliary", "train")
        hay = tuple(part for part in parts if language in part.languages)
        if not (hay or config.evaluation.data.get(task) or config.evaluation.oneruler.text):
            return Lacking("no text of it in the corpora to hide needles in")
        return _oneruler(config, storage, hay, language)
    found = named.find(task, language, config.evaluation.data.get(task))
    return found or Lacking(f"not in {task}")


def check_tasks(config: Config, storage: Storage) -> None:
    """Raise ``UserError`` for a task that is not known or whose rows are not to be had."""
    nothing_read = Corpus((), {}, {}, 0, 0)
    for task in config.evaluation.tasks:
        for language in config.languages:
            if task == ONERULER and language in templates.languages():
                _oneruler(config, storage, (), language).check()
            elif task != ONERULER:
                found = benchmark(config, storage, nothing_read, task, language)
                if isinstance(found, named.Named):
                    found.check()


def unchecked_tasks(config: Config) -> list[str]:
    """Tasks with items that rows are not compared with before they are picked.

    They are compared with ``corpora.evaluation`` only, where the built-in items may be, too, and
    the data set of a benchmark: its test split in each language from the hub, or a folder of its
    name. OneRuler's needles are drawn at random, so no row can repeat them.
    """
    read = config.corpora.evaluation
    known = {ITEMS, ONERULER, *{ATLAS} & {source.path for source in read}}
    sets = {_whole_set(source) for source in read}
    known |= {task for task, suite in SUITES.items() if sets & suite.sets}
    return [task for task in config.evaluation.tasks if task not in known]


def _whole_set(source: Source) -> str | None:
    """The name of the data set whose test items the source reads in every language it is asked."""
    if source.languages or source.rows:
        return None
    name = source.path.rstrip("/").rpartition("/")[2]
    if not source.path.startswith("hf:"):
        return name
    whole = source.split == "test" and "{language}" in (source.subset or "")
    return name.partition("@")[0] if whole else None


def _oneruler(
    config: Config, storage: Storage, parts: tuple[Part, ...], language: str
) -> OneRulerItems:
    settings = config.evaluation
    return OneRulerItems(
        language,
        settings.oneruler,
        config.training.model,
        settings.data.get(ONERULER),
        storage,
        parts,
    )
