"""One self-contained HTML page for a run: what was missing, what was picked, what it gained."""

from compass_ray.report.page import build_report, write_report

__all__ = ["build_report", "write_report"]
