"""The section on calibration: the range of each activation, and the statistics that it is based on."""

from __future__ import annotations

import os
from collections.abc import Iterator

from calibrators.errors import shorten
from calibrators.statistics.stability import GREW, Stability
from calibrators.statistics.tensor import Extreme
from onnxq.core.plan import QuantSpec
from onnxq.pipelines.report.activations import Activation, activations
from onnxq.pipelines.report.blocks import (
    Blocks,
    Cell,
    Column,
    Lines,
    Paragraph,
    Piece,
    Span,
    Table,
    number,
    text,
)
from onnxq.pipelines.report.chart import distribution
from onnxq.pipelines.report.report import Report


def calibration(report: Report) -> Blocks:
    """Yield whether there was enough data, and a table with a row for each group of tensors."""
    every = list(activations(report.plan, report.statistics))
    if not every:
        yield Paragraph(_NO_RANGES[report.request.config.mode])
        return
    yield _introduction(report, len(every))
    yield from _stability(report)
    if report.statistics is None:
        yield Table(_PLAIN, map(_plain, every), "ranges")
        return
    folder = report.request.data
    rows = (
        [*_plain(each)[:1], Cell((_chart(each),)), *_plain(each)[1:], *_grounds(each, folder)]
        for each in every
    )
    yield Paragraph(_LEGEND, "quiet")
    yield Table((_PLAIN[0], Column("values", _LEGEND), *_PLAIN[1:], *_GROUNDS), rows, "ranges")


def _introduction(report: Report, count: int) -> Paragraph:
    if report.statistics is None:
        return Paragraph(
            f"The {count} ranges come from {report.request.config.from_table}: there are no statistics, so "
            "there are no histograms, no shares of clipped values, and no check for enough samples."
        )
    method, samples = report.request.config.method, report.statistics.samples
    synthetic = " SYNTHETIC" if report.request.synthetic else ""
    return Paragraph(f"{count} ranges, chosen by {method}, from {samples}{synthetic} samples.")


def _stability(report: Report) -> Blocks:
    if report.stability is None:
        return
    told = report.stability
    style = "note" if told.grown or told.outliers or not told.assessed else "quiet"
    texts = tuple(f"Ranges: {line}" if i == 0 else line for i, line in enumerate(told.sentences))
    yield Lines(texts, style)


def _plain(each: Activation) -> list[Cell]:
    return [
        Cell(tuple(_names(each))),
        number(each.low),
        number(each.high),
        number(float(each.params.scale)),
        number(int(each.params.zero_point), "{}"),
        text(format_of(each.group.spec)),
    ]


def _grounds(each: Activation, folder: str) -> list[Cell]:
    if each.seen is None or each.stability is None:
        reason = "fixed by the operator" if each.group.fixed is not None else "–"
        return [text("–"), text("–"), text(reason)]
    growth = each.stability.growth
    grew = number(growth, "{:.1%}")
    if growth is not None and growth > GREW:
        grew = Cell((Span(f"{growth:.1%}", "b"),), growth)
    return [
        number(each.clipped, "{:.2%}" if each.clipped else "{:.0%}"),
        grew,
        Cell(tuple(_setters(each.stability, folder)) or (Span("–"),)),
    ]


def _names(each: Activation) -> Iterator[Span]:
    others = [name for name in each.group.tensors if name != each.group.name]
    yield Span(each.group.name, "code")
    if others:
        yield Span(f"shared with {shorten(others, 2)}", "small", title=", ".join(others))
    if each.seen is not None and each.seen.nonfinite:
        yield Span(f"{each.seen.nonfinite} values were NaN or infinite", "small", "bad")


def _setters(stability: Stability, folder: str) -> Iterator[Span]:
    """Yield the samples that alone set an end; for the most important one, the range without it."""
    for which, end in {"low": stability.low, "high": stability.high}.items():
        if end:
            yield _setter(f"{which}: {_name(end, folder)}", end, stability)


def _setter(told: str, end: Extreme, stability: Stability) -> Span:
    alone = stability.alone if end == stability.setter else None
    without = f" ({alone:.0%} less without it)" if alone is not None and alone >= 0.005 else ""
    return Span(told + without, "small", title=end.name)


def _name(end: Extreme, folder: str) -> str:
    """Name a sample; for a file in the folder of the data, its path in that folder."""
    inside = end.name.startswith(folder + os.sep)
    return end.name[len(folder) + 1 :] if folder and inside else end.name or f"sample {end.number + 1}"


def _chart(each: Activation) -> Piece:
    if each.seen is None or not each.seen.count:
        return Span("–")
    ends = min(each.seen.low, each.low, 0.0), max(each.seen.high, each.high, 0.0)
    told = f"seen {each.seen.low:.4g} to {each.seen.high:.4g}, chosen {each.low:.4g} to {each.high:.4g}"
    return distribution(each.seen.histogram, ends, (each.low, each.high), told)


def format_of(spec: QuantSpec) -> str:
    """Describe a number format."""
    return f"{spec.dtype.name.lower()}{' symmetric' if spec.symmetric else ''}"


_NO_RANGES = {
    "static": "No activation is quantized, so there are no ranges.",
    "dynamic": "There are no ranges: they are computed at run time, from the data of each run.",
    "weight-only": "There are no ranges: activations stay float, only weights are quantized.",
}
"""Mode -> why there is nothing to show."""

_LEGEND = (
    "Charts count values on a logarithmic scale; the light band between the two lines is the chosen range, "
    "the tick below is zero."
)

_PLAIN = (
    Column("tensor"),
    Column("low", "the least value that the integers represent", numbers=True),
    Column("high", "the greatest value that the integers represent", numbers=True),
    Column("scale", "the step from one integer to the next", numbers=True),
    Column("zero", "the integer that represents zero", numbers=True),
    Column("format"),
)

_GROUNDS = (
    Column("clipped", "share of values more than half a step outside the range", numbers=True),
    Column("still grew", "share of the range that came with the last quarter of the samples", numbers=True),
    Column("set by", "samples that alone reached an end of the range; a dash if several did"),
)
