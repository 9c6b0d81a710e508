"""The job without its cluster."""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from compass_ray.continual.runfolder import RunFolder

from .conftest import prompts, write_log

FILE = Path(__file__).parents[3] / "jobs" / "monitor.py"


def test_what_drifted_is_updated_for_and_the_report_shows_it(
    make_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location("job", FILE)
    assert spec and spec.loader
    job = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(job)
    run = make_run()
    log = write_log(tmp_path / "usage.jsonl", prompts("weather", 20, 2) + prompts("sum", 1, 2))
    asked: list[tuple[str, list[str]]] = []

    def update(run: RunFolder, usage: str, languages: list[str], overrides: object) -> list[str]:
        asked.append((usage, languages))
        return ["updated"]

    monkeypatch.setattr(job, "connect", lambda: None)
    monkeypatch.setattr(job, "update", update)
    monkeypatch.setattr(job, "write_cards", lambda *_: None)
    words = ["--run", str(run), "--usage", str(log), "--once", "--auto-update"]
    monkeypatch.setattr(sys, "argv", ["monitor.py", *words])
    job.watch_usage()
    logging.getLogger("compass_ray").handlers.clear()
    assert asked == [(str(run / "monitor/drifted/de-0001.parquet"), ["de"])]
    assert "2 windows of usage; 1 drifted" in (run / "report.html").read_text()
