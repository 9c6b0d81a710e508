"""A plan as plain text for a terminal. ``~`` marks an estimate, ``?`` what is not known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from compass_ray.config import ROLES

if TYPE_CHECKING:
    from compass_ray.plan import Plan, RoleRows
    from compass_ray.planning.evaluation import TaskScoring
    from compass_ray.planning.training import LanguageTraining

_MAX_LANGUAGES = 30


def format_plan(plan: Plan) -> str:
    """Tables of rows, stages, training, memory and time, then notes."""
    blocks = [
        [f"plan of run {plan.run}: nothing is run or written", f"storage  {plan.storage}"],
        _rows(plan),
        _stages(plan),
        _cluster(plan),
        _training(plan),
        _scoring(plan),
        _memory(plan),
        [*_time(plan), *_queue(plan)],
    ]
    if plan.notes:
        blocks.append(["notes", *(f"  - {note}" for note in plan.notes)])
    return "\n\n".join("\n".join(block) for block in blocks)


def table(rows: Sequence[Sequence[str]], left: Iterable[int] = (0,)) -> list[str]:
    """Lines of aligned columns; those in ``left`` to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    to_left = set(left)
    return [
        "  ".join(
            cell.ljust(width) if column in to_left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def duration(seconds: float | None) -> str:
    """``45 s``, ``12 min``, ``3.4 h``."""
    if seconds is None:
        return "?"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def gigabytes(count: float | None) -> str:
    """``1.5 GB`` (10^9 bytes)."""
    return "?" if count is None else f"{count / 1e9:,.2f} GB"


def _count(value: float | None, certain: bool = True) -> str:
    if value is None:
        return "?"
    return f"{'' if certain else '~'}{value:,.0f}"


def _rows(plan: Plan) -> list[str]:
    by_role = {rows.role: rows for rows in plan.rows}
    named = [name for name in plan.targets if any(name in r.languages for r in plan.rows)]
    named = named[:_MAX_LANGUAGES]
    others = sorted({name for rows in plan.rows for name in rows.languages} - set(named))
    groups = {name: [name] for name in named}
    if others:
        groups[f"{len(others)} other{'s' if len(others) > 1 else ''}"] = others
    lines = [
        [f"  {label}", *(_languages(by_role[role], names) for role in ROLES)]
        for label, names in groups.items()
    ]
    total = ["  all", *(_total(by_role[role]) for role in ROLES)]
    return table([["rows", *ROLES], *lines, total])


def _languages(rows: RoleRows, names: Sequence[str]) -> str:
    count = sum(rows.languages.get(name, 0) for name in names)
    if rows.certainty == "unknown":
        return "?"
    if rows.certainty == "at least":
        return f">={count:,}"
    return _count(count, rows.languages_certain) if count else "-"


def _total(rows: RoleRows) -> str:
    if rows.rows is None:
        return "?"
    mark = {"exact": "", "estimated": "~", "at least": ">=", "unknown": ""}[rows.certainty]
    return f"{mark}{rows.rows:,}"


def _stages(plan: Plan) -> list[str]:
    estimated = any(rows.certainty == "estimated" for rows in plan.rows)
    lines = [["stage", "from cache", "to do", "", ""]]
    for work in plan.stages:
        certain = not (estimated and work.stage == "embed")
        cells = [_count(work.reused), _count(work.computed, certain), work.unit, work.note]
        lines.append([f"  {work.stage}", *cells])
    return table(lines, left=(0, 3, 4))


def _cluster(plan: Plan) -> list[str]:
    has, training, embedding = plan.hardware, plan.training, plan.embedding
    nodes = f"{has.nodes} node{'s' if has.nodes > 1 else ''}"
    gpus = f"{has.gpus:g} GPU"
    if has.gpus:
        gpus += f" ({has.gpu or 'kind not known'}, {gigabytes(has.gpu_bytes)} each)"
    encoders = f"{embedding.actors} x {embedding.model} on {embedding.device}"
    if embedding.seconds:
        encoders += f", ~{duration(embedding.seconds)}"
    wanted = len(plan.targets)
    workers = f"{training.workers} worker{'s' if training.workers > 1 else ''}"
    lines = [
        [
            f"  {has.where}",
            f"{nodes}, {has.cpus:g} CPU, {gpus}, {gigabytes(has.node_bytes)} a node",
        ],
        ["  encoders", encoders],
        [
            "  languages",
            f"{training.parallel} of {wanted} side by side, {workers} each on {training.device}",
        ],
    ]
    return ["cluster", *table(lines, left=(0, 1))]


def _training(plan: Plan) -> list[str]:
    training, size = plan.training, plan.training.size
    header = ["training", "own", "picked", "tokens/row", "tokens/epoch", "steps", "time"]
    lines = [header, *map(_language, training.languages)]
    return [
        *table(lines),
        f"  {training.model}: {size.parameters:,} parameters, {size.adapter_parameters:,} of the "
        f"adapter; {training.batch} sequences a step",
    ]


def _language(told: LanguageTraining) -> list[str]:
    steps = told.steps
    counts = [_count(told.own, told.certain), _count(told.picked, told.certain)]
    if steps is None:
        return [f"  {told.language}", *counts, "?", "?", "?", "?"]
    return [
        f"  {told.language}",
        *counts,
        f"~{steps.tokens_per_row:.1f}",
        f"~{steps.tokens_per_epoch:,}",
        f"~{steps.steps:,}",
        "done already" if told.reused else f"~{duration(told.seconds)}",
    ]


def _scoring(plan: Plan) -> list[str]:
    header = ["evaluation", "languages", "items", "tokens/item", "written/item", "passes", "hours"]
    return table([header, *map(_task, plan.scoring.tasks)])


def _task(told: TaskScoring) -> list[str]:
    return [
        f"  {told.task}",
        str(told.languages),
        _count(told.items),
        _count(told.read, certain=False),
        f"<={told.written:,}" if told.written else "-",
        f"{told.passes - told.scored:,}",
        _hours(told.device_hours, at_most=told.written > 0),
    ]


def _memory(plan: Plan) -> list[str]:
    memory = plan.training.memory
    header = f"micro-batch of {memory.micro_batch} x {memory.tokens} tokens"
    lines = [["memory of a worker", "", header]]
    for name, how in memory.assumptions.items():
        lines.append([f"  {name}", gigabytes(getattr(memory.bytes, name)), how])
    fits = {True: "fits", False: "DOES NOT FIT", None: "memory there is not known"}[memory.fits]
    if memory.available is not None:
        fits += f" into {gigabytes(memory.available)}"
    lines.append(["  all", gigabytes(memory.bytes.total), fits])
    how = "at least: one worker holds the whole base, whatever the ZeRO stage, and its items"
    lines.append(["  evaluation", gigabytes(memory.scoring), how])
    return table(lines, left=(0, 2))


def _time(plan: Plan) -> list[str]:
    training, scoring = plan.training, plan.scoring
    unit = "GPU-hours" if training.device == "cuda" else "core-hours"
    lines = ["time     nothing left to train"]
    if not all(told.reused for told in training.languages):
        wall, hours = duration(training.wall_seconds), _hours(training.device_hours)
        lines = [f"time     ~{wall} of training, {hours} {unit}", f"  {training.assumption}"]
    if scoring.scored < scoring.passes:
        wall, hours = duration(scoring.wall_seconds), _hours(scoring.device_hours)
        at_once = f"{scoring.places} pass{'es' if scoring.places > 1 else ''} at once"
        lines += [
            f"         ~{wall} of evaluation, {hours} {unit}, {at_once}",
            f"  {scoring.assumption}",
        ]
    return lines


def _hours(hours: float | None, at_most: bool = False) -> str:
    return "?" if hours is None else f"{'<=' if at_most else '~'}{hours:,.2f}"


def _queue(plan: Plan) -> list[str]:
    queue, lines = plan.queue, []
    if queue.waiting:
        wait = f"the first ~{duration(queue.first_wait)}, the last ~{duration(queue.longest_wait)}"
        lines = [
            f"queue    {queue.waiting} of {len(plan.targets)} languages wait: {wait}",
            f"  for {queue.limit}; with twice as many places, ~{duration(queue.with_double)} of "
            "training in all",
        ]
    if queue.bottleneck:
        name = {"embed": "embedding", "train": "training"}[queue.bottleneck]
        lines.append(f"bottleneck  {name}, ~{queue.bottleneck_share:.0%} of embedding and training")
    return lines
