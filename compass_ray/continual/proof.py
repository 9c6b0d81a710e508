"""Whether updates may become current: what they and the current adapters answer, and the gate.

Shapes: N items.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from compass_ray import artifacts
from compass_ray.artifacts import Artifact, Storage
from compass_ray.config import Config
from compass_ray.continual import gate
from compass_ray.continual.gate import Answered, Verdict
from compass_ray.continual.reference import Reference
from compass_ray.continual.registry import Version
from compass_ray.continual.runfolder import Locator, RunFolder
from compass_ray.corpora.stage import Corpus, read_corpora
from compass_ray.evaluation.stage import evaluate, on_items
from compass_ray.training.launch import ADAPTER, STAGE

log = logging.getLogger(__name__)

_NOTHING = Answered((), np.empty(0), np.empty(0))


def judge(
    run: RunFolder,
    config: Config,
    corpus: Corpus,
    evaluation: str | None,
    usages: Mapping[str, tuple[Reference, Reference]],
    current: Mapping[str, Artifact],
    updated: Mapping[str, Artifact],
) -> dict[str, Verdict]:
    """The gate's verdict on each language's update.

    Args:
        run: has the encoder and the clusters that items are put into.
        config: of the update.
        corpus: has the run's items.
        evaluation: items of the new usage; None for the run's, weighted as that is spread.
        usages: the old and the new one.
        current: adapters that are current.
        updated: what they were trained on to.
    """
    if not updated:
        return {}
    old = answers(config, run.storage, corpus, current, updated)
    own_items = None
    if evaluation:
        other = on_items(config, evaluation)
        own_items = answers(other, run.storage, read_corpora(other, run.storage), current, updated)
    locator = Locator(run)
    verdicts = {}
    for language in updated:
        answered = old.get(language, _NOTHING)
        clusters_N = locator.locate(answered.questions, language).clusters_N
        before, after = (
            answered.pair(gate.item_weights(clusters_N, usage.counts()))
            for usage in usages[language]
        )
        if own_items is not None:
            own = own_items.get(language, _NOTHING)
            items = len(own.questions)
            after = own.pair(np.ones(items) / max(items, 1))
        verdicts[language] = gate.judge(before, after, config.continual.tolerance)
    return verdicts


def answers(
    config: Config,
    storage: Storage,
    corpus: Corpus,
    current: Mapping[str, Artifact],
    updated: Mapping[str, Artifact],
) -> dict[str, Answered]:
    """What the current adapters and the updates answer, by language.

    Items without a question, of which some benchmarks are made, are like no usage and left out.

    Raises:
        RuntimeError: the two were not scored on the same items.
    """
    before, after = (
        evaluate(config, storage, corpus, adapters).whole().comparisons
        for adapters in (current, updated)
    )
    scored_after = {(compared.language, compared.task): compared.adapter for compared in after}
    found: dict[str, list[pa.Table]] = {}
    for compared in before:
        language, task = compared.language, compared.task
        items, again = compared.adapter, scored_after.get((language, task))
        if again is None or not items["id"].equals(again["id"]):
            raise RuntimeError(
                f"update {language}: the current adapter and the update were scored on different "
                f"items of {task}, so they cannot be compared"
            )
        both = pa.table(
            {
                "question": items["question"],
                "current": items["correct"].cast(pa.float64()),
                "updated": again["correct"].cast(pa.float64()),
            }
        )
        told = both.filter(pc.is_valid(both["question"]))
        lacking = len(both) - len(told)
        if lacking:
            log.warning(
                "update %s: %d items of %s have no question to compare with usage; left out",
                *(language, lacking, task),
            )
        found.setdefault(language, []).append(told)
    whole = {language: pa.concat_tables(tables) for language, tables in found.items()}
    return {
        language: Answered(
            items["question"].to_pylist(), items["current"].to_numpy(), items["updated"].to_numpy()
        )
        for language, items in whole.items()
    }


def adapter_of(storage: Storage, version: Version) -> Artifact:
    """The version's adapter as the evaluation takes it; the cache may have been emptied."""
    done = artifacts.find(storage, STAGE, version.about["fingerprint"])
    if done:
        return done
    draft = artifacts.begin(storage, STAGE, version.about["fingerprint"])
    for name in storage.list_files(version.folder):
        if name.startswith("adapter_"):
            draft.write_bytes(f"{ADAPTER}/{name}", storage.read_bytes(f"{version.folder}/{name}"))
    return draft.commit({})
