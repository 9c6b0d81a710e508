"""What scoring takes: items, tokens and time of every pass that is still to do.

Own items are counted and measured on a sample; of named benchmarks the number of items is the
published one, or that of the rows in a local folder, and the length of a prompt is assumed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from compass_ray.records import to_rows
from compass_ray.resources import Cluster, WorkerShape

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

    count: int
    length: float
    written: int = 0


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
        asked = {
            language: texts
            for language in config.languages
            if (texts := _texts(config, task, language, tokenizer, previews["evaluation"]))
            is not None
        }
        left = [
            _seconds(training, texts, config.evaluation.batch_size) if texts else None
            for language, texts in asked.items()
            for model in models
            if (language, task, model) not in found.scored
        ]
        passes = len(asked) * len(models)
        tasks.append(_told(task, list(asked.values()), passes, left, devices))
        waiting += left
    known = [seconds for seconds in waiting if seconds is not None]
    whole = len(known) == len(waiting)
    wall = costs.side_by_side(known, places) + (costs.LAUNCH_SECONDS if known else 0)
    return Scoring(
        tasks=tuple(tasks),
        places=min(places, max(1, len(waiting))),
        device_hours=sum(known) * devices / 3600 if whole else None,
        wall_seconds=wall if whole else None,
        assumption=_assumption(training, tasks, config.evaluation.batch_size),
    )


def _told(
    task: str,
    asked: Sequence[Sequence[Texts]],
    passes: int,
    left: Sequence[float | None],
    devices: float,
) -> TaskScoring:
    known = [texts for texts in asked if texts]
    items = sum(group.count for texts in known for group in texts)
    read = sum(group.count * group.length for texts in known for group in texts)
    seconds = [second for second in left if second is not None]
    return TaskScoring(
        task=task,
        languages=len(asked),
        items=items / len(known) if known else None,
        read=read / items if items else None,
        written=max((group.written for texts in known for group in texts), default=0),
        passes=passes,
        scored=passes - len(left),
        device_hours=sum(seconds) * devices / 3600 if len(seconds) == len(left) else None,
    )


def _texts(
    config: Config,
    task: str,
    language: str,
    tokenizer: PreTrainedTokenizerBase,
    items: Preview,
) -> list[Texts] | None:
    """What the model reads of a task in a language; empty if not known, None if it has nothing."""
    settings = config.evaluation
    most = settings.limit or math.inf
    if task == ITEMS:
        count = items.languages.get(language, 0)
        if not count:
            return None if items.languages_certain else []
        sample = items.sample.filter(pc.equal(items.sample["language"], language))
        return _choices(config, sample, min(count, most), tokenizer)
    if task == ATLAS:
        made = atlas.items([language]) if language in atlas.LANGUAGES else None
        if made is None:
            return None
        read = to_rows(made, format="global_mmlu", role="evaluation", language=None, source=task)
        return _choices(config, read.rows, min(made.num_rows, most), tokenizer)
    if task == ONERULER:
        if language not in templates.languages():
            return None
        count = int(min(settings.oneruler.samples, most)) * len(settings.oneruler.tasks)
        return [Texts(count, length, ANSWER_TOKENS) for length in settings.oneruler.lengths]
    definition = named.find(task, language, settings.data.get(task))
    if definition is None:
        return None
    size = definition.size(settings.limit)
    return [Texts(size.items, size.tokens, definition.written_tokens())] if size else []


def _choices(
    config: Config, items: pa.Table, count: float, tokenizer: PreTrainedTokenizerBase
) -> list[Texts]:
    """An item is read once for each of its options, the question before it."""
    sample = sample_of(items, SAMPLED_ITEMS).select(["question", "options"]).to_pylist()
    if not sample:
        return []
    templated = config.evaluation.chat_template
    if templated == "auto":
        templated = bool(tokenizer.chat_template)

    def tokens(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False))

    def asked(question: str) -> str:
        if not templated:
            return question
        turns = [{"role": "user", "content": question}]
        if config.training.system_prompt:
            turns.insert(0, {"role": "system", "content": config.training.system_prompt})
        shown = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return str(shown)

    read = [
        tokens(asked(item["question"])) * len(item["options"]) + sum(map(tokens, item["options"]))
        for item in sample
    ]
    return [Texts(int(count), fmean(read))]


def _seconds(training: Training, texts: Iterable[Texts], batch_size: int) -> float:
    return sum(_parts(training, texts, batch_size))


def _parts(training: Training, texts: Iterable[Texts], batch_size: int) -> Iterator[float]:
    from compass_ray.evaluation.lm import BATCH_TOKENS

    for group in texts:
        yield group.count * reading_flops(training.size, group.length) / training.flops_per_second
        if not group.written:
            continue
        if training.device == "cpu":
            work = 2 * training.size.parameters * group.count * group.written
            yield work / training.flops_per_second
        else:
            at_once = min(batch_size, max(1, BATCH_TOKENS // int(group.length + group.written)))
            steps = math.ceil(group.count / at_once) * group.written
            yield steps * training.size.layers * SECONDS_PER_LAYER


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
