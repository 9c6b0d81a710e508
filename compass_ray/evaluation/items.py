"""Multiple choice from the run's own evaluation corpus, and from the built-in one.

Knows nothing of models, caches or Ray.
"""

from __future__ import annotations

import importlib.resources
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from compass_ray.artifacts import Storage
from compass_ray.corpora import atlas
from compass_ray.corpora.stage import Part

if TYPE_CHECKING:
    from lm_eval.api.task import Task


@dataclass(frozen=True)
class Items:
    """Items of one language in ``corpora.evaluation``."""

    storage: Storage
    language: str
    parts: tuple[Part, ...]

    def identity(self) -> dict[str, Any]:
        return {"items": [part.identity() for part in self.parts]}

    def build(self) -> list[Task]:
        tables = [self.storage.read_table(part.path) for part in self.parts]
        items = pa.concat_tables(tables)
        return [_task("items", items.filter(pc.equal(items["language"], self.language)))]


@dataclass(frozen=True)
class Atlas:
    """Items that the built-in corpus has for one language."""

    language: str

    def identity(self) -> dict[str, Any]:
        return {"atlas": atlas.VERSION}

    def build(self) -> list[Task]:
        return [_task("atlas", atlas.item_rows([self.language]).rows)]


def _task(name: str, items: pa.Table) -> Task:
    from datasets import Dataset
    from lm_eval.tasks import TaskManager

    text = importlib.resources.files("compass_ray.evaluation").joinpath("tasks/items.yaml")
    settings: dict[str, Any] = yaml.safe_load(text.read_text(encoding="utf-8"))
    settings |= {"task": name, "custom_dataset": lambda **_: {"test": Dataset(items)}}
    task: Task = TaskManager(include_defaults=False).load([settings])["tasks"][name]
    return task
