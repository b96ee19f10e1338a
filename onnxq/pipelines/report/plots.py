"""Draw plots with axes as SVG inside the page: a curve along the graph, and accuracy over cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

WIDTH, HEIGHT, MARGIN = 900, 260, 48

MANY = 400
"""Of so many points only the marked ones get a dot."""


@dataclass(frozen=True)
class Point:
    """A point of a plot.

    Attributes:
        x, y: where it is.
        told: its tooltip.
        marked: whether it stands out.
        label: what is written beside it; empty for nothing.
    """

    x: float
    y: float
    told: str
    marked: bool = False
    label: str = ""


@dataclass(frozen=True)
class Axes:
    """The names of the axes with their units, and whether the horizontal one counts.

    Attributes:
        across, up: the names.
        counts: whether the horizontal axis has whole numbers.
    """

    across: str
    up: str
    counts: bool = True


def plot(points: Sequence[Point], axes: Axes, joined: Sequence[Point] | None = None) -> Markup:
    """Draw points and a line; the drawing becomes as wide as the page allows.

    Args:
        points: at least one.
        axes: the names of the axes.
        joined: those of the points that the line joins, in its order; None: all.
    """
    left, right = _ends([point.x for point in points], room=0.0 if axes.counts else 0.06)
    low, high = _ends([point.y for point in points], room=0.08)

    def place(point: Point) -> tuple[float, float]:
        wide, tall = WIDTH - 1.5 * MARGIN, HEIGHT - 1.5 * MARGIN
        across, up = (point.x - left) / (right - left), (point.y - low) / (high - low)
        return MARGIN + across * wide, HEIGHT - MARGIN - up * tall

    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(place, points if joined is None else joined))
    shown = [point for point in points if point.marked or len(points) <= MANY]
    return Markup(
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(axes.up)} over {escape(axes.across)}">'
        f'<path class="axis" d="M{MARGIN} {MARGIN / 2:.0f}V{HEIGHT - MARGIN}H{WIDTH - MARGIN / 2:.0f}"/>'
        f"{''.join(_ticks(axes, (left, right), (low, high)))}"
        f'<text x="{WIDTH / 2:.0f}" y="{HEIGHT - 8}" text-anchor="middle">{escape(axes.across)}</text>'
        f'<text x="6" y="14">{escape(axes.up)}</text>'
        f'<polyline class="line" points="{line}"/>{_dots(shown, place)}</svg>'
    )


def _ends(values: Sequence[float], room: float) -> tuple[float, float]:
    span = max(values) - min(values)
    if not span:
        return min(values) - 0.5, max(values) + 0.5
    return min(values) - room * span, max(values) + room * span


def _ticks(axes: Axes, across: tuple[float, float], up: tuple[float, float]) -> Iterator[str]:
    for value in round_values(*across, least=1.0 if axes.counts else 0.0):
        x = MARGIN + (value - across[0]) / (across[1] - across[0]) * (WIDTH - 1.5 * MARGIN)
        yield f'<text x="{x:.0f}" y="{HEIGHT - MARGIN + 16}" text-anchor="middle">{value:.6g}</text>'
    for value in round_values(*up):
        y = HEIGHT - MARGIN - (value - up[0]) / (up[1] - up[0]) * (HEIGHT - 1.5 * MARGIN)
        yield f'<path class="grid" d="M{MARGIN} {y:.1f}H{WIDTH - MARGIN / 2:.0f}"/>'
        yield f'<text x="{MARGIN - 6}" y="{y + 4:.0f}" text-anchor="end">{value:.6g}</text>'


def round_values(low: float, high: float, least: float = 0.0) -> list[float]:
    """Choose three to eight values between two limits, multiples of 1, 2 or 5 times a power of ten.

    Args:
        low: the lower limit.
        high: the upper limit, which is greater.
        least: the least distance between two values.
    """
    power = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = max(power * max(f for f in (1, 2, 5) if power * f <= (high - low) / 3.5), least)
    return [step * place for place in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _dots(points: Sequence[Point], place: Callable[[Point], tuple[float, float]]) -> str:
    """Draw the marked points last, on top of the others."""
    drawn = []
    for point in sorted(points, key=lambda point: point.marked):
        x, y = place(point)
        end = x > WIDTH * 0.75
        start = f'<text x="{x - 7 if end else x + 7:.1f}" y="{y - 7:.1f}"{_END * end}>'
        text = f"{start}{escape(point.label)}</text>"
        drawn.append(
            f'<circle class="{"mark" if point.marked else "dot"}" cx="{x:.1f}" cy="{y:.1f}" '
            f'r="{4.5 if point.marked else 2.5}"><title>{escape(point.told)}</title></circle>'
            f"{text * bool(point.label)}"
        )
    return "".join(drawn)


_END = ' text-anchor="end"'
