"""Draw small charts as SVG inside the page."""

from __future__ import annotations

from html import escape

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from calibrators.statistics.histogram import SIDE, Histogram

COLUMNS = 64
STEP = 3
"""Width of a column in SVG units; the chart is 64 x 3 wide."""
HEIGHT = 32

_NOTHING = 0.01
"""Counts are whole numbers; less than this is a rounding error of a difference of sums."""

Floats = NDArray[np.float64]


def cumulative(histogram: Histogram, ends: Floats) -> Floats:
    """Count the values below each of ``ends``; values are assumed to be spread evenly within a bin."""
    edges = histogram.width * np.arange(-SIDE, SIDE + 1)
    below: Floats = np.interp(ends, edges, np.concatenate([[0], histogram.counts.cumsum()]))
    return below


def distribution(
    histogram: Histogram, ends: tuple[float, float], chosen: tuple[float, float], text: str
) -> Markup:
    """Draw a histogram with logarithmic counts.

    Args:
        histogram: the counts.
        ends: the ends of the axis.
        chosen: the chosen range, which is marked.
        text: description of the chart for screen readers.
    """
    span = ends[1] - ends[0] or 1.0
    edges = np.array([-np.inf, *(ends[0] + span * np.linspace(0, 1, COLUMNS + 1)[1:-1]), np.inf])
    low, high, zero = ((x - ends[0]) / span * COLUMNS * STEP for x in (*chosen, 0.0))
    return _svg(_marks(low, high, zero), np.diff(cumulative(histogram, edges)), text)


def spread(values: Floats, ends: tuple[float, float], text: str) -> Markup:
    """Draw the distribution of positive values on a logarithmic axis.

    Args:
        values: the values, ``[N]``.
        ends: the ends of the axis.
        text: description of the chart for screen readers.
    """
    low, high = np.log(ends)
    counts, _ = np.histogram(np.log(values), COLUMNS, (low, max(high, low + 1e-6)))
    return _svg("", counts.astype(np.float64), text)


def relative(counts: Floats, reach: float, text: str) -> Markup:
    """Draw a histogram of values over the limits of their range, with logarithmic counts.

    Args:
        counts: ``[COLUMNS]``: the counts from ``-reach`` to ``reach``; the range is from -1 to 1.
        reach: the ends of the axis.
        text: description of the chart for screen readers.
    """
    whole = COLUMNS * STEP
    low, high = (whole * (1 + end / reach) / 2 for end in (-1, 1))
    return _svg(_marks(low, high, whole / 2), counts, text)


def _marks(low: float, high: float, zero: float) -> str:
    """Mark the chosen range, its ends, and zero."""
    return (
        f'<rect class="in" x="{low:.1f}" width="{high - low:.1f}" height="{HEIGHT}"/>'
        f'<path class="cut" d="M{low:.1f} 0v{HEIGHT}M{high:.1f} 0v{HEIGHT}"/>'
        f'<path class="zero" d="M{zero:.1f} {HEIGHT - 4}v4"/>'
    )


def _svg(marks: str, counts: Floats, text: str) -> Markup:
    size = f'width="{COLUMNS * STEP}" height="{HEIGHT}" viewBox="0 0 {COLUMNS * STEP} {HEIGHT}"'
    bars = f'<path class="bars" d="{_outline(counts)}"/>'
    return Markup(f'<svg {size} role="img" aria-label="{escape(text)}">{marks}{bars}</svg>')


def _outline(counts: Floats) -> str:
    """Make the path of the columns, with logarithmic heights; a column with any count is visible."""
    logs = np.log1p(np.where(counts < _NOTHING, 0, counts))
    heights = np.ceil(logs / (logs.max(initial=0) or 1) * (HEIGHT - 2)).astype(int)
    tops = HEIGHT - heights
    changes = np.flatnonzero(np.diff(tops)) + 1
    starts, ends = np.concatenate([[0], changes]), np.concatenate([changes, [len(tops)]])
    steps = "".join(f"V{tops[start]}H{STEP * end}" for start, end in zip(starts, ends, strict=True))
    return f"M0 {HEIGHT}{steps}V{HEIGHT}Z"
