"""The section of the ranges of activations."""

from __future__ import annotations

import os

from calibrators.errors import shorten
from calibrators.statistics.stability import GREW, Stability
from calibrators.statistics.tensor import Extreme
from onnxq.core.plan import QuantSpec
from onnxq.pipelines.report.activations import Activation, activations
from onnxq.pipelines.report.chart import distribution
from onnxq.pipelines.report.markup import Cell, Column, Markup, element, joined, number, table
from onnxq.pipelines.report.report import Report


def calibration(report: Report) -> Markup:
    """Whether there was enough data, and a row for each group of tensors."""
    every = list(activations(report.plan, report.statistics))
    parts = [_introduction(report, len(every)), _stability(report)]
    if report.statistics is None:
        return joined([*parts, table(_PLAIN, map(_plain, every), "ranges")])
    folder = report.request.data
    rows = (
        [*_plain(each)[:1], Cell(_chart(each)), *_plain(each)[1:], *_grounds(each, folder)] for each in every
    )
    columns = (_PLAIN[0], Column("values seen", _LEGEND), *_PLAIN[1:], *_GROUNDS)
    return joined([*parts, element("p", _LEGEND, class_="quiet"), table(columns, rows, "ranges")])


def _introduction(report: Report, count: int) -> Markup:
    if report.statistics is None:
        return element(
            "p",
            f"The {count} ranges come from {report.request.config.from_table}: there are no statistics, so "
            "neither histograms, nor what was clipped, nor whether the samples were enough.",
        )
    method, samples = report.request.config.method, report.statistics.samples
    made_up = " MADE-UP" if report.request.synthetic else ""
    return element("p", f"{count} ranges, chosen by {method}, from {samples}{made_up} samples.")


def _stability(report: Report) -> Markup:
    if report.stability is None:
        return Markup()
    told = report.stability
    note = "note" if told.grown or told.outliers or not told.judged else "quiet"
    lines = (element("p", "Ranges: " if i == 0 else "", text) for i, text in enumerate(told.sentences))
    return element("div", *lines, class_=note)


def _plain(each: Activation) -> list[Cell]:
    return [
        Cell(_names(each)),
        number(each.low),
        number(each.high),
        number(float(each.params.scale)),
        number(int(each.params.zero_point), "{}"),
        Cell(format_of(each.group.spec)),
    ]


def _grounds(each: Activation, folder: str) -> list[Cell]:
    if each.seen is None or each.stability is None:
        reason = "fixed by the operator" if each.group.fixed is not None else "–"
        return [Cell("–"), Cell("–"), Cell(reason)]
    growth = each.stability.growth
    grew = (
        element("b", f"{growth:.1%}")
        if growth is not None and growth > GREW
        else number(growth, "{:.1%}").content
    )
    return [
        number(each.clipped, "{:.2%}" if each.clipped else "{:.0%}"),
        Cell(grew, growth),
        Cell(_setters(each.stability, folder)),
    ]


def _names(each: Activation) -> Markup:
    others = [name for name in each.group.tensors if name != each.group.name]
    parts = [element("code", each.group.name)]
    if others:
        parts.append(element("small", f"shared with {shorten(others, 2)}", title=", ".join(others)))
    if each.seen is not None and each.seen.nonfinite:
        parts.append(element("small", f"{each.seen.nonfinite} values were NaN or infinite", class_="bad"))
    return joined(parts)


def _setters(stability: Stability, folder: str) -> Markup:
    """Who alone set which end, and what would be without the one who matters most."""
    ends = {"low": stability.low, "high": stability.high}
    lines = [_setter(f"{which}: {_name(end, folder)}", end, stability) for which, end in ends.items() if end]
    return joined(lines) if lines else Markup("–")


def _setter(text: str, end: Extreme, stability: Stability) -> Markup:
    alone = stability.alone if end == stability.setter else None
    without = f" ({alone:.0%} less without it)" if alone is not None and alone >= 0.005 else ""
    return element("small", text + without, title=end.name or None)


def _name(end: Extreme, folder: str) -> str:
    """Of a sample; of files in the folder of the data, where in there."""
    inside = end.name.startswith(folder + os.sep)
    return end.name[len(folder) + 1 :] if folder and inside else end.name or f"sample {end.number + 1}"


def _chart(each: Activation) -> Markup:
    if each.seen is None or not each.seen.count:
        return Markup("–")
    ends = min(each.seen.low, each.low, 0.0), max(each.seen.high, each.high, 0.0)
    text = f"seen {each.seen.low:.4g} to {each.seen.high:.4g}, chosen {each.low:.4g} to {each.high:.4g}"
    return distribution(each.seen.histogram, ends, (each.low, each.high), text)


def format_of(spec: QuantSpec) -> str:
    """A number format in words."""
    return f"{spec.dtype.name.lower()}{' symmetric' if spec.symmetric else ''}"


_LEGEND = (
    "Charts count values on a logarithmic scale; the light band between the two lines is the range chosen, "
    "the tick below is zero."
)

_PLAIN = (
    Column("tensor"),
    Column("low", "the least number that the integers stand for", numbers=True),
    Column("high", "the greatest number that the integers stand for", numbers=True),
    Column("scale", "the step from one integer to the next", numbers=True),
    Column("zero", "the integer that stands for zero", numbers=True),
    Column("format"),
)

_GROUNDS = (
    Column("clipped", "values that lie more than half a step outside the range", numbers=True),
    Column("still grew", "share of the range that came with the last quarter of the samples", numbers=True),
    Column("set by", "samples that alone reached an end of the range; a dash where several did"),
)
