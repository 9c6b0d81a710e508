"""Drawing with matplotlib and writing small inline SVG.

Colours are CSS variables named after ``PALETTE``, which the page around the figure sets, so one
drawing serves light and dark. Text stays text, in the page's font. Knows nothing of what is drawn.
"""

from __future__ import annotations

import hashlib
import html
import io
import re
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# name: (on light paper, on dark paper). The light ones must differ, see _Tag.
PALETTE: Mapping[str, tuple[str, str]] = {
    "paper": ("#fdfcf9", "#15181c"),
    "ink": ("#1d2227", "#e8e5df"),
    "muted": ("#5c656f", "#9ea7b1"),
    "rule": ("#dedad2", "#343b43"),
    "target": ("#cf550b", "#ff9b58"),
    "before": ("#3e4957", "#d4dbe4"),
    "after": ("#4f97d3", "#2f7cc4"),
    "line0": ("#0b6fae", "#5cb6ea"),
    "line1": ("#d55e02", "#ff8f4d"),
    "line2": ("#07916b", "#2fc79b"),
    "line3": ("#b8578f", "#e39bc4"),
    "line4": ("#b98000", "#f0b93a"),
    "line5": ("#6b6b6b", "#c0c0c0"),
}
LIGHT = {name: light for name, (light, _) in PALETTE.items()}
FONT = 12

_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "compass",
    "text.parse_math": False,
    "font.size": FONT,
    "text.color": LIGHT["ink"],
    "axes.labelcolor": LIGHT["muted"],
    "axes.edgecolor": LIGHT["rule"],
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "grid.color": LIGHT["rule"],
    "grid.linewidth": 0.8,
    "xtick.color": LIGHT["rule"],
    "ytick.color": LIGHT["rule"],
    "xtick.labelcolor": LIGHT["muted"],
    "ytick.labelcolor": LIGHT["ink"],
}


def style() -> AbstractContextManager[None]:
    context: AbstractContextManager[None] = matplotlib.rc_context(_STYLE)
    return context


def axes_of(
    size: tuple[float, float], left: float, right: float, top: float, bottom: float
) -> tuple[Figure, Any]:
    """Axes with margins in CSS pixels; matplotlib's SVG has 72 to the inch."""
    width, height = size
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    FigureCanvasSVG(figure)
    figure.patch.set_visible(False)
    inner = (width - left - right, height - top - bottom)
    axes = figure.add_axes(
        (left / width, bottom / height, inner[0] / width, inner[1] / height), facecolor="none"
    )
    axes.patch.set_visible(False)
    return figure, axes


def svg(figure: Figure, label: str) -> str:
    sink = io.StringIO()
    with warnings.catch_warnings():
        # Glyphs matplotlib's own font lacks; the reader's browser draws them.
        warnings.filterwarnings("ignore", message="Glyph|Matplotlib currently does not support")
        figure.savefig(sink, format="svg", metadata={"Date": None, "Creator": None})
    drawing = re.sub(
        r"<metadata>.*?</metadata>|<defs>\s*<style.*?</defs>", "", sink.getvalue(), flags=re.S
    )
    inner = re.split(r"<svg[^>]*>", drawing, maxsplit=1)[1]
    width, height = (72 * inches for inches in figure.get_size_inches())
    opening = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        f' viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{html.escape(label)}"'
        f' style="max-width: {width:.0f}px; min-width: {0.79 * width:.0f}px">'
    )
    salt = hashlib.blake2b((label + inner).encode(), digest_size=4).hexdigest()
    small = re.sub(r"<[^>]*>", _Tag(inner, salt), inner)
    return opening + re.sub(r">\s+<", "><", small).strip()


class _Tag:
    """Makes one tag of matplotlib's SVG smaller, and fit to stand in a page with others."""

    def __init__(self, drawing: str, salt: str) -> None:
        self._used = set(re.findall(r'(?:href="#|url\(#)([\w-]+)', drawing))
        self._salt = salt

    def __call__(self, match: re.Match[str]) -> str:
        tag = match.group()
        tag = re.sub(r' id="([\w.-]+)"', self._identity, tag)
        tag = re.sub(r"(href=\"#|url\(#)", rf"\g<1>{self._salt}", tag)
        tag = re.sub(r"; font-family: [^;\"]*| transform=\"rotate\(-0 [^\"]*\"", "", tag)
        tag = re.sub(r"(\d\.\d\d)\d+", r"\1", tag)
        for name, light in LIGHT.items():
            tag = tag.replace(light, f"var(--{name})")
        return re.sub(r"\s+", " ", tag)

    def _identity(self, match: re.Match[str]) -> str:
        name = match.group(1)
        return f' id="{self._salt}{name}"' if name in self._used else ""
