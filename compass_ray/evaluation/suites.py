"""The benchmarks of lm-eval that have names of their own here: where they are, and how large."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """Items of one language, and tokens of the prompt of one, as a mean."""

    items: int
    tokens: int


@dataclass(frozen=True)
class Suite:
    """A benchmark of lm-eval with a folder and a group of tasks for each language.

    The number of items is the published one. Tokens are an assumption: a question with its options,
    and five solved ones before it in MMLU-ProX. ``sets`` are names of the data sets that hold all
    its items.
    """

    folder: str
    group: str
    size: Size
    sets: frozenset[str]


SUITES = {
    "global_mmlu": Suite(
        "global_mmlu/full",
        "global_mmlu_full_{}",
        Size(14_042, 200),
        frozenset({"Global-MMLU"}),
    ),
    # lm-eval's global_mmlu_de is the Lite set; its users take it for the full one.
    "global_mmlu_lite": Suite(
        "global_mmlu/default",
        "global_mmlu_{}",
        Size(400, 200),
        frozenset({"Global-MMLU", "Global-MMLU-Lite"}),
    ),
    "mmlu_prox": Suite("mmlu_prox", "mmlu_prox_{}", Size(11_829, 2_000), frozenset({"MMLU-ProX"})),
    "mmlu_prox_lite": Suite(
        "mmlu_prox",
        "mmlu_prox_lite_{}",
        Size(658, 2_000),
        frozenset({"MMLU-ProX", "MMLU-ProX-Lite"}),
    ),
}
