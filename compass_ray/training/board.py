"""Where the workers of all languages leave word for the driver, and the driver's reading of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ray

from compass_ray.metrics import record
from compass_ray.progress import Progress
from compass_ray.resources import this_node
from compass_ray.training.tracking import Trackers

log = logging.getLogger(__name__)


@dataclass
class Notes:
    """What is known of one language.

    Attributes:
        steps: as they came, ``loop.Step`` as dictionaries; one that was done again after a crash
            is there twice.
        total: steps there will be.
        restarts: the cause of each.
        failure: why it gave up for good.
    """

    steps: list[dict[str, Any]] = field(default_factory=list)
    total: int = 0
    restarts: list[str] = field(default_factory=list)
    failure: str | None = None


class Board:
    """An actor; ``make_board`` starts it."""

    def __init__(self) -> None:
        self._notes: dict[str, Notes] = {}

    def on_step(self, language: str, step: dict[str, Any], total: int) -> None:
        notes = self._of(language)
        notes.steps.append(step)
        notes.total = total

    def on_restart(self, language: str, cause: str) -> None:
        self._of(language).restarts.append(cause)

    def on_failure(self, language: str, cause: str) -> None:
        self._of(language).failure = cause

    def since(self, seen: Mapping[str, tuple[int, int]]) -> dict[str, Notes]:
        """What is new after so many steps and restarts of each language."""
        new = {}
        for language, notes in self._notes.items():
            steps, restarts = seen.get(language, (0, 0))
            new[language] = Notes(
                notes.steps[steps:], notes.total, notes.restarts[restarts:], notes.failure
            )
        return new

    def losses(self) -> dict[str, dict[int, float]]:
        """Training loss by step of each language that has taken one."""
        return {
            language: {step["step"]: step["loss"] for step in notes.steps}
            for language, notes in self._notes.items()
            if notes.steps
        }

    def _of(self, language: str) -> Notes:
        return self._notes.setdefault(language, Notes())


def make_board() -> Any:
    """A handle of a new board, on this node: while the driver is there, it is, too."""
    return ray.remote(Board).options(num_cpus=0, scheduling_strategy=this_node()).remote()


class Reader:
    """Tells a board's news: to the log, as metrics, and to the experiment trackers."""

    def __init__(self, board: Any, trackers: Trackers) -> None:
        self._board, self._trackers = board, trackers
        self._seen: dict[str, tuple[int, int]] = {}
        self._bars: dict[str, Progress] = {}

    def read(self) -> None:
        news: dict[str, Notes] = ray.get(self._board.since.remote(self._seen))
        for language, notes in news.items():
            steps, restarts = self._seen.get(language, (0, 0))
            self._seen[language] = (steps + len(notes.steps), restarts + len(notes.restarts))
            for cause in notes.restarts:
                log.warning("train %s: starting again, since %s", language, cause)
            if not notes.steps:
                continue
            self._trackers.log(language, notes.steps)
            last = notes.steps[-1]
            bar = self._bars.setdefault(
                language, Progress(f"train {language}", notes.total, "steps")
            )
            bar.at(last["step"], f"loss {last['loss']:.3f}")
            record("compass_training_loss", last["loss"], language=language)

    def failure(self, language: str) -> str | None:
        """Why the language gave up for good, if it said so."""
        notes: dict[str, Notes] = ray.get(self._board.since.remote({}))
        return notes[language].failure if language in notes else None
