"""From rows to batches: tokenise, mask prompts, pack, and plan every step of a training run.

Knows nothing of models, devices or Ray. Shapes: B sequences, L tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100


@dataclass(frozen=True)
class Example:
    """One document: token ids and the labels of the response (prompt tokens are ``IGNORED``)."""

    tokens: tuple[int, ...]
    labels: tuple[int, ...]

    @property
    def targets(self) -> int:
        """Tokens that are predicted and trained on; the first token of a document never is."""
        return sum(label != IGNORED for label in self.labels[1:])


@dataclass(frozen=True)
class Tokenised:
    examples: list[Example]
    truncated: int
    without_response: int


def tokenise(
    prompts: Sequence[str],
    responses: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    system_prompt: str | None = None,
) -> Tokenised:
    """Chat template where the tokenizer has one, plain text and end token otherwise.

    A document longer than ``max_length`` loses its end and is counted; one whose response is cut
    away whole would teach nothing, is left out and counted too.
    """
    examples = []
    truncated = without_response = 0
    for prompt, response in zip(prompts, responses, strict=True):
        context, continuation = _render(prompt, response, tokenizer, system_prompt)
        context_ids = tokenizer(context, add_special_tokens=False)["input_ids"]
        response_ids = tokenizer(continuation, add_special_tokens=False)["input_ids"]
        tokens = (*context_ids, *response_ids)[:max_length]
        labels = (*[IGNORED] * len(context_ids), *response_ids)[:max_length]
        truncated += len(context_ids) + len(response_ids) > max_length
        example = Example(tokens, labels)
        if example.targets:
            examples.append(example)
        else:
            without_response += 1
    return Tokenised(examples, truncated, without_response)


def chat_turns(prompt: str, system_prompt: str | None) -> list[dict[str, str]]:
    """What stands before the answer, as chat templates take it."""
    user = [{"role": "user", "content": prompt}]
    if system_prompt is not None:
        user.insert(0, {"role": "system", "content": system_prompt})
    return user


def _render(
    prompt: str, response: str, tokenizer: PreTrainedTokenizerBase, system_prompt: str | None
) -> tuple[str, str]:
    if not tokenizer.chat_template:
        start = tokenizer.bos_token or ""
        return f"{start}{prompt}\n", f"{response}{tokenizer.eos_token or ''}"
    user = chat_turns(prompt, system_prompt)
    context = tokenizer.apply_chat_template(user, tokenize=False, add_generation_prompt=True)
    turn = [*user, {"role": "assistant", "content": response}]
    whole = tokenizer.apply_chat_template(turn, tokenize=False)
    if not whole.startswith(context):
        # Templates that add an empty thinking block only to the generation prompt land here.
        return context, f"{response}{tokenizer.eos_token or ''}"
    return context, whole[len(context) :].rstrip("\n")


def sequences_of_epoch(
    examples: Sequence[Example], max_length: int, packing: bool, seed: int, epoch: int
) -> list[tuple[int, ...]]:
    """Example indices of each training sequence, shuffled anew every epoch.

    Packing fills a sequence with the shuffled documents in turn until the next does not fit
    (next-fit), so that what stands together is random and nothing is ever cut.
    """
    order = np.random.default_rng([seed, epoch]).permutation(len(examples))
    if not packing:
        return [(int(index),) for index in order]
    sequences: list[tuple[int, ...]] = []
    current: list[int] = []
    used = 0
    for index in order:
        length = len(examples[index].tokens)
        if current and used + length > max_length:
            sequences.append(tuple(current))
            current, used = [], 0
        current.append(int(index))
        used += length
    if current:
        sequences.append(tuple(current))
    return sequences


@dataclass(frozen=True)
class Plan:
    """Every batch of a run, fixed by examples, configuration and seed before the first step.

    Each worker derives the same plan, so a step's data and its number of target tokens need no
    communication, and a resumed run continues at the very batch it stopped before.
    """

    examples: Sequence[Example]
    batch_size: int
    max_length: int
    packing: bool
    seed: int
    total_steps: int

    @classmethod
    def build(
        cls,
        examples: Sequence[Example],
        *,
        batch_size: int,
        max_length: int,
        packing: bool,
        seed: int,
        epochs: float,
        max_steps: int | None,
    ) -> Plan:
        first = sequences_of_epoch(examples, max_length, packing, seed, 0)
        steps = max_steps or max(1, math.ceil(epochs * len(first) / batch_size))
        return cls(examples, batch_size, max_length, packing, seed, steps)

    def batches(self, start: int = 0) -> Iterator[list[tuple[int, ...]]]:
        """Batches ``start`` to ``total_steps``, each of ``batch_size`` sequences."""
        stream = self._stream()
        for step in range(self.total_steps):
            batch = [next(stream) for _ in range(self.batch_size)]
            if step >= start:
                yield batch

    def _stream(self) -> Iterator[tuple[int, ...]]:
        epoch = 0
        while True:
            yield from sequences_of_epoch(
                self.examples, self.max_length, self.packing, self.seed, epoch
            )
            epoch += 1

    def targets(self, batch: Sequence[tuple[int, ...]]) -> int:
        return sum(self.examples[index].targets for sequence in batch for index in sequence)

    def tokens(self, batch: Sequence[tuple[int, ...]]) -> int:
        return sum(len(self.examples[index].tokens) for sequence in batch for index in sequence)


def collate(
    examples: Sequence[Example], batch: Sequence[tuple[int, ...]], pad_token_id: int
) -> dict[str, np.ndarray[Any, np.dtype[np.int64]]]:
    """Pad sequences to the longest of the batch; documents stay apart by number and position.

    Returns int64 arrays [B, L]: ``input_ids``; ``labels``, the first token of each document
    ``IGNORED`` so that no document predicts its neighbour; ``position_ids`` that restart with
    each document; ``documents``, counted from 1, 0 for padding.
    """
    length = max(sum(len(examples[i].tokens) for i in sequence) for sequence in batch)
    shape = (len(batch), length)
    input_ids = np.full(shape, pad_token_id, np.int64)
    labels = np.full(shape, IGNORED, np.int64)
    position_ids = np.zeros(shape, np.int64)
    documents = np.zeros(shape, np.int64)
    for row, sequence in enumerate(batch):
        start = 0
        for number, index in enumerate(sequence, start=1):
            example = examples[index]
            end = start + len(example.tokens)
            input_ids[row, start:end] = example.tokens
            labels[row, start + 1 : end] = example.labels[1:]
            position_ids[row, start:end] = np.arange(end - start)
            documents[row, start:end] = number
            start = end
    return {
        "input_ids": input_ids,
        "labels": labels,
        "position_ids": position_ids,
        "documents": documents,
    }
