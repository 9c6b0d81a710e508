"""OneRuler's items of one language as tasks of lm-eval: made here, or read as published.

Knows nothing of caches or Ray.
"""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc
import yaml

from compass_ray.artifacts import Storage
from compass_ray.config import ONERULER_TASKS, OneRuler, OneRulerTask
from compass_ray.corpora.stage import Part
from compass_ray.errors import UserError
from compass_ray.evaluation.oneruler import templates
from compass_ray.evaluation.oneruler.generate import generate
from compass_ray.evaluation.oneruler.haystack import (
    Material,
    material,
    published_material,
    read_texts,
)
from compass_ray.evaluation.oneruler.scoring import answer_pattern, answer_tag, is_right
from compass_ray.models import load_tokenizer, resolve_model

if TYPE_CHECKING:
    from lm_eval.api.task import Task

VERSION = 1
# Room for ten words of a language that the tokenizer cuts to pieces.
ANSWER_TOKENS = 256
_DATA = "evaluation.data.oneruler"
# Names of tasks in published files; the longer ones first, since cwe is in cwe_easy.
_FILE_NAMES: dict[str, OneRulerTask] = {
    **{name: name for name in ONERULER_TASKS},
    "cwe": "cwe_hard",
}


@dataclass(frozen=True)
class OneRulerItems:
    """What decides the items of one language.

    Attributes:
        language: our code, one of ``templates.languages()``.
        settings: the section of the configuration.
        model: whose tokenizer counts the tokens.
        data: a published ``data/`` folder, or a folder of published items; None: ours.
        storage: where the parts are.
        parts: the run's own corpora in the language, to hide needles in.
    """

    language: str
    settings: OneRuler
    model: str
    data: str | None
    storage: Storage
    parts: tuple[Part, ...]

    def identity(self) -> dict[str, Any]:
        folders = [Path(place) for place in (self.data, self.settings.text) if place]
        return {
            "version": VERSION,
            "settings": self.settings.identity(),
            "files": [
                (str(file.relative_to(folder)), file.stat().st_size, file.stat().st_mtime_ns)
                for folder in folders
                for file in sorted(folder.rglob("*"))
                if file.is_file()
            ],
            "parts": [part.content for part in self.parts] if not folders else [],
        }

    def check(self) -> None:
        """Raise ``UserError`` if a folder lacks the language or the model reads less."""
        if not self._published_files():
            self._templates()
            if self.data or self.settings.text:
                self._texts()
        from transformers import AutoConfig

        settings = AutoConfig.from_pretrained(resolve_model(self.model)).get_text_config()
        reads = getattr(settings, "max_position_embeddings", None)
        longest = max(self.settings.lengths)
        if reads and longest + ANSWER_TOKENS > reads:
            raise UserError(
                f"evaluation.oneruler.lengths: {longest} tokens and an answer of "
                f"{ANSWER_TOKENS} asked of {self.model}, which reads {reads}"
            )

    def build(self) -> list[Task]:
        """One task for each kind and length of items."""
        made = self._published_items() or self._made_items()
        none = self._templates().none
        return [
            _task(f"oneruler_{kind}_{length}", kind, length, items, none)
            for (kind, length), items in made.items()
        ]

    def _made_items(self) -> dict[tuple[OneRulerTask, int], list[dict[str, Any]]]:
        tokenizer = load_tokenizer(self.model)
        counted = self._material()
        return {
            (kind, length): generate(
                kind, counted, length, self.settings.samples, partial(count_tokens, tokenizer)
            )
            for kind in self.settings.tasks
            for length in self.settings.lengths
        }

    def _templates(self) -> templates.Templates:
        if self.data and not self._published_files():
            return templates.published(_prompts(Path(self.data)), self.language)
        return templates.own(self.language)

    def _material(self) -> Material:
        said, texts = self._templates(), self._texts()
        if self.data:
            return published_material(Path(self.data), self.language, said, texts)
        return material(self.language, said, texts)

    def _texts(self) -> list[str]:
        if self.settings.text:
            return read_texts(Path(self.settings.text), self.language, "evaluation.oneruler.text")
        if self.data:
            return read_texts(Path(self.data, "books"), self.language, _DATA)
        return self._own_texts()

    def _own_texts(self) -> list[str]:
        texts = []
        for part in self.parts:
            rows = self.storage.read_table(part.path, ["language", "prompt", "response"])
            rows = rows.filter(pc.equal(rows["language"], self.language))
            for prompt, response in zip(
                rows["prompt"].to_pylist(), rows["response"].to_pylist(), strict=True
            ):
                texts.append(f"{prompt} {response or ''}")
        return texts

    def _published_items(self) -> dict[tuple[OneRulerTask, int], list[dict[str, Any]]]:
        """By kind and length; the length is the folder or file that is named by a number."""
        found: dict[tuple[OneRulerTask, int], list[dict[str, Any]]] = {}
        for kind, file in self._published_files():
            items = _read_items(file)
            parts = file.relative_to(str(self.data)).with_suffix("").parts
            sizes = [int(part) for part in parts if part.isdigit()]
            length = sizes[-1] if sizes else max(int(item["length"]) for item in items)
            found.setdefault((kind, length), []).extend(items[: self.settings.samples])
        return found

    def _published_files(self) -> list[tuple[OneRulerTask, Path]]:
        """Files ``**/<language>/**/<task>.jsonl`` or ``…/<task>/*.jsonl`` of the data folder."""
        found = []
        for file in sorted(Path(self.data).rglob("*.jsonl")) if self.data else []:
            parts = file.relative_to(str(self.data)).with_suffix("").parts
            kind = next((kind for name, kind in _FILE_NAMES.items() if name in parts), None)
            if kind in self.settings.tasks and self.language in parts:
                found.append((kind, file))
        return found


def _prompts(folder: Path) -> Path:
    if not (folder / "prompt").is_dir():
        raise UserError(
            f"{_DATA}: neither prompt/<language> nor <language>/<task>/*.jsonl in {folder}"
        )
    return folder / "prompt"


def _read_items(file: Path) -> list[dict[str, Any]]:
    items = []
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                item = json.loads(line)
                items.append({name: item[name] for name in ("index", "input", "outputs", "length")})
            except (json.JSONDecodeError, KeyError) as error:
                raise UserError(
                    f"{file}:{number}: expected index, input, outputs and length ({error})"
                ) from None
    return items


def count_tokens(tokenizer: Any, text: str) -> int:
    """Tokens of a text without the special ones that begin or end it."""
    return len(tokenizer.encode(text, add_special_tokens=False))


def _task(
    name: str,
    kind: OneRulerTask,
    length: int,
    items: Sequence[Mapping[str, Any]],
    none: Sequence[str],
) -> Task:
    from datasets import Dataset
    from lm_eval.tasks import TaskManager

    text = importlib.resources.files("compass_ray.evaluation").joinpath("tasks/oneruler.yaml")
    settings: dict[str, Any] = yaml.safe_load(text.read_text(encoding="utf-8"))
    rows = [
        {
            **item,
            "id": f"{kind}/{length}/{item['index']}",
            "subject": f"{kind} {length}",
            "outputs": [str(output) for output in item["outputs"]],
        }
        for item in items
    ]
    tag = answer_tag(items[0]["input"])
    # The last answer given counts.
    found = {"regex_pattern": answer_pattern(tag), "group_select": -1}
    settings["filter_list"][0]["filter"][0] |= found
    settings["generation_kwargs"] |= {"until": [f"</{tag}>"], "max_gen_toks": ANSWER_TOKENS}
    settings |= {
        "task": name,
        "custom_dataset": lambda **_: {"test": Dataset.from_list(rows)},
        "process_results": _scorer(kind, none),
    }
    task: Task = TaskManager(include_defaults=False).load([settings])["tasks"][name]
    return task


def _scorer(
    kind: OneRulerTask, none: Sequence[str]
) -> Callable[[Mapping[str, Any], Sequence[str]], dict[str, float]]:
    def score(item: Mapping[str, Any], answers: Sequence[str]) -> dict[str, float]:
        return {"exact_match": float(is_right(kind, item["outputs"], answers[0], none))}

    return score
