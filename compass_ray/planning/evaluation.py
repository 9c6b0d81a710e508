"""What scoring takes: items, tokens and time of every pass that is still to do.

Own items are counted and measured on a sample; of named benchmarks the number of items is the
published one, or that of the rows in a local folder, and the length of a prompt is assumed.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from compass_ray import costs
from compass_ray.config import Config, Role
from compass_ray.corpora import atlas
from compass_ray.corpora.preview import Preview, sample_of
from compass_ray.costs import ModelSize
from compass_ray.evaluation import named
from compass_ray.evaluation.benchmarks import ATLAS, ITEMS, ONERULER
from compass_ray.evaluation.oneruler import templates
from compass_ray.evaluation.oneruler.items import ANSWER_TOKENS
from compass_ray.planning.reuse import Found
from compass_ray.planning.training import Training
from compass_ray.resources import Cluster, WorkerShape
from compass_ray.training.data import chat_turns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAMPLED_ITEMS = 50
"""Items of a language whose tokens are counted."""
SECONDS_PER_LAYER = 8 / 314 / 32
"""Of a step that writes a token for each text of a batch on a GPU: starting its kernels takes that
long. Llama-3.1-8B, 32 layers, wrote 314 tokens/s, eight texts at once, through transformers on one
H100 (bitsandbytes' benchmarks)."""


@dataclass(frozen=True)
class Texts:
    """So many texts of so many tokens that the model reads, and the most it writes after each."""

    count: float
    length: float
    written: int = 0


@dataclass(frozen=True)
class Asked:
    """What one pass over a language's items takes; without ``texts`` that is not known."""

    items: int = 0
    texts: tuple[Texts, ...] = ()


@dataclass(frozen=True)
class TaskScoring:
    """Passes over one task, of every language that it has.

    Attributes:
        languages: how many it has something for.
        items: of one language, their mean; None where it is not known.
        read: tokens of an item that the model reads, the mean; None where it is not known.
        written: most tokens it writes for an item.
        passes: over a language's items by one model.
        scored: how many of them are in the cache.
        device_hours: of the others, at most where answers are written; None where not known.
    """

    task: str
    languages: int
    items: float | None
    read: float | None
    written: int
    passes: int
    scored: int
    device_hours: float | None


@dataclass(frozen=True)
class Scoring:
    """All tasks: ``places`` passes at once take ``wall_seconds``; None where it is not known."""

    tasks: tuple[TaskScoring, ...]
    places: int
    device_hours: float | None
    wall_seconds: float | None
    assumption: str

    @property
    def passes(self) -> int:
        return sum(told.passes for told in self.tasks)

    @property
    def scored(self) -> int:
        return sum(told.scored for told in self.tasks)


def plan_scoring(
    config: Config,
    on: Cluster,
    shape: WorkerShape,
    training: Training,
    tokenizer: PreTrainedTokenizerBase,
    found: Found,
    previews: Mapping[Role, Preview],
) -> Scoring:
    """Plan every pass of the evaluation, on as many workers of this shape as fit."""
    models = ("base", "adapter") if config.evaluation.baseline else ("adapter",)
    places = max(1, on.slots(shape.cpus, shape.gpus))
    devices = shape.gpus or shape.cpus
    tasks, waiting = [], list[float | None]()
    for task in config.evaluation.tasks:
        found_for = (
            (language, _asked(config, task, language, tokenizer, previews["evaluation"]))
            for language in config.languages
        )
        asked = {language: work for language, work in found_for if work}
        left = [
            _seconds(training, work, config.evaluation.batch_size)
            for language, work in asked.items()
            for model in models
            if (language, task, model) not in found.scored
        ]
        passes = len(asked) * len(models)
        tasks.append(_told(task, list(asked.values()), passes, left, devices))
        waiting += left
    known = _all_known(waiting)
    starting = costs.LAUNCH_SECONDS if waiting else 0.0
    return Scoring(
        tasks=tuple(tasks),
        places=min(places, max(1, len(waiting))),
        device_hours=None if known is None else sum(known) * devices / 3600,
        wall_seconds=None if known is None else starting + costs.side_by_side(known, places),
        assumption=_assumption(training, tasks, config.evaluation.batch_size),
    )


def _told(
    task: str, asked: Sequence[Asked], passes: int, left: Sequence[float | None], devices: float
) -> TaskScoring:
    known = [work for work in asked if work.texts]
    texts = [group for work in known for group in work.texts]
    items = sum(work.items for work in known)
    seconds = _all_known(left)
    return TaskScoring(
        task=task,
        languages=len(asked),
        items=items / len(known) if known else None,
        read=sum(group.count * group.length for group in texts) / items if items else None,
        written=max((group.written for group in texts), default=0),
        passes=passes,
        scored=passes - len(left),
        device_hours=None if seconds is None else sum(seconds) * devices / 3600,
    )


def _all_known(seconds: Sequence[float | None]) -> list[float] | None:
    """Themselves; None where one of them is."""
    known = [second for second in seconds if second is not None]
    return known if len(known) == len(seconds) else None


def _asked(
    config: Config,
    task: str,
    language: str,
    tokenizer: PreTrainedTokenizerBase,
    items: Preview,
) -> Asked | None:
    """What a task asks of a language; None where it has nothing for it."""
    settings = config.evaluation
    limit = settings.limit or sys.maxsize
    if task == ITEMS:
        count = items.languages.get(language, 0)
        if not count:
            return None if items.languages_certain else Asked()
        sample = items.sample.filter(pc.equal(items.sample["language"], language))
        return _choices(config, sample, min(count, limit), tokenizer)
    if task == ATLAS:
        if language not in atlas.LANGUAGES:
            return None
        made = atlas.item_rows([language]).rows
        return _choices(config, made, min(made.num_rows, limit), tokenizer)
    if task == ONERULER:
        if language not in templates.languages():
            return None
        asked, each = settings.oneruler, min(settings.oneruler.samples, limit)
        each *= len(asked.tasks)
        texts = tuple(Texts(each, length, ANSWER_TOKENS) for length in asked.lengths)
        return Asked(each * len(asked.lengths), texts)
    definition = named.find(task, language, settings.data.get(task))
    if definition is None:
        return None
    size = definition.size(settings.limit)
    if size is None:
        return Asked()
    return Asked(size.items, (Texts(size.items, size.tokens, definition.written_tokens()),))


def _choices(
    config: Config, items: pa.Table, count: int, tokenizer: PreTrainedTokenizerBase
) -> Asked:
    """Each option is read after its question; measured on a sample that stands for ``count``."""
    sample = sample_of(items, SAMPLED_ITEMS).select(["question", "options"]).to_pylist()
    if not sample:
        return Asked()
    templated = config.evaluation.uses_template(bool(tokenizer.chat_template))

    def tokens(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False))

    def prompt(question: str) -> str:
        if not templated:
            return f"{config.training.system_prompt or ''}{question}"
        turns = chat_turns(question, config.training.system_prompt)
        shown = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return str(shown)

    read = [
        tokens(prompt(item["question"])) + tokens(option)
        for item in sample
        for option in item["options"]
    ]
    return Asked(count, (Texts(count * len(read) / len(sample), fmean(read)),))


def _seconds(training: Training, asked: Asked, batch_size: int) -> float | None:
    from compass_ray.evaluation.lm import BATCH_TOKENS

    if not asked.texts:
        return None
    seconds = 0.0
    for group in asked.texts:
        work = group.count * reading_flops(training.size, group.length)
        if training.device == "cpu":
            work += 2 * training.size.parameters * group.count * group.written
        else:
            at_once = min(batch_size, max(1, BATCH_TOKENS // int(group.length + group.written)))
            steps = math.ceil(group.count / at_once) * group.written
            seconds += steps * training.size.layers * SECONDS_PER_LAYER
        seconds += work / training.flops_per_second
    return seconds


def reading_flops(size: ModelSize, length: float) -> float:
    """A forward pass over a text of so many tokens.

    2·N operations a token, and 2·layers·hidden·length² of causal attention, which is little below
    some thousand tokens and half as much again at 32,000 in an 8B model.
    """
    return 2 * size.parameters * length + 2 * size.layers * size.hidden * length**2


def _assumption(training: Training, tasks: Sequence[TaskScoring], batch_size: int) -> str:
    told = "2 x parameters x tokens read, and attention"
    if any(task.written for task in tasks):
        step = (
            "as many for a token written"
            if training.device == "cpu"
            else f"{SECONDS_PER_LAYER * 1000:.1f} ms a layer for a token of {batch_size} texts"
        )
        told += f"; {step}, every answer as long as it may be"
    return told
