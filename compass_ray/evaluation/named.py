"""Tasks that lm-eval defines, by name: which definition a language uses, and on which data.

The definitions are lm-eval's own, untouched; only where the rows come from may be changed to a
local folder. Knows nothing of models, caches or Ray. lm-eval is imported when a name is looked up.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq

from compass_ray import languages
from compass_ray.errors import UserError, one_line
from compass_ray.evaluation.suites import SUITES, Size

if TYPE_CHECKING:
    from datasets import Dataset
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager

log = logging.getLogger(__name__)

# In the order they are preferred where a task has several.
METRICS = ("acc_norm", "acc", "exact_match")
EXTENSIONS = (".parquet", ".jsonl", ".json")
_LANGUAGE = "{language}"
# A language as lm-eval's names spell it: de, swh, swh_Latn, zh_CN.
_SPELT = r"([a-z]{2,3}(?:[_-][A-Z][a-z]{3})?(?:[_-][A-Z]{2})?)"
_LONGEST_LINE = 16 << 20


@dataclass(frozen=True)
class Named:
    """A task or group of lm-eval for one language.

    Attributes:
        task: name of the task as the configuration has it.
        name: name that lm-eval has for it in this language.
        definitions: folder of lm-eval that defines it; None: all of them are searched.
        data: local folder of its rows, None for the hub.
    """

    task: str
    name: str
    definitions: str | None
    data: str | None

    def identity(self) -> dict[str, Any]:
        files = self._files() if self.data else []
        return {
            "name": self.name,
            "lm_eval": version("lm-eval"),
            "data": [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files],
        }

    def build(self) -> list[Task]:
        """The tasks with their rows; a subject without any is left out."""
        manager = _manager(self.definitions)
        sources: dict[tuple[str, str | None], Mapping[str, Dataset]] = {}
        tasks: list[Task] = []
        for leaf, changes in _leaves(manager, self.name, {}):
            settings = _settings(manager, leaf) | changes
            if "class" in settings:
                tasks += manager.load([leaf])["tasks"].values()
                continue
            key = (settings["dataset_path"], settings.get("dataset_name"))
            if key not in sources:
                sources[key] = self._rows(settings)
            chosen = _Chosen(settings.get("process_docs"), sources[key])
            if not len(chosen.of(_scored_split(settings))):
                continue
            changes = {**changes, "task": leaf, "custom_dataset": chosen.splits}
            if chosen.process:
                changes["process_docs"] = chosen
            tasks += manager.load([{"group": self.task, "task": [changes]}])["tasks"].values()
        if not tasks:
            raise UserError(
                f"evaluation.tasks: {self.name} has no rows in {self.data or 'its set'}"
            )
        return tasks

    def check(self) -> None:
        """Raise ``UserError`` if its rows are not to be had or it has no accuracy by item."""
        manager = _manager(self.definitions)
        seen = set()
        for leaf, changes in _leaves(manager, self.name, {}):
            settings = (manager.task_index[leaf].cfg or {}) | changes
            if "class" in settings:
                continue
            _check_metric(leaf, settings)
            key = (settings.get("dataset_path"), settings.get("dataset_name"))
            if key in seen:
                continue
            seen.add(key)
            if self.data:
                for split in _splits(settings):
                    self._split_files(settings, split)
            else:
                self._check_hub(settings)

    def size(self, limit: int | None) -> Size | None:
        """Its items, at most ``limit`` of each subject; None for what is no suite."""
        suite = SUITES.get(self.task)
        if suite is None:
            return None
        manager = _manager(self.definitions)
        leaves = list(_leaves(manager, self.name, {}))
        items = suite.size.items
        if self.data:
            settings = _settings(manager, leaves[0][0]) | leaves[0][1]
            items = _read(self._split_files(settings, _scored_split(settings))).num_rows
        if limit:
            items = min(items, limit * len(leaves))
        return replace(suite.size, items=items)

    def written_tokens(self) -> int:
        """Most tokens that the model may write for an item; 0 where it chooses from options."""
        manager = _manager(self.definitions)
        leaf, changes = next(_leaves(manager, self.name, {}))
        settings = _settings(manager, leaf) | changes
        return most_written(settings) if "class" not in settings else 0

    def _check_hub(self, settings: Mapping[str, Any]) -> None:
        path, name = settings["dataset_path"], settings.get("dataset_name") or "default"
        if path in ("json", "csv", "parquet", "text") or _is_cached(path, name) or _is_on_hub(path):
            return
        raise UserError(
            f"evaluation.tasks: {self.task} needs the data set {path} ({name}), which is neither "
            "cached here nor to be had from the hub; name a folder with a copy: "
            f"evaluation.data.{self.task}"
        )

    def _rows(self, settings: Mapping[str, Any]) -> Mapping[str, Dataset]:
        from datasets import Dataset, load_dataset

        if self.data is None:
            path, name = settings["dataset_path"], settings.get("dataset_name")
            rows: Mapping[str, Dataset] = load_dataset(
                path, name, **(settings.get("dataset_kwargs") or {})
            )
            return rows
        return {
            split: Dataset(_read(self._split_files(settings, split))) for split in _splits(settings)
        }

    def _files(self) -> list[Path]:
        manager = _manager(self.definitions)
        read: dict[tuple[str | None, str], Mapping[str, Any]] = {}
        for leaf, changes in _leaves(manager, self.name, {}):
            settings = (manager.task_index[leaf].cfg or {}) | changes
            for split in _splits(settings) if "class" not in settings else []:
                read[settings.get("dataset_name"), split] = settings
        found = (self._split_files(settings, split) for (_, split), settings in read.items())
        return sorted({file for files in found for file in files})

    def _split_files(self, settings: Mapping[str, Any], split: str) -> list[Path]:
        """Files ``<config>/<split>*`` at any depth of the folder, as on the hub."""
        folder, config = Path(self.data or "").expanduser(), settings.get("dataset_name")
        if not folder.is_dir():
            raise UserError(f"evaluation.data.{self.task}: no folder {folder}")
        pattern = f"**/{config}/{split}*" if config else f"**/{split}*"
        found = sorted(file for file in folder.glob(pattern) if file.suffix in EXTENSIONS)
        if not found:
            shown = f"{config}/{split}*" if config else f"{split}*"
            raise UserError(
                f"evaluation.data.{self.task}: no {shown}.parquet or .jsonl below {folder}"
            )
        return found


class _Chosen:
    """A definition's choice of rows, made once a split: lm-eval asks for it five times."""

    def __init__(
        self, process: Callable[[Dataset], Dataset] | None, rows: Mapping[str, Dataset]
    ) -> None:
        self.process = process
        self._rows = rows
        self._chosen: dict[int, Dataset] = {}

    def splits(self, **_: Any) -> Mapping[str, Dataset]:
        return self._rows

    def __call__(self, rows: Dataset) -> Dataset:
        if self.process is None:
            return rows
        if id(rows) not in self._chosen:
            self._chosen[id(rows)] = self.process(rows)
        return self._chosen[id(rows)]

    def of(self, split: str) -> Dataset:
        return self(self._rows[split])


def most_written(settings: Mapping[str, Any]) -> int:
    """Most tokens that the settings of a task let the model write."""
    if settings.get("output_type") != "generate_until":
        return 0
    return int((settings.get("generation_kwargs") or {}).get("max_gen_toks") or 256)


def find(task: str, language: str, data: str | None) -> Named | None:
    """The definition of ``task`` for a language, None where the benchmark lacks the language.

    Raises:
        UserError: lm-eval has no task of that name.
    """
    suite = SUITES.get(task)
    if suite:
        spelt = _spellings(suite.folder).get(language)
        if spelt is None:
            return None
        folder = str(_definitions() / suite.folder / spelt)
        return Named(task, suite.group.format(spelt), folder, data)
    known = _manager(None).task_index
    if _LANGUAGE not in task:
        if task not in known:
            raise UserError(f"evaluation.tasks: {task} is not known; {_nearest(task)}")
        return Named(task, task, None, data)
    pattern = re.compile(re.escape(task).replace(re.escape(_LANGUAGE), _SPELT))
    found = {name: match[1] for name in known if (match := pattern.fullmatch(name))}
    if not found:
        raise UserError(f"evaluation.tasks: no task of lm-eval is called {task}")
    name = next((name for name, spelt in found.items() if languages.find(spelt) == language), None)
    return Named(task, name, None, data) if name else None


def _is_cached(path: str, name: str) -> bool:
    from datasets import config

    return Path(config.HF_DATASETS_CACHE, path.replace("/", "___"), name).is_dir()


@cache
def _is_on_hub(path: str) -> bool:
    from huggingface_hub import HfApi

    try:
        HfApi().dataset_info(path, timeout=5)
    except Exception as error:
        # Offline shows as a dozen exception types of three libraries; which one does not matter.
        log.debug("hub: %s: %s", path, error)
        return False
    return True


def _nearest(task: str) -> str:
    import difflib

    own = ["items", "atlas", "oneruler", *SUITES]
    close = difflib.get_close_matches(task, [*own, *_manager(None).task_index], n=1)
    if close:
        return f"did you mean {close[0]}?"
    return f"expected {', '.join(own)} or a task of lm-eval"


@cache
def _spellings(folder: str) -> dict[str, str]:
    """Our code → name of the language's folder."""
    names = [path.name for path in (_definitions() / folder).iterdir() if path.is_dir()]
    spelt = {languages.find(name): name for name in sorted(names) if re.fullmatch(_SPELT, name)}
    return {code: name for code, name in spelt.items() if code}


@cache
def _definitions() -> Path:
    spec = importlib.util.find_spec("lm_eval")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "tasks"


@cache
def _manager(folder: str | None) -> TaskManager:
    from lm_eval.tasks import TaskManager

    if folder:
        # The whole index costs 8 s.
        return TaskManager(include_path=folder, include_defaults=False)
    log.info("evaluate: reading the names of lm-eval's tasks")
    return TaskManager()


def _settings(manager: TaskManager, leaf: str) -> dict[str, Any]:
    """A definition with its functions; the index keeps only their names."""
    from lm_eval.tasks._yaml_loader import load_yaml

    settings: dict[str, Any] = load_yaml(manager.task_index[leaf].yaml_path)
    return settings


def _leaves(
    manager: TaskManager, name: str, changes: Mapping[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The tasks below a task, tag or group, with what the groups on the way change of them."""
    entry = manager.task_index[name]
    settings = entry.cfg or {}
    if entry.tags and not settings:
        for tagged in sorted(entry.tags):
            yield tagged, dict(changes)
    elif "group" in settings:
        for child in settings.get("task") or []:
            if isinstance(child, str):
                yield from _leaves(manager, child, changes)
            else:
                more = {key: value for key, value in child.items() if key not in ("task", "group")}
                below = child.get("task") or child.get("group")
                for one in below if isinstance(below, list) else [below]:
                    yield from _leaves(manager, one, {**changes, **more})
    else:
        yield name, dict(changes)


def _scored_split(settings: Mapping[str, Any]) -> str:
    return str(settings.get("test_split") or settings.get("validation_split"))


def _splits(settings: Mapping[str, Any]) -> list[str]:
    """What lm-eval reads of the data: the rows to score, and those to take examples from."""
    fewshot = settings.get("fewshot_split") or (settings.get("fewshot_config") or {}).get("split")
    named = [_scored_split(settings), fewshot, settings.get("training_split")]
    return [split for split in dict.fromkeys(named) if split]


def _check_metric(leaf: str, settings: Mapping[str, Any]) -> None:
    metrics = [told.get("metric") for told in settings.get("metric_list") or []]
    if metrics and not set(metrics) & set(METRICS):
        raise UserError(
            f"evaluation.tasks: {leaf} is scored by {', '.join(map(str, metrics))}, not item by "
            f"item; expected a task with one of {', '.join(METRICS)}"
        )


def _read(files: list[Path]) -> pa.Table:
    options = pyarrow.json.ReadOptions(block_size=_LONGEST_LINE)
    tables = []
    for file in files:
        try:
            if file.suffix == ".parquet":
                tables.append(pq.read_table(file))
            else:
                tables.append(pyarrow.json.read_json(file, read_options=options))
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(f"{file}: cannot be read ({one_line(error)})") from None
    return pa.concat_tables(tables, promote_options="permissive")
