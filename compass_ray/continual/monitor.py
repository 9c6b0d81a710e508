"""Watches one language of a finished run: is this usage still what its adapter was built for?

Knows nothing of files, windows or what was watched before (``watch``).
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from compass_ray.continual.drift import DriftReport, Located, detect
from compass_ray.continual.runfolder import Locator, RunFolder

__all__ = ["DriftMonitor", "DriftReport"]


class DriftMonitor:
    """The reference of a language's current adapter, and the test of new usage against it.

    Args:
        run: a run directory, such as ``outputs/runs/demo``.
        language: one of the run's.
        locator: shares a loaded encoder between languages.

    Raises:
        UserError: there is no such run, or the language has no adapter in it.
    """

    def __init__(self, run: str | RunFolder, language: str, locator: Locator | None = None) -> None:
        folder = run if isinstance(run, RunFolder) else RunFolder.open(str(run))
        self.language = language
        self.version = folder.current(language)
        self.reference = folder.reference(self.version)
        self._settings = folder.config.continual
        self._seed = folder.config.run.seed
        self._locator = locator or Locator(folder)

    def check(
        self, usage: Sequence[str] | pa.Table | Located, alpha: float | None = None
    ) -> DriftReport:
        """Compare usage with the reference.

        Args:
            usage: prompts; a table with ``prompt`` and, if wanted, ``weight``; or prompts that
                are located already. At least one.
            alpha: rate at which unchanged usage alarms; default: ``continual.alpha``.

        Raises:
            ValueError: there are no prompts.
        """
        if isinstance(usage, pa.Table):
            weights = usage["weight"].to_pylist() if "weight" in usage.column_names else None
            located = self._locator.locate(usage["prompt"].to_pylist(), self.language, weights)
        elif isinstance(usage, Located):
            located = usage
        else:
            located = self._locator.locate(list(usage), self.language)
        return detect(
            self.reference.usage,
            located,
            self._locator.k,
            alpha=self._settings.alpha if alpha is None else alpha,
            threshold=self._settings.threshold,
            seed=self._seed,
        )
