"""Compute scale and zero point of every group of a plan from statistics and weights; no model is run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial, reduce
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

import calibrators.errors
from calibrators.collect import processors
from calibrators.grid import Grid
from calibrators.methods import CALIBRATORS
from calibrators.methods.calibrator import Calibrator
from calibrators.methods.flat_end import useful_low
from calibrators.methods.percentile import percentile
from calibrators.statistics import TensorStatistics
from onnxq.calibration.tables.table import Encoding, Table
from onnxq.calibration.weight_scale import refine_scale
from onnxq.core.config import QuantConfig
from onnxq.core.errors import CalibrationError, ModelError
from onnxq.core.numerics import grid_of, params_from_range, usable_scale, weight_range
from onnxq.core.parallel import in_order
from onnxq.core.plan import Group, QuantParams, QuantPlan, QuantSpec
from onnxq.graph.nodes import constant_value

_BIAS_BITS = 24
"""Bits for the bias of a dead channel: as many as the mantissa of a float32 has."""

ROOM = 2.0
"""The range of 16-bit activations, as a multiple of the one that was seen: one bit."""

FINE = 2**15
"""The number of levels above which a grid has that room."""

_LARGEST_BIAS = 2.0**30
"""The largest int32 bias: half of the range of an int32 sum, the other half is left for the products."""


QParamSource: TypeAlias = Callable[[Group], QuantParams]
"""A function that computes the parameters of a group of activations."""

NOTHING: Mapping[str, QuantParams] = MappingProxyType({})


def compute_qparams(
    model: ir.Model, plan: QuantPlan, source: QParamSource, known: Mapping[str, QuantParams] = NOTHING
) -> QuantPlan:
    """Add parameters to ``plan``.

    A weight scale with which an int32 bias would overflow is raised, also one in ``known``.

    Args:
        model: the model that the plan was made for; it holds the weights.
        plan: the plan.
        source: gives the parameters of activations.
        known: parameters by group name that are already known; they take precedence.

    Raises:
        CalibrationError: ``source`` has no data for a tensor of the plan.
    """

    def params_of(group: Group) -> QuantParams:
        if group.name in known:
            return known[group.name]
        if group.constant:
            return weight_params(model, group)
        return source(group) if group.fixed is None else params_from_range(*group.fixed, group.spec)

    found = in_order(params_of, plan.groups.values(), processors())
    return plan.with_params(_fit_biases(model, plan, dict(zip(plan.groups, found, strict=True))))


def from_statistics(statistics: Mapping[str, TensorStatistics], calibrator: Calibrator) -> QParamSource:
    """Make a source that applies ``calibrator`` to the joined statistics of a group's observed tensors.

    The source raises CalibrationError if ``statistics`` lack a tensor, or never saw a finite number in it.
    """
    return partial(_from_statistics, statistics, calibrator)


def calibrator(config: QuantConfig) -> Calibrator:
    """The calibrator that ``config`` selects to choose ranges."""
    return _named(config.method, config.percentile)


def _named(method: str, share: float) -> Calibrator:
    """The calibrator of this name; ``share`` of the values is kept by the one called percentile."""
    if method == "percentile":
        return partial(percentile, percentile=share)
    return _auto if method == "auto" else CALIBRATORS[method]


def _auto(statistics: TensorStatistics, grid: Grid, averaged: int = 1, /) -> tuple[float, float]:
    """Choose a range as `auto` does; with 16 bits one bit of it is room for values that were not seen.

    Rounding to 15 bits is far below the noise of 8-bit weights. Values beyond the range are clipped, and that
    is all the noise that such activations make.
    """
    low, high = CALIBRATORS["auto"](statistics, grid, averaged)
    room = ROOM if grid.levels > FINE else 1.0
    return low * room, high * room


def from_table(table: Table, plan: QuantPlan) -> QParamSource:
    """Make a source that takes the parameters from a calibration table.

    Where the table has parameters in the group's number format, they are taken unchanged. Else they are
    computed from the range in the table.

    Raises:
        CalibrationError: the table names no tensor of a group.
    """
    needed = [g for g in plan.groups.values() if not g.constant and g.fixed is None]
    missing = [group for group in needed if not _encodings(table, group)]
    if missing:
        raise CalibrationError(
            f"the table lacks tensor {missing[0].name!r}, and {len(missing)} of {len(needed)} in all: it was "
            "made for another model or with other options, or it names tensors differently"
        )
    return partial(_from_table, table)


def check_weights(model: ir.Model, plan: QuantPlan) -> None:
    """Check before the work that all weights and biases of the plan can be quantized.

    Raises:
        ModelError: one holds NaN or infinite values.
    """
    weights = [tensor for group in plan.groups.values() if group.constant for tensor in group.tensors]
    for name in dict.fromkeys((*weights, *(point.tensor for point in plan.biases))):
        if not np.isfinite(_constant(model, name)).all():
            raise ModelError(
                f"weight {name!r} holds NaN or infinite values: repair the model, or keep the nodes that "
                "read it in float (--exclude)"
            )


def ranges(
    plan: QuantPlan, statistics: Mapping[str, TensorStatistics], calibrator: Calibrator
) -> dict[str, tuple[float, float]]:
    """Compute the ranges that the plan's parameters are computed from.

    Args:
        plan: the plan.
        statistics: the statistics of each observed tensor.
        calibrator: chooses the ranges.

    Returns:
        (low, high) by group name, for each group whose range ``calibrator`` chooses.

    Raises:
        CalibrationError: ``statistics`` lack a tensor, or never saw a finite number in it.
    """
    groups = (group for group in plan.groups.values() if group.observed_tensors)
    return {group.name: _range(statistics, calibrator, group) for group in groups}


def _from_statistics(
    statistics: Mapping[str, TensorStatistics], calibrator: Calibrator, group: Group
) -> QuantParams:
    return params_from_range(*_range(statistics, calibrator, group), group.spec, group.bounds)


def _range(
    statistics: Mapping[str, TensorStatistics], calibrator: Calibrator, group: Group
) -> tuple[float, float]:
    missing = [name for name in group.observed_tensors if name not in statistics]
    if missing:
        raise CalibrationError(
            f"the statistics lack tensor {missing[0]!r}: they were made for another model or with other "
            "options; calibrate again"
        )
    calibrator = calibrator if group.method is None else _named(group.method, group.percentile)
    joined = reduce(TensorStatistics.join, (statistics[name] for name in group.observed_tensors))
    try:
        grid, useful = grid_of(group.spec), joined.clipped(*group.bounds)
        if group.flat is not None:
            useful = useful.clipped(useful_low(useful, grid, group.flat), np.inf)
        return calibrator(useful, grid, group.averaging_window)
    except calibrators.errors.CalibrationError as error:
        raise CalibrationError(f"tensor {group.name!r}: {error}") from error


def _encodings(table: Table, group: Group) -> list[Encoding]:
    """The table's encodings of the observed tensors, or else of any that share their parameters."""
    names = dict.fromkeys((*group.observed_tensors, *group.tensors))
    known = {name: table.activations[name].whole() for name in names if name in table.activations}
    return [known[name] for name in group.observed_tensors if name in known] or list(known.values())


def _from_table(table: Table, group: Group) -> QuantParams:
    encodings = _encodings(table, group)
    decided = [_decided(encoding, group) for encoding in encodings]
    first = decided[0]
    if first is not None and all(each is not None and _equal(each, first) for each in decided):
        return first
    low, high = min(float(e.low) for e in encodings), max(float(e.high) for e in encodings)
    return params_from_range(low, high, group.spec, group.bounds)


def _decided(encoding: Encoding, group: Group) -> QuantParams | None:
    """The parameters in the table, if the group can take them unchanged; else None."""
    low, high = group.bounds
    if group.spec.symmetric or (low <= encoding.low and encoding.high <= high):
        params = encoding.exact(group.spec)
        return params if params is None or _is_written(params, group.spec) else None
    return None


def _is_written(params: QuantParams, spec: QuantSpec) -> bool:
    """Whether the format can represent these scales."""
    return bool((params.scale == usable_scale(params.scale, spec)).all())


def _equal(one: QuantParams, other: QuantParams) -> bool:
    return bool(one.scale == other.scale and one.zero_point == other.zero_point)


def weight_params(model: ir.Model, group: Group) -> QuantParams:
    """Compute the parameters of the constant ``group`` from its values in ``model``."""
    values = _constant(model, group.tensors[0])
    params = params_from_range(*weight_range(values, group.spec), group.spec)
    exact = group.spec.power_of_two or group.method == "absmax"
    return params if exact else refine_scale(values, params, group.spec)


def _constant(model: ir.Model, name: str) -> NDArray[np.generic]:
    value = constant_value(model.graph.initializers[name])
    assert value is not None
    return value


def _fit_biases(
    model: ir.Model, plan: QuantPlan, params: Mapping[str, QuantParams]
) -> dict[str, QuantParams]:
    """Raise weight scales where an int32 bias could not be stored otherwise.

    A bias is stored in steps of input scale x weight scale. If all weights of a channel are zero, any
    scale suits them, and it is chosen so that the bias has 24 bits. A channel with tiny weights and a large
    bias gets the smallest scale at which the bias does not overflow.
    """
    largest: dict[str, NDArray[np.float64]] = {}
    for point in plan.biases:
        channels = params[point.weight_group].scale.shape
        bias = np.abs(_constant(model, point.tensor).astype(np.float64)).reshape(-1)
        bias = np.broadcast_to(bias, channels) if channels else bias.max()
        steps = bias / params[point.input_group].scale
        largest[point.weight_group] = np.maximum(largest.get(point.weight_group, 0.0), steps)
    fitted = {name: _fit_bias(model, plan.groups[name], params[name], s) for name, s in largest.items()}
    return {**params, **fitted}


def _fit_bias(model: ir.Model, weight: Group, params: QuantParams, steps: NDArray[np.float64]) -> QuantParams:
    """Fit the scale to ``steps``: the largest bias in input scales, in the shape of the weight scale."""
    low, high = weight_range(_constant(model, weight.tensors[0]), weight.spec)
    dead = (low == 0) & (high == 0) & (steps > 0)
    smallest = np.where(dead, steps / 2.0**_BIAS_BITS, steps / _LARGEST_BIAS)
    scale = np.where(dead, smallest, np.maximum(params.scale, smallest))
    return QuantParams(usable_scale(scale, weight.spec), params.zero_point)
