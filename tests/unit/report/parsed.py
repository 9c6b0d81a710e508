"""A page as its reader sees it: tables, figures, numbers."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pyarrow as pa

from compass_ray.artifacts import Storage
from tests.unit.report.made_up_run import RUN


class Parsed(HTMLParser):
    """Every tag with its attributes, and the text of every cell of a table by the table's id."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._rows: list[list[str]] = []
        self._in_cell = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self._rows = self.tables[dict(attrs).get("id") or ""] = []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = self._in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self._rows[-1][-1] += data


def body(page: str, table: str) -> list[list[str]]:
    return [[cell.strip() for cell in row] for row in Parsed(page).tables[table][1:]]


def shown(value: float) -> str:
    return f"{value:.3f}".replace("-", "−")


def read(storage: Storage, name: str) -> pa.Table:
    return storage.read_table(f"runs/{RUN}/{name}.parquet")


def svgs(page: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", page, re.S)]
