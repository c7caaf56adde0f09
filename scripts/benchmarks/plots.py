"""Plots of figures: lines where something is varied, bars elsewhere, one panel per unit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure as Canvas

from .rounds import Figure

WIDTH = 8.0
LINES_HEIGHT = 3.2
LINE_MARKERS = "osD^vPX*"
BAR = 0.14  # inches
WIDE_RANGE = 20.0  # from which on an axis is logarithmic

STYLE = {
    "svg.hashsalt": "tiledwriter",  # the same figures give the same file
    "svg.fonttype": "none",
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def plot(figures: Sequence[Figure], file: Path) -> None:
    """Draw all of them into an SVG file."""
    panels: dict[tuple[str, str], list[Figure]] = {}
    for figure in figures:
        panels.setdefault((figure.unit, figure.along.quantity if figure.along else ""), []).append(figure)
    sides = list(dict.fromkeys(side for figure in figures for side in figure.values))
    heights = [LINES_HEIGHT if quantity else _height(some) for (_, quantity), some in panels.items()]
    with mpl.rc_context(STYLE):
        canvas = Canvas(figsize=(WIDTH, sum(heights)), layout="constrained")
        axes = canvas.subplots(len(panels), squeeze=False, height_ratios=heights)[:, 0]
        for axis, ((unit, quantity), some) in zip(axes, panels.items(), strict=True):
            if quantity:
                _lines(axis, some, sides)
                axis.set(xlabel=quantity, ylabel=unit)
            else:
                _bars(axis, some, sides)
                axis.set(xlabel=unit)
        canvas.savefig(file, format="svg", metadata={"Date": None})


def _height(figures: Sequence[Figure]) -> float:
    return 0.9 + BAR * sum(len(figure.values) + 1 for figure in figures)


def _bars(axis: Any, figures: Sequence[Figure], sides: Sequence[str]) -> None:
    """Medians, from the fastest to the slowest round; one group per figure, from top to bottom."""
    place, places = 0, []
    drawn = set()
    for figure in figures:
        first = place
        for side in figure.values:
            label = side if side not in drawn else None
            drawn.add(side)
            median = figure.median(side)
            low, high = median - min(figure.values[side]), max(figure.values[side]) - median
            axis.barh(place, median, xerr=[[low], [high]], color=f"C{sides.index(side)}", label=label, ecolor="0.4")
            place += 1
        places.append((first + place - 1) / 2)
        place += 1
    axis.set_yticks(places, [figure.title for figure in figures])
    axis.set_ylim(place - 0.5, -1)  # from top to bottom
    medians = [figure.median(side) for figure in figures for side in figure.values]
    if max(medians) > WIDE_RANGE * min(medians) > 0:
        axis.set_xscale("log")
    _legend(axis)


def _lines(axis: Any, figures: Sequence[Figure], sides: Sequence[str]) -> None:
    """Medians along what is varied: a colour per thing measured, a marker per side."""
    lines: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for figure in figures:
        assert figure.along is not None
        for side in figure.values:
            lines.setdefault((figure.what, side), []).append((figure.along.value, figure.median(side)))
    whats = list(dict.fromkeys(what for what, _ in lines))
    for (what, side), points in lines.items():
        label = what if len(sides) == 1 else f"{what}: {side}"
        marker = LINE_MARKERS[sides.index(side) % len(LINE_MARKERS)]
        axis.plot(*zip(*points, strict=True), color=f"C{whats.index(what)}", marker=marker, label=label)
    axis.set_xscale("log")
    medians = [median for points in lines.values() for _, median in points]
    if max(medians) > WIDE_RANGE * min(medians) > 0:
        axis.set_yscale("log")
    else:
        axis.set_ylim(bottom=0)
    _legend(axis)


def _legend(axis: Any) -> None:
    axis.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2)
