"""Numbers to inline SVG, one function a figure. Knows nothing of runs or files."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike, NDArray

from compass_ray.report.svg import FONT, LIGHT, PALETTE, axes_of, style, svg

_DASHES = ("solid", "dashed", "dotted")
_LINES = [name for name in PALETTE if name.startswith("line")]
LINE_STYLES = len(_LINES) * len(_DASHES)
"""As many lines can be told from each other."""

# Figures are drawn this wide (CSS pixels), so that on a phone their text shrinks by a fifth only.
WIDTH = 460
_MOST_POINTS = 400


def line_style(index: int) -> tuple[str, str]:
    """Palette name and CSS border style of the ``index``-th line, for a legend beside it."""
    return _LINES[index % len(_LINES)], _DASHES[index // len(_LINES) % len(_DASHES)]


def gap_bars(
    labels: Sequence[str], target: ArrayLike, before: ArrayLike, after: ArrayLike, *, label: str
) -> str:
    """One row a cluster: a wide bar after, a thin one before, a tick at the target.

    Args:
        labels: names of the clusters [C], C ≥ 1, drawn from top to bottom.
        target: wanted shares [C]; ``before`` and ``after`` likewise.
        label: what the figure shows, for those who do not see it.
    """
    rows_C = np.arange(len(labels))
    with style():
        figure, axes = _row_axes(labels, 18.0, "share of rows in the cluster (0 to 1)")
        axes.barh(rows_C, np.asarray(after), 0.7, color=LIGHT["after"], clip_on=False)
        axes.barh(rows_C, np.asarray(before), 0.26, color=LIGHT["before"], clip_on=False)
        axes.vlines(
            np.asarray(target),
            rows_C - 0.44,
            rows_C + 0.44,
            color=LIGHT["target"],
            linewidth=2.4,
            clip_on=False,
        )
        axes.set_xlim(0, 1.04 * _largest(target, before, after))
        return svg(figure, label)


def subject_bars(labels: Sequence[str], own: ArrayLike, picked: ArrayLike, *, label: str) -> str:
    """Two bars a subject: own rows and picked rows [S], S ≥ 1, with their counts."""
    rows_S = np.arange(len(labels))
    largest = _largest(own, picked)
    with style():
        figure, axes = _row_axes(labels, 30.0, "rows")
        for counts, offset, colour in ((own, -0.19, "before"), (picked, 0.19, "after")):
            counts_S = np.asarray(counts)
            axes.barh(rows_S + offset, counts_S, 0.34, color=LIGHT[colour], clip_on=False)
            for row, count in zip(rows_S, counts_S, strict=True):
                place = (count + 0.012 * largest, row + offset)
                axes.text(*place, f"{count:,}", va="center", color=LIGHT["muted"], fontsize=10.5)
        axes.set_xlim(0, 1.15 * largest)
        axes.xaxis.set_major_formatter(_thousands)
        axes.xaxis.get_major_locator().set_params(integer=True, nbins=5)
        return svg(figure, label)


def heat_map(
    sources: Sequence[str], targets: Sequence[str], counts_ST: ArrayLike, *, label: str
) -> str:
    """Counts of picked rows [S, T], source languages down, target languages across."""
    counts = np.asarray(counts_ST)
    named_T = [_shortened(name, 16) for name in targets]
    upright = len(named_T) > 5
    cell = 46.0 if upright else max(56.0, max(map(_text_width, named_T)) + 10)
    left = _label_room(sources) + 20  # for "picked from" beside the names
    top = 34 + (max(map(_text_width, named_T)) if upright else FONT)
    width, height = left + cell * len(named_T) + 12, top + 22 * len(sources) + 10
    with style():
        figure, axes = axes_of((width, height), left, 12, top, 10)
        for (row, column), count in np.ndenumerate(counts):
            _heat_cell(axes, row, column, int(count), float(count) / _largest(counts))
        axes.set(xlim=(0, len(named_T)), ylim=(len(sources), 0))
        axes.set_yticks(np.arange(len(sources)) + 0.5, [_shortened(name) for name in sources])
        axes.set_xticks(
            np.arange(len(named_T)) + 0.5, named_T, rotation=90 if upright else 0, ha="center"
        )
        axes.tick_params(length=0, labeltop=True, labelbottom=False, labelcolor=LIGHT["ink"])
        axes.set_xlabel("picked for")
        axes.xaxis.set_label_position("top")
        axes.set_ylabel("picked from")
        axes.spines[:].set_visible(False)
        return svg(figure, label)


def cluster_map(
    places_K2: ArrayLike,
    sizes: ArrayLike,
    colours: Sequence[str],
    strengths: ArrayLike,
    named: Mapping[int, str],
    *,
    label: str,
) -> str:
    """A dot a cluster: its area is how many rows it has, its strength how much its colour holds.

    Args:
        places_K2: where clusters lie [K, 2].
        sizes: rows of each [K].
        colours: names out of ``PALETTE`` [K].
        strengths: 0 to 1 [K].
        named: what is written on some of them.
        label: what the figure shows, for those who do not see it.
    """
    places, rows_K = np.asarray(places_K2), np.asarray(sizes, dtype=np.float64)
    shades = [
        (LIGHT[colour], 0.12 + 0.88 * float(strength))
        for colour, strength in zip(colours, np.asarray(strengths), strict=True)
    ]
    with style():
        figure, axes = axes_of((WIDTH, 340), 10, 10, 10, 10)
        areas_K = 260 * rows_K / _largest(rows_K) + 6
        axes.scatter(
            *places.T, s=areas_K, c=shades, edgecolors=LIGHT["muted"], linewidths=0.5, clip_on=False
        )
        for cluster, text in named.items():
            axes.text(*places[cluster], text, ha="center", va="center", fontsize=10)
        axes.set(xticks=[], yticks=[])
        axes.margins(0.06)
        axes.spines[:].set_visible(False)
        return svg(figure, label)


def choice_curve(ks: ArrayLike, scores: ArrayLike, chosen: int, measure: str, *, label: str) -> str:
    """The measure over the numbers of clusters that were tried, with the one chosen marked."""
    ks_P, scores_P = np.asarray(ks), np.asarray(scores)
    with style():
        figure, axes = axes_of((WIDTH, 220), 56, 14, 10, 44)
        axes.plot(ks_P, scores_P, "o-", color=LIGHT["after"], markersize=5)
        axes.axvline(chosen, color=LIGHT["target"], linestyle="dotted")
        axes.set_xlabel("clusters")
        axes.set_ylabel(measure)
        axes.grid(axis="y")
        return svg(figure, label)


Curves = Mapping[str, tuple[ArrayLike, ArrayLike]]


def loss_lines(curves: Curves, held_out: Curves, *, label: str) -> str:
    """Training loss over steps, one line a name: pale as it was, strong as smoothed.

    A name that is in ``held_out``, too, gets a ring at each validation loss.
    """
    with style():
        figure, axes = axes_of((WIDTH, 300), 52, 14, 10, 44)
        for index, (name, (steps, losses)) in enumerate(curves.items()):
            colour, dash = line_style(index)
            steps_N, losses_N = np.asarray(steps), np.asarray(losses, dtype=np.float64)
            every = slice(None, None, -(-len(steps_N) // _MOST_POINTS) or 1)
            pale = {"color": LIGHT[colour], "linestyle": dash, "alpha": 0.3, "linewidth": 0.9}
            axes.plot(steps_N[every], losses_N[every], **pale)
            strong = {**pale, "alpha": 1.0, "linewidth": 2.0}
            axes.plot(steps_N[every], smoothed(losses_N)[every], **strong)
            if name in held_out:
                ring = {"facecolors": "none", "edgecolors": LIGHT[colour], "s": 28, "zorder": 3}
                axes.scatter(*held_out[name], **ring)
        axes.set_xlabel("training step")
        axes.set_ylabel("loss (nats a token)")
        axes.xaxis.set_major_formatter(_thousands)
        axes.grid(axis="y")
        axes.margins(x=0.02)
        return svg(figure, label)


def drift_lines(
    divergence: ArrayLike, threshold: ArrayLike, drifted: Sequence[bool], *, label: str
) -> str:
    """Divergence of each window of usage beside its threshold; windows that drifted ringed."""
    with style():
        figure, axes = axes_of((WIDTH, 220), 52, 14, 10, 44)
        numbers_N = np.arange(1, len(drifted) + 1)
        divergence_N = np.asarray(divergence, dtype=np.float64)
        threshold_N = np.asarray(threshold, dtype=np.float64)
        before, after = {"color": LIGHT["before"]}, {"color": LIGHT["after"]}
        axes.step(numbers_N, threshold_N, where="mid", linestyle="dashed", **before)
        axes.plot(numbers_N, divergence_N, marker="o", markersize=3, linewidth=1.6, **after)
        rings = np.flatnonzero(drifted)
        ring = {"marker": "o", "s": 70, "facecolors": "none", "edgecolors": LIGHT["target"]}
        axes.scatter(numbers_N[rings], divergence_N[rings], linewidths=1.8, **ring)
        axes.set_xlabel("window")
        axes.set_ylabel("divergence (bits)")
        axes.set_ylim(bottom=0)
        axes.grid(axis="y")
        return svg(figure, label)


def accuracy_intervals(
    labels: Sequence[str],
    base: ArrayLike,
    adapter: ArrayLike,
    chance: ArrayLike,
    *,
    label: str,
) -> str:
    """A dot and an interval for the base model and for the adapter, one row a language.

    Args:
        labels: names of the rows [R], R ≥ 1.
        base: value, low and high [R, 3], NaN where the base model was not measured.
        adapter: value, low and high [R, 3].
        chance: accuracy of guessing [R], NaN where it is not known.
        label: what the figure shows, for those who do not see it.
    """
    base_R3, adapter_R3 = np.asarray(base, float), np.asarray(adapter, float)
    chance_R = np.asarray(chance, float)
    with style():
        figure, axes = _row_axes(labels, 34.0, "accuracy (share of items answered correctly)")
        for values_R3, offset, colour in (
            (base_R3, -0.16, "before"),
            (adapter_R3, 0.16, "after"),
        ):
            for row in np.flatnonzero(np.isfinite(values_R3[:, 0])):
                value, low, high = values_R3[row]
                axes.plot([low, high], [row + offset] * 2, color=LIGHT[colour], linewidth=2)
                axes.plot([value], [row + offset], "o", color=LIGHT[colour], markersize=7)
        known = np.flatnonzero(np.isfinite(chance_R))
        axes.vlines(
            chance_R[known], known - 0.4, known + 0.4, color=LIGHT["muted"], linestyle="dotted"
        )
        seen = np.concatenate([base_R3.ravel(), adapter_R3.ravel(), chance_R])
        axes.set_xlim(max(0.0, np.nanmin(seen) - 0.05), min(1.0, np.nanmax(seen) + 0.05))
        return svg(figure, label)


def share(value: float | None) -> str:
    """Three decimals, a true minus; a dash for what was not measured."""
    if value is None or not np.isfinite(value):
        return "–"
    return f"{value:.3f}".replace("-", "−")


def clean(text: str) -> str:
    """One line, without control characters, which neither SVG nor HTML may hold."""
    kept = (" " if unicodedata.category(character) == "Cc" else character for character in text)
    return " ".join("".join(kept).split())


def columns(text: str) -> int:
    """Width in half-width characters: those of Chinese, Japanese and Korean count twice."""
    return sum(1 + (unicodedata.east_asian_width(character) in "WF") for character in text)


def smoothed(values: ArrayLike) -> NDArray[np.float64]:
    """Centred moving mean over about a fifteenth of the values [N]; shorter at the ends."""
    values_N = np.asarray(values, dtype=np.float64)
    half = max(1, len(values_N) // 30)
    sums = np.concatenate([[0.0], np.cumsum(values_N)])
    starts = np.maximum(np.arange(len(values_N)) - half, 0)
    ends = np.minimum(np.arange(len(values_N)) + half + 1, len(values_N))
    means: NDArray[np.float64] = (sums[ends] - sums[starts]) / (ends - starts)
    return means


def _heat_cell(axes: Any, row: int, column: int, count: int, strength: float) -> None:
    """The colour says how many; a cell with none keeps a faint frame of the grid."""
    shade = 0.06 + 0.94 * strength if count else 0.03
    face = (LIGHT["after"], shade)
    place = (column + 0.02, row + 0.04)
    axes.add_patch(Rectangle(place, 0.96, 0.92, facecolor=face, linewidth=0, clip_on=False))
    axes.text(
        column + 0.5,
        row + 0.52,
        f"{count:,}",
        ha="center",
        va="center",
        color=LIGHT["ink" if count else "muted"],
        fontsize=11,
    )


def _thousands(value: float, _position: int) -> str:
    return f"{value:,.0f}" if value == round(value) else f"{value:,g}"


def _largest(*values: ArrayLike) -> float:
    """Largest of all values; 1 where all are 0, for the sake of axes and divisions."""
    return float(max(np.max(np.asarray(some)) for some in values)) or 1.0


def _row_axes(labels: Sequence[str], row_height: float, unit: str) -> tuple[Figure, Any]:
    """Axes with one named row for each label, the first on top, and a unit below."""
    height = row_height * len(labels) + 50
    figure, axes = axes_of((WIDTH, height), _label_room(labels), 14, 6, 44)
    axes.set_yticks(range(len(labels)), [_shortened(text) for text in labels])
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    axes.set_xlabel(unit, loc="left")
    return figure, axes


def _label_room(labels: Sequence[str]) -> float:
    return max(_text_width(_shortened(text)) for text in labels) + 12


def _text_width(text: str) -> float:
    """About the width in CSS pixels; the reader's font decides, and the page lets it overflow."""
    wide = columns(text) - len(text)
    return FONT * (0.5 * (len(text) - wide) + 1.05 * wide)


def _shortened(text: str, most: int = 26) -> str:
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"
