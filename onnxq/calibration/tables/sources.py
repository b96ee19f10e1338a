"""Make tables from a plan with parameters, or from saved statistics."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calibrators.errors import shorten
from calibrators.methods.calibrator import Calibrator
from calibrators.statistics import Statistics
from onnxq.calibration.tables.table import Encoding, NcnnLayer, Table
from onnxq.calibration.tables.table_files import check_names, format_for
from onnxq.core.errors import CalibrationError
from onnxq.core.numerics import grid_of, weight_range
from onnxq.core.plan import QuantParams, QuantPlan, QuantSpec
from onnxq.graph.nodes import all_nodes, constant_value, input_at, ints_attribute, name_of
from onnxq.graph.operators import groups_of, output_channels

logger = logging.getLogger(__name__)


def of_statistics(statistics: Statistics, calibrator: Calibrator, spec: QuantSpec) -> Table:
    """Make a table of the range of each tensor by itself.

    Unlike a plan, statistics do not tell which tensors share a range, and they hold no weights.

    Args:
        statistics: the statistics of the tensors.
        calibrator: chooses the ranges.
        spec: the number format to choose them for.
    """
    if statistics.unseen:
        logger.warning(
            "left out of the table, because no finite value was seen: %s", shorten(statistics.unseen)
        )
    seen = [name for name in statistics if name not in statistics.unseen]
    ranges = {name: calibrator(statistics[name], grid_of(spec)) for name in seen}
    return Table({name: Encoding.of_range(*ends) for name, ends in ranges.items()})


def check_plan(plan: QuantPlan, goals: Iterable[tuple[Path, str | None]]) -> None:
    """Check before the work that tables can hold the names in a plan, and its number formats.

    Args:
        plan: the plan.
        goals: (path, format name or None) of each table.

    Raises:
        CalibrationError: a table cannot hold a name, or is a table of integers for floating-point numbers.
    """
    floating = any(group.spec.is_floating for group in plan.groups.values())
    tensors = [t for group in plan.groups.values() if not group.constant for t in group.tensors]
    layers = [name for name, op_type in plan.integer_nodes.items() if op_type in _LAYERS]
    for path, name in goals:
        known = format_for(path, name)
        if floating and not known.ours:
            raise CalibrationError(
                f"{path}: {known.name} tables hold scales of integers, and target {plan.target} quantizes to "
                "FP8: write a table of format json"
            )
        check_names(layers if known.layers else tensors, path, known)


def of_plan(plan: QuantPlan, model: ir.Model, original: ir.Model) -> Table:
    """Make a table of the parameters of a plan; of a tensor that is converted, those that it is written with.

    Args:
        plan: the plan, with parameters.
        model: the cleaned model that it was made for.
        original: the user's float model, which other programs read together with the table.
    """
    activations: dict[str, Encoding] = {}
    weights: dict[str, Encoding] = {}
    if blocked := [group.name for group in plan.groups.values() if group.spec.block_size is not None]:
        logger.warning(
            "tables hold no weights with one scale per block, so these are left out: %s", shorten(blocked)
        )
    written = {point.tensor: point.converted_from for point in plan.points if point.converted_from}
    for group in (group for group in plan.groups.values() if group.spec.block_size is None):
        encoding = Encoding.of_params(group.spec, plan.params[group.name])
        for tensor in group.tensors:
            if written.get(tensor, group.name) == group.name:
                (weights if group.constant else activations).setdefault(tensor, encoding)
    names = _names(original)
    absent = frozenset(activations.keys() - names) | frozenset(_changed(weights, model, original))
    layers = dict(_layers(plan, model, original))
    return Table(activations, weights, layers, tuple(plan.integer_nodes), absent)


def _names(model: ir.Model) -> set[str]:
    """The names of all tensors of the model, also in the bodies of If and Loop."""
    values = (value for node in all_nodes(model) for value in (*node.inputs, *node.outputs))
    return {value.name for value in values if value is not None and value.name}


def _changed(names: Mapping[str, Encoding], model: ir.Model, original: ir.Model) -> Iterator[str]:
    """Yield the weights that the original does not have, or has with other values."""
    before = _constants(original)
    for name in names:
        now = model.graph.initializers[name].const_value
        old = before.get(name)
        if old is None or (old is not now and not np.array_equal(old.numpy(), _array(now))):
            yield name


def _array(tensor: ir.TensorProtocol | None) -> NDArray[np.generic]:
    assert tensor is not None
    return np.asarray(tensor.numpy())


def _constants(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    """The initializers and the values of Constant nodes, by name."""
    found = {
        name_of(node.outputs[0]): node.attributes["value"].as_tensor()
        for node in all_nodes(model)
        if node.op_type == "Constant" and "value" in node.attributes
    }
    for graph in model.graphs():
        found |= {n: v.const_value for n, v in graph.initializers.items() if v.const_value is not None}
    return found


def _layers(plan: QuantPlan, model: ir.Model, original: ir.Model) -> Iterator[tuple[str, NcnnLayer]]:
    """Yield the quantized weighted nodes under their names in the original model.

    A node without a name has the name of its output.
    """
    names = {
        node.name or f"{node.op_type}_{node.outputs[0].name}": node.name or node.outputs[0].name
        for node in all_nodes(original)
    }
    groups = {(point.consumer, point.input_index): plan.groups[point.group] for point in plan.points}
    for node in all_nodes(model):
        data, weight = (groups.get((name_of(node), index)) for index in (0, 1))
        name = names.get(name_of(node))
        if (
            not name
            or node.op_type not in _LAYERS
            or None in (data, weight)
            or not _LAYERS[node.op_type](node)
        ):
            continue
        assert data is not None
        assert weight is not None
        read = Encoding.of_params(data.spec, plan.params[data.name])
        yield name, _layer(node, read, _layer_weight(node, weight.spec, plan.params[weight.name]))


def _layer_weight(node: ir.Node, spec: QuantSpec, params: QuantParams) -> Encoding:
    """The encoding of a layer's weights; for other widths than 8 bits, their whole range for 8 bits."""
    if spec.dtype.bitwidth == 8:
        return Encoding.of_params(spec, params)
    values = constant_value(input_at(node, 1))
    assert values is not None
    return Encoding.of_range(*weight_range(values, spec))


def _layer(node: ir.Node, data: Encoding, weight: Encoding) -> NcnnLayer:
    shape = _shape(node)
    groups = groups_of(node)
    winograd = node.op_type == "Conv" and groups == 1 and shape[2:] == (3, 3) and _is_plain(node)
    return NcnnLayer(data, weight, output_channels(node, shape), groups, winograd)


def _is_plain(node: ir.Node) -> bool:
    return all(set(ints_attribute(node, name, (1,))) == {1} for name in ("strides", "dilations"))


def _shape(node: ir.Node) -> tuple[int, ...]:
    """The shape of the weights; empty if they are computed."""
    weight = constant_value(input_at(node, 1))
    return () if weight is None else weight.shape


_LAYERS = {
    "Conv": lambda node: len(_shape(node)) == 4,
    "Gemm": lambda node: len(_shape(node)) == 2,
    "MatMul": lambda node: len(_shape(node)) == 2,
}
"""The operators that tables of layers can hold, and whether a node of that type is supported."""
