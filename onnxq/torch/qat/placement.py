"""Where a plan's edges lie in the trace: between which two nodes fake quantization belongs.

A node of the trace may be several ONNX nodes, and the other way round; what has no exact place (a tensor
inside an operator that the exporter takes apart, values that ONNX scales and PyTorch not yet) has none here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from onnxq.core.plan import GRAPH_OUTPUT, Group, QuantPlan, QuantPoint, QuantSpec
from onnxq.graph.nodes import constant_value
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
"""Operators with weights -> which argument they are."""

_SAME_VALUES = (
    *(aten.dropout.default, aten.dropout_.default, aten.feature_dropout.default, aten.alpha_dropout.default),
    *(aten.alias.default, aten.clone.default, aten.contiguous.default, aten.detach.default),
    *(aten.detach_.default, aten.lift_fresh_copy.default, aten.pad.default, aten.constant_pad_nd.default),
)
"""What ONNX has no node for, or takes into the next one: values go through, and zeros are added at most."""

MARGIN = 1e-4
"""How far, relative to the largest weight, ONNX's weights may be from PyTorch's: sums are rounded."""


@dataclass(frozen=True)
class TraceSite:
    """An edge of the trace.

    Attributes:
        group: of the plan.
        tensor: its name in ONNX.
        source: what gives the tensor, as the reader sees it.
        reader: who reads it.
        spec: the number format, its axis that of the tensor in PyTorch.
        norm: the batch normalization that is folded into these weights.
        turned: ONNX stores the transposed matrix.
        observed: whether its range counts for the group.
    """

    group: Group
    tensor: str
    source: fx.Node
    reader: fx.Node
    spec: QuantSpec
    norm: fx.Node | None = None
    turned: bool = False
    observed: bool = True


@dataclass(frozen=True)
class Placement:
    """All places, and the groups of the plan that have none."""

    places: tuple[TraceSite, ...]
    unplaced: tuple[str, ...]


def find_places(plan: QuantPlan, simple: ir.Model, seen: Seen) -> Placement:
    """Look for the place of every point.

    Args:
        plan: made for ``simple``.
        simple: the cleaned model.
        seen: what it was cleaned from.
    """
    finder = _Finder(plan, simple, seen)
    found = {point: finder.place(point) for point in plan.points}
    places = tuple(dict.fromkeys(place for place in found.values() if place is not None))
    groups = {place.group.name for place in places}
    return Placement(places, tuple(name for name in plan.groups if name not in groups))


class _Finder:
    def __init__(self, plan: QuantPlan, simple: ir.Model, seen: Seen) -> None:
        self._plan, self._seen = plan, seen
        self._nodes = {node.name or "": node for node in simple.graph}
        self._initializers = simple.graph.initializers

    def place(self, point: QuantPoint) -> TraceSite | None:
        """Where ``point`` is, None if nowhere."""
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
        """What ``node`` came from; a node that a pass made is found by what it gives.

        A layer that took in what stood behind it is said to be that.
        """
        known = self._seen.nodes.get(node.name or "") or self._seen.values.get(node.outputs[0].name or "")
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
        """A constant that is not the weight of a layer."""
        for source in reader.all_input_nodes:
            value = constant_of(source, self._seen.trace)
            place = TraceSite(group, point.tensor, source, reader, point.spec)
            if value is not None and (found := _laid_out(place, value, stored)) is not None:
                return found
        return None

    def _norm(self, node: ir.Node, reader: fx.Node) -> fx.Node | None:
        """The batch normalization whose output the layer's is, if there is one behind it."""
        users = list(reader.users)
        if (
            len(users) != 1
            or users[0].target is not aten.batch_norm.default
            or users[0].args[0] is not reader
        ):
            return None
        return users[0] if self._seen.values.get(node.outputs[0].name or "") is users[0] else None


def _argument(reader: fx.Node, wanted: fx.Node | None) -> fx.Node | None:
    """The argument of ``reader`` that holds what ``wanted`` gives."""
    if wanted is None:
        return None
    if wanted in reader.all_input_nodes:
        return wanted
    return next((arg for arg in reader.all_input_nodes if _behind(arg) is _behind(wanted)), None)


def _behind(node: fx.Node) -> fx.Node:
    """Where the values of ``node`` come from."""
    while node.target in _SAME_VALUES and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


def _laid_out(place: TraceSite, value: Tensor, stored: Array) -> TraceSite | None:
    """``place``, if the trace has there what ONNX stores, perhaps transposed; else None."""
    if _is_close(value, stored):
        return place
    if value.ndim != 2 or not _is_close(value.T, stored):
        return None
    axis = None if place.spec.axis is None else 1 - place.spec.axis
    return replace(place, spec=replace(place.spec, axis=axis), turned=True)


def _is_close(value: Tensor, stored: Array) -> bool:
    array = value.detach().cpu().numpy()
    if array.shape != stored.shape or array.dtype.kind != "f":
        return False
    return bool(np.abs(array - stored).max(initial=0) <= MARGIN * np.abs(stored).max(initial=0))
