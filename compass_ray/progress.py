"""Progress of a long step as log lines, readable in a terminal, a job log and CI alike, and as
metrics for a dashboard.
"""

from __future__ import annotations

import logging
import time

from compass_ray.metrics import record

log = logging.getLogger(__name__)

INTERVAL_S = 5.0


class Progress:
    """Logs ``label done/total`` with rate and time left, at most every ``INTERVAL_S`` seconds."""

    def __init__(self, label: str, total: int, unit: str) -> None:
        self._label, self._total, self._unit = label, total, unit
        self._started = self._logged = time.monotonic()
        self._first: int | None = None
        self._last = 0

    def at(self, done: int, note: str = "") -> None:
        """Tell that ``done`` of the total are finished now."""
        now = time.monotonic()
        self._record(done)
        if self._first is None:
            # A resumed step starts in the middle; what was done before says nothing of the rate.
            self._first, self._started = done, now
        if done == self._last or (now - self._logged < INTERVAL_S and done < self._total):
            return
        self._last, self._logged = done, now
        elapsed, fresh = now - self._started, done - self._first
        parts = [f"{self._label}: {done:,}/{self._total:,} {self._unit}"]
        if note:
            parts.append(note)
        if fresh > 0 and elapsed > 0:
            rate = fresh / elapsed
            parts.append(f"{rate:.3g} {self._unit}/s")
            if done < self._total:
                parts.append(f"{(self._total - done) / rate:.0f} s left")
        log.info(", ".join(parts))

    def _record(self, done: int) -> None:
        # "train de" is the step train of the language de.
        step, _, language = self._label.partition(" ")
        record("compass_progress_done", done, step=step, language=language)
        record("compass_progress_total", self._total, step=step, language=language)
