"""lm-evaluation-harness on one loaded base model, with adapters switched on it.

Knows nothing of Ray, caches or statistics, nor where tasks come from (``benchmarks``).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from compass_ray.config import Evaluation, Training
from compass_ray.errors import UserError
from compass_ray.evaluation.named import METRICS, most_written
from compass_ray.models import load_tokenizer
from compass_ray.training.quantisation import load_trained_on

if TYPE_CHECKING:
    from lm_eval.api.task import Task

log = logging.getLogger(__name__)

# lm-eval's own seed for drawing solved examples.
FEWSHOT_SEED = 1234
# What lm-eval's filters leave of a text in which they find no answer.
NO_ANSWER = ("[invalid]", "", None)
# Columns in which benchmarks keep the name and the subject of an item.
ID_COLUMNS = ("id", "sample_id", "question_id")
SUBJECT_COLUMNS = ("subject", "category")

SCORED_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("subject", pa.string()),
        pa.field("question", pa.string()),
        pa.field("options", pa.list_(pa.string())),
        pa.field("answer", pa.int32()),
        pa.field("choice", pa.int32()),
        pa.field("correct", pa.bool_()),
        pa.field("loglikelihoods", pa.list_(pa.float64())),
        pa.field("text", pa.string()),
        pa.field("parsed", pa.bool_()),
        pa.field("tokens", pa.int32()),
    ]
)


class Harness:
    """A base model and tokenizer, loaded once, that score tasks with or without an adapter.

    The base is what ``training`` trains adapters on: for QLoRA, weights of 4 bits.
    """

    def __init__(self, training: Training, settings: Evaluation) -> None:
        import datasets

        from compass_ray.evaluation.lm import BoundedLM

        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        datasets.disable_progress_bars()
        self._base = load_trained_on(training)
        self.tokenizer = load_tokenizer(training.model)
        self._lm = BoundedLM(
            settings.batch_size,
            pretrained=self._base,
            tokenizer=self.tokenizer,
        )
        self._settings = settings
        self._system_prompt = training.system_prompt
        self._peft: Any = None
        self._adapter: str | None = None

    @property
    def precision(self) -> str:
        """Of the base's weights and the arithmetic on them: ``float32`` or ``bfloat16``."""
        return str(self._base.dtype).removeprefix("torch.")

    def score(self, tasks: Sequence[Task], adapter: Path | None) -> pa.Table:
        """Score every item of the tasks, in their order, as lm-eval does.

        An item is right by the first of ``acc_norm``, ``acc`` and ``exact_match`` that its task
        has. One whose text holds no answer to read, or whose log-likelihoods are no numbers, is
        wrong and not ``parsed``.

        Returns ``SCORED_SCHEMA``, a row an item.

        Raises:
            UserError: The model has no room for the text that a task lets it write.
        """
        for task in tasks:
            self._prepare(task)
        with self._using(adapter):
            samples = self._evaluate(tasks)
        rows = [
            self._scored(task, sample, several=len(tasks) > 1)
            for task in tasks
            for sample in _one_filter(samples[task.task_name])
        ]
        self._tell_cut(tasks, samples)
        return pa.Table.from_pylist(rows, schema=SCORED_SCHEMA)

    def _prepare(self, task: Task) -> None:
        """What ``lm_eval.simple_evaluate`` does with a task before it is run."""
        asked, own = self._settings.num_fewshot, task.get_config("num_fewshot")
        if own is None or (asked is not None and own != 0):
            task.set_config(key="num_fewshot", value=asked or 0)
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
        if _written(task) >= self._lm.max_length:
            raise UserError(
                f"evaluation.tasks: {task.task_name} lets the model write {_written(task)} tokens, "
                f"which leaves no room for a question in the {self._lm.max_length} it can hold"
            )

    def _evaluate(self, tasks: Sequence[Task]) -> Mapping[str, list[dict[str, Any]]]:
        from lm_eval import evaluator

        templated = self._settings.uses_template(bool(self.tokenizer.chat_template))
        results = evaluator.evaluate(
            self._lm,
            {"tasks": {task.task_name: task for task in tasks}},
            limit=self._settings.limit,
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=templated,
            fewshot_as_multiturn=templated,
            system_instruction=self._system_prompt,
        )
        samples: Mapping[str, list[dict[str, Any]]] = results["samples"]
        return samples

    @contextmanager
    def _using(self, adapter: Path | None) -> Iterator[None]:
        # PEFT puts its layers into the base in place, so the harness's model stays one object.
        if adapter is None:
            with self._peft.disable_adapter() if self._peft else nullcontext():
                yield
            return
        from peft import PeftModel

        name = str(adapter).replace(".", "_")  # a module's name must not have dots
        if self._peft is None:
            self._peft = PeftModel.from_pretrained(self._base, str(adapter), adapter_name=name)
        elif name != self._adapter:
            self._peft.load_adapter(str(adapter), adapter_name=name)
        self._peft.set_adapter(name)
        if self._adapter and name != self._adapter:
            # Forty languages' adapters beside a base are more than a card may hold.
            self._peft.delete_adapter(self._adapter)
        self._adapter = name
        self._peft.eval()
        yield

    def _scored(self, task: Task, sample: Mapping[str, Any], several: bool) -> dict[str, Any]:
        document = sample["doc"]
        metric = next(name for name in METRICS if name in sample["metrics"])
        question = document.get("question")
        row: dict[str, Any] = {
            "id": _first(document, ID_COLUMNS) or f"{task.task_name}/{sample['doc_id']}",
            "subject": _first(document, SUBJECT_COLUMNS) or (task.task_name if several else None),
            "question": question if isinstance(question, str) else None,
            "tokens": len(self.tokenizer.encode(question, add_special_tokens=False))
            if isinstance(question, str)
            else None,
        }
        if isinstance(sample["filtered_resps"][0], tuple | list):
            row |= _chosen(task, sample, metric)
        else:
            row |= _written_answer(sample)
        row["correct"] = bool(sample[metric]) and row["parsed"]
        return row

    def _tell_cut(self, tasks: Sequence[Task], samples: Mapping[str, list[dict[str, Any]]]) -> None:
        """Say so when prompts are longer than the model reads: lm-eval cuts off their beginning."""
        for task in tasks:
            room = self._lm.max_length - _written(task)
            prompts = [sample["arguments"][0][0] for sample in samples[task.task_name]]
            # No tokenizer makes more tokens than bytes, and most prompts are short.
            long = [prompt for prompt in prompts if len(prompt.encode()) > room]
            cut = sum(len(self.tokenizer.encode(prompt)) > room for prompt in long)
            if cut:
                log.warning(
                    "evaluate %s: %d of %d prompts are longer than the %d tokens the model reads; "
                    "their beginning is cut off",
                    *(task.task_name, cut, len(prompts), room),
                )


def _written(task: Task) -> int:
    """Most tokens a task lets the model write."""
    names = ("output_type", "generation_kwargs")
    return most_written({name: task.get_config(name) for name in names})


def _one_filter(samples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The samples by item; a task that reads answers in several ways counts by its first."""
    mine = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
    return sorted(mine, key=lambda sample: int(sample["doc_id"]))


def _chosen(task: Task, sample: Mapping[str, Any], metric: str) -> dict[str, Any]:
    document = sample["doc"]
    loglikelihoods = [float(response[0]) for response in sample["filtered_resps"]]
    options = task.doc_to_choice(document) if task.get_config("doc_to_choice") else []
    scores = np.array(loglikelihoods)
    if metric == "acc_norm":
        scores = scores / np.array([len(option) for option in options])
    target = sample["target"]
    if isinstance(target, str) and target in options:
        target = options.index(target)
    return {
        "options": options,
        "answer": target if isinstance(target, int) else None,
        "choice": int(np.argmax(scores)),
        "loglikelihoods": loglikelihoods,
        "parsed": bool(np.isfinite(scores).all()),
    }


def _written_answer(sample: Mapping[str, Any]) -> dict[str, Any]:
    document = sample["doc"]
    return {
        "options": [
            value
            for name, value in sorted(document.items())
            if name.startswith("option_") and value is not None
        ],
        "answer": document.get("answer_index"),
        "text": sample["resps"][0][0],
        "parsed": sample["filtered_resps"][0] not in NO_ANSWER,
    }


def _first(document: Mapping[str, Any], columns: Sequence[str]) -> str | None:
    found = next((document[name] for name in columns if document.get(name) is not None), None)
    return None if found is None else str(found)
