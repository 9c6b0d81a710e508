"""lm-evaluation-harness on one loaded base model, with adapters switched on it.

Knows nothing of Ray, caches or statistics.
"""

from __future__ import annotations

import importlib.resources
import json
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import yaml

from compass_ray.models import load_base, load_tokenizer

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
    ]
)


class Harness:
    """A base model and tokenizer, loaded once, that score items with or without an adapter."""

    def __init__(self, model: str, batch_size: int, system_prompt: str | None = None) -> None:
        from lm_eval.models.huggingface import HFLM

        logging.getLogger("lm_eval").setLevel(logging.WARNING)
        on_gpu = torch.cuda.is_available()
        dtype = torch.bfloat16 if on_gpu else torch.float32
        self._base = load_base(model, dtype).eval().to("cuda" if on_gpu else "cpu")
        self._lm = HFLM(
            pretrained=self._base,
            tokenizer=load_tokenizer(model),
            batch_size=batch_size,
            device="cuda" if on_gpu else "cpu",
        )
        self._peft: Any = None
        self._system_prompt = system_prompt

    def score(self, items: pa.Table, adapter: Path | None) -> pa.Table:
        """Score multiple-choice items (``records.EVALUATION_SCHEMA``) one by one.

        The choice is the option of the highest log-likelihood a character (lm-eval's
        ``acc_norm``). Returns ``SCORED_SCHEMA``, a row an item in the order given.
        """
        with tempfile.TemporaryDirectory() as folder, self._using(adapter):
            samples = self._evaluate(_task(items, Path(folder)))
        rows = [_scored(sample) for sample in sorted(samples, key=lambda s: int(s["doc_id"]))]
        return pa.Table.from_pylist(rows, schema=SCORED_SCHEMA)

    def _evaluate(self, task: dict[str, Any]) -> list[dict[str, Any]]:
        from lm_eval import evaluator
        from lm_eval.tasks import TaskManager

        tasks = TaskManager(include_defaults=False).load([task])
        templated = bool(self._lm.tokenizer.chat_template)
        results = evaluator.evaluate(
            self._lm,
            tasks,
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=templated,
            system_instruction=self._system_prompt,
        )
        samples: list[dict[str, Any]] = results["samples"][task["task"]]
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
        elif name not in self._peft.peft_config:
            self._peft.load_adapter(str(adapter), adapter_name=name)
        self._peft.set_adapter(name)
        self._peft.eval()
        yield


def _task(items: pa.Table, folder: Path) -> dict[str, Any]:
    text = importlib.resources.files("compass_ray.evaluation").joinpath("tasks/items.yaml")
    task: dict[str, Any] = yaml.safe_load(text.read_text())
    path = folder / "items.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for item in items.to_pylist():
            file.write(json.dumps(item, ensure_ascii=False) + "\n")
    task["dataset_kwargs"] = {
        "data_files": {"test": str(path)},
        "cache_dir": str(folder / "cache"),
    }
    return task


def _scored(sample: dict[str, Any]) -> dict[str, Any]:
    document = sample["doc"]
    loglikelihoods = [float(response[0]) for response in sample["filtered_resps"]]
    lengths = [len(option) for option in document["options"]]
    return {
        "id": document["id"],
        "subject": document["subject"],
        "question": document["question"],
        "options": document["options"],
        "answer": document["answer"],
        "choice": int(np.argmax(np.array(loglikelihoods) / np.array(lengths))),
        "correct": bool(sample["acc_norm"]),
        "loglikelihoods": loglikelihoods,
    }
