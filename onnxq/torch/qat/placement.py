"""Find the places of a plan's edges in the trace: the two nodes between which fake quantization belongs.

A node of the trace may become several ONNX nodes, and vice versa. Some edges have no exact place in the
trace: a tensor inside an operator that the exporter splits, or values that are scaled in ONNX but not in
PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from onnxq.core.plan import GRAPH_OUTPUT, Group, QuantParams, QuantPlan, QuantPoint, QuantSpec
from onnxq.graph.nodes import constant_value, name_of
from onnxq.graph.operators import WEIGHTED
from onnxq.torch.qat.batchnorm import constant_of, folded_weight
from onnxq.torch.qat.capture import Seen

Array = NDArray[np.generic]

aten = torch.ops.aten

WEIGHT: Mapping[object, int] = {
    **dict.fromkeys((aten.conv1d.default, aten.conv2d.default, aten.conv3d.default), 1),
    **dict.fromkeys((aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding), 1),
    **dict.fromkeys(
        (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input), 1
    ),
    **dict.fromkeys((aten.linear.default, aten.mm.default, aten.matmul.default, aten.bmm.default), 1),
    aten.addmm.default: 2,
}
"""Operators with weights -> the index of the argument that holds the weights."""

_SAME_VALUES = (
    *(aten.dropout.default, aten.dropout_.default, aten.feature_dropout.default, aten.alpha_dropout.default),
    *(aten.alias.default, aten.clone.default, aten.contiguous.default, aten.detach.default),
    *(aten.detach_.default, aten.lift_fresh_copy.default, aten.pad.default, aten.constant_pad_nd.default),
)
"""Operators without an ONNX node of their own. They pass values on, and at most add zeros (padding)."""

MARGIN = 1e-4
"""The largest difference of weights in ONNX and PyTorch, relative to the largest weight: sums are rounded."""


@dataclass(frozen=True)
class Layout:
    """The difference between a matrix as ONNX stores it and as PyTorch holds it.

    Attributes:
        turned: whether ONNX stores the transposed matrix.
        units: the number of leading axes of size 1 that only PyTorch's tensor has.
    """

    turned: bool = False
    units: int = 0

    def axis_in_torch(self, axis: int | None) -> int | None:
        """Convert an axis of the matrix in ONNX to the axis of the tensor in PyTorch."""
        return None if axis is None else self.units + (1 - axis if self.turned else axis)

    def params_in_torch(self, params: QuantParams) -> QuantParams:
        """Lay out the scales of blocks like the tensor in PyTorch; other scales have no layout."""
        return self._of_blocks(params, lambda array: self._transposed(array)[(None,) * self.units])

    def params_in_onnx(self, params: QuantParams) -> QuantParams:
        """Invert `params_in_torch`."""
        return self._of_blocks(params, lambda array: self._transposed(array[(0,) * self.units]))

    def _of_blocks(self, params: QuantParams, move: Callable[[Array], Array]) -> QuantParams:
        if params.scale.ndim < 2:
            return params
        return QuantParams(move(params.scale).copy(), move(params.zero_point).copy())

    def _transposed(self, array: Array) -> Array:
        return array.T if self.turned else array


@dataclass(frozen=True)
class TraceSite:
    """The place of a quantized edge in the trace.

    Attributes:
        group: the group of the plan.
        tensor: the name of the tensor in ONNX.
        source: the argument of ``reader`` that holds the tensor.
        reader: the node that reads it.
        spec: the number format; its axis is that of the tensor in PyTorch.
        norm: the batch normalization that is folded into these weights.
        layout: the layout of a constant, where PyTorch has another than ONNX.
        observed: whether the tensor's range counts for the group.
    """

    group: Group
    tensor: str
    source: fx.Node
    reader: fx.Node
    spec: QuantSpec
    norm: fx.Node | None = None
    layout: Layout = Layout()
    observed: bool = True


@dataclass(frozen=True)
class Placement:
    """The places of a plan in a trace.

    Attributes:
        places: all places.
        unplaced: the names of the plan's groups without a place.
    """

    places: tuple[TraceSite, ...]
    unplaced: tuple[str, ...]


def find_places(plan: QuantPlan, simple: ir.Model, seen: Seen) -> Placement:
    """Find the place of every point of a plan.

    Args:
        plan: the plan for ``simple``.
        simple: the cleaned model.
        seen: the trace, and the exported model that ``simple`` was made from.
    """
    finder = _Finder(plan, simple, seen)
    found = {point: finder.place(point) for point in plan.points}
    places = tuple(dict.fromkeys(place for place in found.values() if place is not None))
    groups = {place.group.name for place in places}
    return Placement(places, tuple(name for name in plan.groups if name not in groups))


class _Finder:
    def __init__(self, plan: QuantPlan, simple: ir.Model, seen: Seen) -> None:
        self._plan, self._seen = plan, seen
        self._nodes = {name_of(node): node for node in simple.graph}
        self._initializers = simple.graph.initializers

    def place(self, point: QuantPoint) -> TraceSite | None:
        """Find the place of ``point``; None if it has none."""
        group = self._plan.groups[point.group]
        if point.consumer == GRAPH_OUTPUT:
            return self._at_output(point, group)
        node = self._nodes[point.consumer]
        reader = self._reader(node)
        if reader is None:
            return None
        if group.constant:
            return self._constant(point, group, node, reader)
        wanted = self._seen.values.get(point.tensor)
        source = _argument(reader, wanted)
        if source is None:
            return None
        return TraceSite(
            group, point.tensor, source, reader, point.spec, observed=point.tensor in group.observed_tensors
        )

    def _at_output(self, point: QuantPoint, group: Group) -> TraceSite | None:
        source = self._seen.values.get(point.tensor)
        output = self._seen.trace.graph.output_node()
        if source is None or source not in output.all_input_nodes:
            return None
        observed = point.tensor in group.observed_tensors
        return TraceSite(group, point.tensor, source, output, point.spec, observed=observed)

    def _reader(self, node: ir.Node) -> fx.Node | None:
        """Find the node of the trace that ``node`` came from, by its name or by its output.

        If an operator after a layer was merged into the layer, the name leads to that operator. Then the
        layer before it is returned.
        """
        known = self._seen.nodes.get(name_of(node)) or self._seen.values.get(name_of(node.outputs[0]))
        while known is not None and node.op_type in WEIGHTED and known.target not in WEIGHT:
            before = known.args[0] if known.args else None
            known = before if isinstance(before, fx.Node) and len(before.users) == 1 else None
        return known

    def _constant(self, point: QuantPoint, group: Group, node: ir.Node, reader: fx.Node) -> TraceSite | None:
        stored = constant_value(self._initializers[point.tensor])
        assert stored is not None
        operator = WEIGHTED.get(node.op_type)
        if operator is None or point.input_index != operator.weight or reader.target not in WEIGHT:
            return self._operand(point, group, reader, stored)
        source = reader.args[WEIGHT[reader.target]]
        if not isinstance(source, fx.Node):
            return None
        norm = self._norm(node, reader)
        value = constant_of(source, self._seen.trace)
        if value is None:
            return None
        if norm is not None:
            value = folded_weight(value, reader, norm, self._seen.trace)
        return _laid_out(TraceSite(group, point.tensor, source, reader, point.spec, norm), value, stored)

    def _operand(self, point: QuantPoint, group: Group, reader: fx.Node, stored: Array) -> TraceSite | None:
        """Find the place of a constant that is not the weight of a layer."""
        for source in reader.all_input_nodes:
            value = constant_of(source, self._seen.trace)
            place = TraceSite(group, point.tensor, source, reader, point.spec)
            if value is not None and (found := _laid_out(place, value, stored)) is not None:
                return found
        return None

    def _norm(self, node: ir.Node, reader: fx.Node) -> fx.Node | None:
        """The batch normalization after ``reader`` that is folded into it in ONNX, if there is one."""
        users = list(reader.users)
        if (
            len(users) != 1
            or users[0].target is not aten.batch_norm.default
            or users[0].args[0] is not reader
        ):
            return None
        return users[0] if self._seen.values.get(name_of(node.outputs[0])) is users[0] else None


def _argument(reader: fx.Node, wanted: fx.Node | None) -> fx.Node | None:
    """The argument of ``reader`` that holds the values of ``wanted``."""
    if wanted is None:
        return None
    if wanted in reader.all_input_nodes:
        return wanted
    return next((arg for arg in reader.all_input_nodes if _behind(arg) is _behind(wanted)), None)


def _behind(node: fx.Node) -> fx.Node:
    """The node that the values of ``node`` come from, through operators that pass values on."""
    while node.target in _SAME_VALUES and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


def _laid_out(place: TraceSite, value: Tensor, stored: Array) -> TraceSite | None:
    """Match ``value`` in the trace with the constant in ONNX, in any `Layout`; None if they differ."""
    units = max(value.ndim - stored.ndim, 0)
    if any(size != 1 for size in value.shape[:units]):
        return None
    inner = value.reshape(value.shape[units:])
    turned = not _is_close(inner, stored)
    if turned and (inner.ndim != 2 or not _is_close(inner.T, stored)):
        return None
    layout = Layout(turned, units)
    return replace(place, spec=replace(place.spec, axis=layout.axis_in_torch(place.spec.axis)), layout=layout)


def _is_close(value: Tensor, stored: Array) -> bool:
    array = value.detach().cpu().numpy()
    if array.shape != stored.shape or array.dtype.kind != "f":
        return False
    return bool(np.abs(array - stored).max(initial=0) <= MARGIN * np.abs(stored).max(initial=0))
