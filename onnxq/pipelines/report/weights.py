"""The section on the scales of weights."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from onnxq.core.plan import Group, QuantSpec
from onnxq.pipelines.report.blocks import Blocks, Cell, Column, Paragraph, Span, Table, number, text
from onnxq.pipelines.report.calibration import format_of
from onnxq.pipelines.report.chart import spread
from onnxq.pipelines.report.report import Report

Scales = dict[str, NDArray[np.float64]]


def weights(report: Report) -> Blocks:
    """Yield the number of biases, and a table with a row for each quantized constant."""
    plan = report.plan
    constants = [group for group in plan.groups.values() if group.constant]
    if not constants:
        yield Paragraph("No weights were quantized.")
        return
    scales = {g.name: plan.params[g.name].scale.reshape(-1).astype(np.float64) for g in constants}
    biases = f" {len(plan.biases)} biases are int32." if plan.biases else ""
    yield Paragraph(f"{len(constants)} constants.{biases} {_LEGEND}", "quiet")
    yield Table(_COLUMNS, _rows(constants, scales), "weights")


def _rows(constants: list[Group], scales: Scales) -> Iterator[list[Cell]]:
    ends = min(s.min() for s in scales.values()), max(s.max() for s in scales.values())
    for group in constants:
        own = scales[group.name]
        low, middle, high = float(own.min()), float(np.median(own)), float(own.max())
        yield [
            Cell((Span(", ".join(group.tensors), "code"),)),
            text(_format(group.spec)),
            number(len(own), "{}"),
            Cell((spread(own, ends, f"scales {low:.4g} to {high:.4g}"),)),
            *(number(value) for value in (low, middle, high)),
            number(high / low, "{:.3g} ×"),
        ]


def _format(spec: QuantSpec) -> str:
    place = "" if spec.axis is None else f", axis {spec.axis}"
    return format_of(spec) + place + ("" if spec.block_size is None else f", blocks of {spec.block_size}")


_LEGEND = "Charts show the distribution of scales per channel or block, on one logarithmic axis for all rows."

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
