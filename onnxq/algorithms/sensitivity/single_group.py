"""Make the float model with only one group of quantization points quantized."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.algorithms.draft import Draft
from onnxq.algorithms.layers.biases import Bias, bias_of
from onnxq.core.numerics import dequantize, quantize
from onnxq.core.plan import GRAPH_OUTPUT, Group, QuantParams, QuantPoint, QuantSpec
from onnxq.graph.nodes import add_initializer, all_nodes, constant_value, insert_after, name_of
from onnxq.graph.operators import WEIGHTED

_Step = tuple[str, list[ir.Value], ir.DataType | None]
"""An operator, its inputs besides the data, and for a Cast the type that it casts to."""


@dataclass(frozen=True)
class SingleGroupModel:
    """The float model with one quantized group.

    Attributes:
        model: the changed copy of the float model.
        seeds: the first changed nodes; only they and the nodes downstream of them give other values.
    """

    model: ir.Model
    seeds: tuple[ir.Node, ...]


def quantize_alone(draft: Draft, group: Group) -> SingleGroupModel:
    """Fake-quantize the edges of ``group`` in a copy of ``draft.reference``.

    Weights are taken from ``draft.model``, together with the biases that compensate their errors. Activations
    are fake-quantized by plain float operators, because the runtime would fuse Q/DQ with the nodes around
    them.
    """
    copy = draft.reference.clone()
    points = draft.plan.points_of(group.name)
    nodes = {name_of(node): node for node in all_nodes(copy)}
    if group.constant:
        return SingleGroupModel(copy, tuple(_round_weights(copy, draft, group, points, nodes)))
    return SingleGroupModel(
        copy, tuple(_round_activations(copy, group.spec, draft.plan.params[group.name], points, nodes))
    )


def _round_weights(
    copy: ir.Model, draft: Draft, group: Group, points: Collection[QuantPoint], nodes: dict[str, ir.Node]
) -> Iterable[ir.Node]:
    params, stored = draft.plan.params[group.name], draft.model.graph.initializers
    rounded: dict[str, ir.Value] = {}
    for point in points:
        if point.tensor not in rounded:
            real = constant_value(stored[point.tensor])
            assert real is not None
            values = dequantize(quantize(real, params, group.spec), params, group.spec)
            rounded[point.tensor] = add_initializer(copy, f"{point.tensor}_rounded", values)
        nodes[point.consumer].replace_input_with(point.input_index, rounded[point.tensor])
        yield nodes[point.consumer]
    for bias in biases_with(draft, points):
        copy.graph.initializers[bias.tensor].const_value = stored[bias.tensor].const_value
        yield nodes[bias.holder]


def biases_with(draft: Draft, points: Iterable[QuantPoint]) -> Iterator[Bias]:
    """Yield the biases of ``draft.model`` that compensate the errors of the weights at ``points``."""
    readers = {(point.consumer, point.input_index) for point in points}
    for node in draft.model.graph:
        operator = WEIGHTED.get(node.op_type)
        if operator is not None and (name_of(node), operator.weight) in readers:
            bias = bias_of(node)
            if bias is not None:
                yield bias


def _round_activations(
    copy: ir.Model,
    spec: QuantSpec,
    params: QuantParams,
    points: Iterable[QuantPoint],
    nodes: dict[str, ir.Node],
) -> Iterable[ir.Node]:
    values = ir.convenience.create_value_mapping(copy.graph)
    rounded: dict[str, ir.Value] = {}
    for point in points:
        if point.tensor not in rounded:
            chain = _rounding(copy, values[point.tensor], params, spec)
            rounded[point.tensor] = chain[-1].outputs[0]
            yield from chain
        if point.consumer == GRAPH_OUTPUT:
            copy.graph.outputs[point.input_index] = rounded[point.tensor]
        else:
            nodes[point.consumer].replace_input_with(point.input_index, rounded[point.tensor])


def _rounding(model: ir.Model, value: ir.Value, params: QuantParams, spec: QuantSpec) -> list[ir.Node]:
    """Insert nodes after ``value`` that compute ``clip(round(x / scale)) * scale``.

    They compute the same as `quantize` and `dequantize`. Floating-point numbers are rounded by Casts.
    """
    zero = params.zero_point.astype(np.float32)
    numbers = {"scale": params.scale, "low": spec.limits[0] - zero, "high": spec.limits[1] - zero}
    scale, low, high = (
        add_initializer(model, f"{value.name}_{name}", np.asarray(number, np.float32))
        for name, number in numbers.items()
    )
    steps: list[_Step] = [("Div", [scale], None), ("Round", [], None), ("Clip", [low, high], None)]
    if spec.is_floating:
        steps = [("Div", [scale], None), ("Clip", [low, high], None)]
        steps += [("Cast", [], spec.dtype), ("Cast", [], ir.DataType.FLOAT)]
    nodes: list[ir.Node] = []
    source = value
    for op_type, others, to in (*steps, ("Mul", [scale], None)):
        name = f"{value.name}_rounding_{op_type}_{len(nodes)}"
        node = ir.node(op_type, [source, *others], {} if to is None else {"to": to}, name=name)
        source = node.outputs[0]
        source.name, source.shape = f"{node.name}_output", value.shape
        source.type = value.type if to is None else ir.TensorType(to)
        nodes.append(node)
    insert_after(value, nodes, model.graph)
    return nodes
