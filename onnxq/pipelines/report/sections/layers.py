"""The section on the error by layer: the SQNR of each quantized tensor along the graph, and what to try."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isfinite, nan

from onnxq.pipelines.report.activations import activations
from onnxq.pipelines.report.blocks import (
    Blocks,
    Cell,
    Column,
    Drawing,
    Folded,
    Paragraph,
    Span,
    Table,
    number,
    text,
)
from onnxq.pipelines.report.evidence.layer_error import TensorError
from onnxq.pipelines.report.evidence.remedies import Facts, explained, facts_of
from onnxq.pipelines.report.plots import Axes, Point, plot
from onnxq.pipelines.report.report import Report

WORST = 10
"""How many tensors are named with what to try."""

CEILING = 120.0
"""SQNR above this, in dB, is drawn here: the tensor is exact to the last bits of float32."""


def layers(report: Report) -> Blocks:
    """Yield the curve, the worst tensors, those where most is lost, and all of them."""
    errors = report.measured.layers
    if not errors:
        why = report.measured.missing.get("layers", "no tensor of the float model is in the quantized one")
        yield Paragraph(f"Not measured: {why}.")
        return
    worst = _first(errors, [each.sqnr for each in errors])
    lost = _first(errors, [-each.lost for each in errors])
    yield Paragraph(_LEGEND, "quiet")
    yield Drawing(plot(_points(errors, worst), Axes("quantized tensors, in graph order", "SQNR, dB")))
    told = _told(report, errors)
    yield Paragraph(f"The {len(worst)} worst tensors:")
    yield Table(_NAMED, [_advised(told[i]) for i in worst], "worst tensors")
    yield Paragraph(f"The {len(lost)} tensors where most is lost against the inputs of their node:")
    yield Table(_NAMED, [_advised(told[i]) for i in lost], "tensors with losses")
    rows = ([number(i + 1, "{}"), *_figures(each)] for i, each in enumerate(errors))
    every = Table((Column("place", "in graph order", numbers=True), *_FIGURES), rows, "tensors")
    yield Folded(f"All {len(errors)} tensors", every, is_open=False)


def _first(errors: Sequence[TensorError], keys: Sequence[float]) -> list[int]:
    return sorted(range(len(errors)), key=lambda i: keys[i])[:WORST]


def _told(report: Report, errors: Iterable[TensorError]) -> list[Facts]:
    ranges = {
        tensor: each for each in activations(report.plan, report.statistics) for tensor in each.group.tensors
    }
    return [facts_of(each, report.plan, report.request.config, ranges) for each in errors]


def _points(errors: Sequence[TensorError], worst: Sequence[int]) -> list[Point]:
    return [
        Point(
            x=i + 1,
            y=max(min(each.sqnr, CEILING), -CEILING),
            told=f"{each.tensor}: {each.sqnr:.1f} dB ({each.op_type or 'input'} {each.node})",
            marked=i in worst,
        )
        for i, each in enumerate(errors)
    ]


def _advised(facts: Facts) -> list[Cell]:
    cause, advice = explained(facts)
    return [*_figures(facts.error), text(cause), text(advice)]


def _figures(error: TensorError) -> list[Cell]:
    made = f"{error.op_type} {error.node}" if error.node else "an input of the model"
    return [
        Cell((Span(error.tensor, "code"), Span(made, "small"))),
        _decibels(error.sqnr),
        _decibels(error.inherited),
        _decibels(error.rounding),
        number(error.spread, "{:.3g} ×"),
    ]


def _decibels(value: float) -> Cell:
    if isfinite(value):
        return number(value, "{:.1f} dB")
    return Cell((Span("exact" if value > 0 else "nothing right"),), value if value == value else nan)


_LEGEND = (
    "Each dot is a tensor that is quantized, or that a quantized node computes, against the float model on a "
    "few held-out samples. Errors of earlier layers are in it: a fall shows where accuracy is lost. Red: the "
    "worst ones."
)

_FIGURES = (
    Column("tensor"),
    Column("SQNR", "power of the tensor over power of its error", numbers=True),
    Column(
        "worst input",
        "the SQNR of the worst tensor that its node reads, also through float nodes",
        numbers=True,
    ),
    Column("own rounding", "the SQNR if only its own rounding and clipping is counted", numbers=True),
    Column("channels", "largest magnitude of a channel over that of the median channel", numbers=True),
)
_NAMED = (*_FIGURES, Column("because"), Column("what to try"))
