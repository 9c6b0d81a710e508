"""One pass of Ray Data over the parts of a corpus.

A part is a few thousand rows in a file of its own. What travels through Ray Data is a part's
description; the worker reads the rows, does its work and commits the result, so a job that dies
loses at most the parts in flight and the driver never holds a corpus.
"""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import ray
from ray import cloudpickle as pickle
from ray.exceptions import RayError, RayTaskError

from compass_ray.errors import UserError, root_cause
from compass_ray.resources import connect

TRIES = 3
"""How often a part, or a process that does parts, is tried again when the process ends."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_parts(items: Sequence[Item], work: Callable[[Item], Result]) -> Iterator[Result]:
    """Yield the result of every item as it finishes, in no particular order.

    Each item is a task of one CPU, and Ray keeps the processes that tasks run in from one pass to
    the next.

    Raises:
        UserError: the first that a task raised.
        RuntimeError: the processes that did a part ended again and again.
    """
    if items:
        # By default Ray Data tries for ever, and what kills a process once mostly does again.
        options = {"fn_args": (work,), "num_cpus": 1, "max_retries": TRIES}
        yield from _outcomes(_mapped(_dataset(items), _run, options))


def map_parts_on_actors(
    items: Sequence[Item],
    build: Callable[[], Callable[[Item], Result]],
    *,
    actors: int,
    cpus: float,
    gpus: float = 0,
    environment: dict[str, str] | None = None,
) -> Iterator[Result]:
    """``map_parts`` for work that needs what takes long to load.

    ``build`` runs once in each of at most ``actors`` processes and returns the function applied
    to each item there; ``environment`` is set before anything is imported there.
    """
    if not items:
        return
    size = min(actors, len(items))
    options = {
        "fn_constructor_args": (build,),
        # It may shrink to one: a node that leaves takes its actors along; the rest go on.
        "compute": ray.data.ActorPoolStrategy(
            min_size=1, max_size=size, initial_size=size, max_tasks_in_flight_per_actor=2
        ),
        "num_cpus": cpus,
        "num_gpus": gpus,
        # Not how often a part is tried: while Ray does not know yet that a node is gone, tries on
        # its actors are over in no time.
        "max_restarts": TRIES,
        "runtime_env": {"env_vars": environment or {}},
    }
    yield from _outcomes(_mapped(_dataset(items), _Loaded, options))


class _Loaded:
    def __init__(self, build: Callable[[], Callable[[Any], Any]]) -> None:
        self._work = build()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return _run(row, self._work)


def _run(row: dict[str, Any], work: Callable[[Any], Any]) -> dict[str, Any]:
    """Do the work of one part; the user's mistakes come back as values, not as tracebacks."""
    outcome: Any
    try:
        outcome = work(pickle.loads(row["item"]))
    except UserError as error:
        outcome = error
    return {"outcome": pickle.dumps(outcome)}


def _dataset(items: Sequence[Any]) -> ray.data.Dataset:
    connect()
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    rows = [{"item": pickle.dumps(item)} for item in items]
    return ray.data.from_items(rows, override_num_blocks=len(rows))


def _mapped(dataset: ray.data.Dataset, work: Any, options: dict[str, Any]) -> ray.data.Dataset:
    """``dataset.map`` with limits of retries, which Ray deprecates and has nothing in place of."""
    parameters = inspect.signature(dataset.map).parameters
    if all(each.kind is not each.VAR_KEYWORD for each in parameters.values()):
        options = {name: value for name, value in options.items() if name in parameters}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return dataset.map(work, **options)


def _outcomes(dataset: ray.data.Dataset) -> Iterator[Any]:
    try:
        for row in dataset.iter_rows():
            outcome = pickle.loads(row["outcome"])
            if isinstance(outcome, UserError):
                raise outcome
            yield outcome
    except RayTaskError:
        raise
    except RayError as error:
        raise RuntimeError(
            f"a process ended, and so did {TRIES} in its place; most often their node has too "
            f"little memory: {root_cause(error)}"
        ) from error
