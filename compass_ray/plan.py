"""What a run would do and what it would take: rows, reuse, tokens, memory, time. Runs nothing.

Reads the configuration, the corpora and the cache; writes nothing to storage and starts no Ray (it
joins the cluster of ``RAY_ADDRESS`` only to ask what it has). What the cache does not hold is
estimated from samples, by the arithmetic in ``costs``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compass_ray import costs
from compass_ray.artifacts import Storage
from compass_ray.config import ROLES, Clustering, Config, Role
from compass_ray.corpora.preview import Certainty, Preview, preview
from compass_ray.embedding.encoders import BUNDLED, Device, check_encoder, encoder_device
from compass_ray.errors import UserError, first_line
from compass_ray.evaluation.benchmarks import check_tasks
from compass_ray.models import check_model, check_training, load_tokenizer
from compass_ray.planning import hardware
from compass_ray.planning.evaluation import Scoring, plan_scoring
from compass_ray.planning.hardware import Hardware
from compass_ray.planning.queueing import Queue, plan_queue
from compass_ray.planning.reuse import Found, look_into_cache, preview_found
from compass_ray.planning.text import format_plan
from compass_ray.planning.training import Training, plan_training
from compass_ray.resources import encoder_actors, parallel_languages, worker_shape

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Plan", "format_plan", "make_plan"]


@dataclass(frozen=True)
class RoleRows:
    """Rows of a role; ``rows`` is None where no source of it tells."""

    role: Role
    rows: int | None
    certainty: Certainty
    languages: dict[str, int]
    languages_certain: bool


@dataclass(frozen=True)
class StageWork:
    """What a stage finds done and what it has to do; None where it cannot be told yet."""

    stage: str
    unit: str
    reused: int | None
    computed: int | None
    note: str = ""


@dataclass(frozen=True)
class EmbeddingWork:
    """Rows to embed, on so many encoders; ``seconds`` is None where no rate was measured."""

    model: str
    rows: int | None
    device: Device
    actors: int
    seconds: float | None


@dataclass(frozen=True)
class Plan:
    """Everything ``compass-ray plan`` tells; ``dataclasses.asdict`` of it is JSON."""

    run: str
    storage: str
    targets: tuple[str, ...]
    rows: tuple[RoleRows, ...]
    stages: tuple[StageWork, ...]
    hardware: Hardware
    embedding: EmbeddingWork
    training: Training
    scoring: Scoring
    queue: Queue
    notes: tuple[str, ...]


def make_plan(config: Config) -> Plan:
    """Plan a run of all stages.

    Raises ``UserError`` as the run would before it starts: for a model, encoder or source that is
    not there, a language without usage, or workers that no node has room for.
    """
    storage = Storage.open(config.run.storage)
    check_encoder(config.embedding)
    check_model(config.training.model)
    check_training(config.training)
    check_tasks(config, storage)
    on, machine = hardware.look()
    parallel = parallel_languages(config, on)
    device = encoder_device(config.embedding.model, on.gpus > 0)
    actors = encoder_actors(config.embedding, on, device)

    found = look_into_cache(config, storage)
    previews = {
        role: preview_found(storage, found.corpus, role, config.languages)
        if found.corpus
        else preview(role, sources, config.languages)
        for role, sources in config.corpora.sources(config.languages).items()
    }
    _check_rows(config, previews)
    shape, tokenizer = worker_shape(config, on), _tokenizer(config.training.model)
    training = plan_training(config, machine, shape, parallel, tokenizer, found, previews)
    scoring = plan_scoring(config, on, shape, training, tokenizer, found, previews)
    stages = _stages(config, found, previews, scoring)
    embedding = _embedding(config, stages, device, actors)
    left = [told.seconds for told in training.languages if not told.reused]
    queue = plan_queue(
        config,
        on,
        shape,
        left,
        parallel,
        embedding.seconds if embedding.rows else 0,
    )
    return Plan(
        run=config.run.name,
        storage=storage.uri,
        targets=tuple(config.languages),
        rows=tuple(
            RoleRows(role, seen.rows, seen.certainty, seen.languages, seen.languages_certain)
            for role, seen in previews.items()
        ),
        stages=stages,
        hardware=machine,
        embedding=embedding,
        training=training,
        scoring=scoring,
        queue=queue,
        notes=tuple(_notes(config, previews, training, scoring)),
    )


def _tokenizer(model: str) -> PreTrainedTokenizerBase:
    try:
        return load_tokenizer(model)
    except (OSError, ValueError) as error:
        raise UserError(f"training.model: no tokenizer in {model} ({first_line(error)})") from None


def _check_rows(config: Config, previews: Mapping[Role, Preview]) -> None:
    usage, pool = previews["usage"], previews["auxiliary"]
    for language in config.languages:
        if usage.languages_certain and not usage.languages.get(language):
            known = ", ".join(sorted(usage.languages)) or "none"
            raise UserError(
                f"languages: {language} has no rows in corpora.usage, so what its users ask is "
                f"not known; languages there: {known}"
            )
    if pool.certainty == "exact" and not pool.rows:
        raise UserError("corpora.auxiliary: no rows, so there is nothing to fill gaps from")
    most = max(config.clustering.candidates())
    if pool.certainty == "exact" and pool.rows is not None and most > pool.rows:
        raise UserError(
            f"clustering.k: {most} clusters asked of {pool.rows} auxiliary rows; "
            f"choose k of at most {pool.rows}"
        )
    for role, seen in previews.items():
        if seen.rejected and seen.certainty == "exact":
            share, reason = seen.rejected
            allowed = config.corpora.max_rejected
            if share > allowed:
                raise UserError(
                    f"corpora.{role}: {share:.1%} of the rows rejected, first {reason} "
                    f"(corpora.max_rejected allows {allowed:.1%})"
                )


def _stages(
    config: Config, found: Found, previews: Mapping[Role, Preview], scoring: Scoring
) -> tuple[StageWork, ...]:
    """One entry a stage, in the order they run."""
    languages = len(config.languages)
    embedded = sum(part.part.rows for part in found.vectors)
    to_embed = [previews[role] for role in ROLES if role != "evaluation"]
    counted = all(seen.certainty in ("exact", "estimated") for seen in to_embed)
    rows = sum(seen.rows or 0 for seen in to_embed)
    return (
        StageWork("records", "sources", found.sources_read, found.sources - found.sources_read),
        StageWork(
            "embed",
            "rows",
            embedded,
            rows - embedded if counted else None,
            "" if found.corpus else "fewer if some are embedded already: known once read",
        ),
        StageWork(
            "cluster",
            "clusterings",
            int(found.clustered is not None),
            int(found.clustered is None),
            f"{config.clustering.method}, k {_candidates(config.clustering)}",
        ),
        StageWork("sample", "subsets", len(found.subsets), languages - len(found.subsets)),
        StageWork("train", "adapters", len(found.adapters), languages - len(found.adapters)),
        StageWork("evaluate", "passes", scoring.scored, scoring.passes - scoring.scored),
        StageWork("report", "pages", 0, 1),
    )


def _candidates(clustering: Clustering) -> str:
    *others, last = map(str, clustering.candidates())
    return f"of {', '.join(others)} or {last}" if others else f"= {last}"


def _embedding(
    config: Config, stages: Sequence[StageWork], device: Device, actors: int
) -> EmbeddingWork:
    rows = next(work.computed for work in stages if work.stage == "embed")
    seconds = None
    if config.embedding.model == BUNDLED and rows is not None:
        rate = costs.BUNDLED_ROWS_PER_THREAD * config.embedding.threads * actors
        seconds = rows / rate
    return EmbeddingWork(config.embedding.model, rows, device, actors, seconds)


def _notes(
    config: Config, previews: Mapping[Role, Preview], training: Training, scoring: Scoring
) -> Iterator[str]:
    memory = training.memory
    if memory.fits is False:
        yield _too_large(training)
    if memory.available is not None and memory.scoring > memory.available:
        yield (
            f"evaluation holds the whole base on one worker, {memory.scoring / 1e9:.1f} GB and "
            f"more, and has {memory.available / 1e9:.1f} GB, which ZeRO-3 does not change: take "
            "larger GPUs or adapter.type qlora, or stop at compass-ray train"
        )
    for task in scoring.tasks:
        if task.written and task.scored < task.passes:
            yield (
                f"evaluation: for {task.task} the model writes up to {task.written:,} tokens an "
                "item, and the time is that of as many; evaluation.limit bounds the items"
            )
    if config.training.adapter.type == "dora":
        yield (
            f"DoRA trains about {costs.SLOWDOWN['dora']} times slower than LoRA, and vLLM does not "
            "serve it: compass-ray merge makes a model that it does"
        )
    for role, seen in previews.items():
        if seen.certainty in ("at least", "unknown"):
            yield f"corpora.{role}: the hub is not asked for its rows; they count once read"
        if seen.rejected:
            share, reason = seen.rejected
            yield f"corpora.{role}: {share:.1%} of the rows looked at fit no format ({reason})"
        if role == "usage" and not seen.languages_certain:
            for language in sorted(set(config.languages) - set(seen.languages)):
                yield f"corpora.usage: no row of {language} seen; the run stops if there is none"
    for told in training.languages:
        if told.own == 0 and previews["train"].languages_certain:
            yield f"{told.language} has no own rows: it trains on picked ones alone"
        if told.certain and told.picked < config.sampling.budget:
            yield (
                f"{told.language}: {told.picked:,} rows of other languages for a budget "
                f"of {config.sampling.budget:,}"
            )


def _too_large(training: Training) -> str:
    memory = training.memory
    told = (
        f"a training worker needs about {memory.bytes.total / 1e9:.1f} GB and has "
        f"{(memory.available or 0) / 1e9:.1f} GB"
    )
    if memory.largest_micro_batch:
        return f"{told}: set training.micro_batch_size to {memory.largest_micro_batch} or less"
    return (
        f"{told}, with one sequence at a time too: take a smaller model, a shorter "
        "training.max_length, fewer languages side by side, training.gradient_checkpointing, "
        "adapter.type qlora, or ZeRO-3 over more workers"
    )
