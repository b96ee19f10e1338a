"""The section on weights: their values, what of them is clipped, and their scales."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from onnxq.core.plan import Group, QuantPlan, QuantSpec
from onnxq.pipelines.report.blocks import (
    Blocks,
    Cell,
    Column,
    Folded,
    Paragraph,
    Span,
    Table,
    number,
    text,
)
from onnxq.pipelines.report.chart import relative, spread
from onnxq.pipelines.report.evidence.weight_values import REACH, WeightValues
from onnxq.pipelines.report.report import Report
from onnxq.pipelines.report.sections.calibration import format_of
from onnxq.pipelines.report.sections.plan import LONG

Scales = dict[str, NDArray[np.float64]]


def weights(report: Report) -> Blocks:
    """Yield the number of biases, and a table with a row for each quantized constant."""
    plan = report.plan
    constants = [group for group in plan.groups.values() if group.constant]
    if not constants:
        yield from _stored(plan)
        return
    scales = {g.name: plan.params[g.name].scale.reshape(-1).astype(np.float64) for g in constants}
    biases = f" {len(plan.biases)} biases are int32." if plan.biases else ""
    yield Paragraph(f"{len(constants)} constants.{biases} {_LEGEND}", "quiet")
    values = report.measured.weights or {}
    columns = (*_COLUMNS[:2], *(_VALUES if values else ()), *_COLUMNS[2:])
    yield Table(columns, _rows(constants, scales, values), "weights")


def _stored(plan: QuantPlan) -> Blocks:
    """Yield the formats of weights that belong to no group."""
    if not plan.stored_weights:
        yield Paragraph("No weights were quantized.")
        return
    kinds = {**plan.integer_nodes, **{name: node.op_type for name, node in plan.float_nodes.items()}}
    yield Paragraph("Scales are stored beside the weights.", "quiet")
    counts = Counter(str(weights) for weights in plan.stored_weights.values())
    formats = [[text(form), number(count, "{}")] for form, count in counts.most_common()]
    yield Table(_FORMATS, formats, "formats")
    rows = [[text(name), text(kinds[name]), text(str(form))] for name, form in plan.stored_weights.items()]
    yield Folded(f"{len(rows)} nodes", Table(_STORED, rows, "weights"), is_open=len(rows) <= LONG)


def _rows(constants: list[Group], scales: Scales, values: Mapping[str, WeightValues]) -> Iterator[list[Cell]]:
    ends = min(s.min() for s in scales.values()), max(s.max() for s in scales.values())
    for group in constants:
        own = scales[group.name]
        low, middle, high = float(own.min()), float(np.median(own)), float(own.max())
        yield [
            Cell((Span(", ".join(group.tensors), "code"),)),
            text(_format(group.spec)),
            *(_values(values.get(group.name)) if values else ()),
            number(len(own), "{}"),
            Cell((spread(own, ends, f"scales {low:.4g} to {high:.4g}"),)),
            *(number(value) for value in (low, middle, high)),
            number(high / low, "{:.3g} ×"),
        ]


def _values(found: WeightValues | None) -> list[Cell]:
    """The histogram of the values, their ends, and the share that is clipped."""
    if found is None:
        return [text("–"), text("–")]
    told = f"values {found.low:.4g} to {found.high:.4g}"
    drawn = relative(found.counts, REACH, told)
    return [
        Cell((drawn, Span(told, "small"))),
        number(found.clipped, "{:.3%}" if found.clipped else "{:.0%}"),
    ]


def _format(spec: QuantSpec) -> str:
    place = "" if spec.axis is None else f", axis {spec.axis}"
    return format_of(spec) + place + ("" if spec.block_size is None else f", blocks of {spec.block_size}")


_FORMATS = (Column("weights"), Column("nodes", numbers=True))
_STORED = (Column("node"), Column("operator"), Column("weights"))

_VALUES = (
    Column(
        "values",
        "the values, each over the greatest that the integers of its channel represent, counted on a "
        "logarithmic scale; the light band is what they represent, what lies beyond is clipped",
    ),
    Column("clipped", "share of values more than half a step outside the range", numbers=True),
)

_LEGEND = (
    "Charts of scales show their distribution per channel or block, on one logarithmic axis for all rows."
)

_COLUMNS = (
    Column("tensor"),
    Column("format"),
    Column("scales", "one per channel along the axis, per block, or one per tensor", numbers=True),
    Column("distribution", _LEGEND),
    Column("least", numbers=True),
    Column("median", numbers=True),
    Column("greatest", numbers=True),
    Column(
        "ratio",
        "greatest over least: the loss of resolution of small channels with one scale per tensor",
        numbers=True,
    ),
)
