"""Rewrite operators in a copy of the model, and pack weights into fewer bits.

Nodes of the copy share packed weights and quantized data.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxq.calibration.weight_scale import refine_scale
from onnxq.core.numerics import params_from_range, quantize, spread, weight_range
from onnxq.core.plan import QuantSpec
from onnxq.graph.nodes import all_nodes, constant_value, replace_value, unique_name
from onnxq.graph.share_transposed import find_transposed, share_transposed
from onnxq.graph.walks import is_read
from onnxq.pipelines.dynamic.scheme import DynamicScheme, WeightForm

LARGEST_HALF = float(np.finfo(np.float16).max)
"""The largest finite float16."""


@dataclass(frozen=True)
class Packed:
    """A rounded weight: approximately ``integers * scale``.

    Attributes:
        integers: the integers, in the shape of the weight.
        scale: float32, with the rank of the weight and size 1 along each axis that shares a scale.
    """

    integers: NDArray[np.generic]
    scale: NDArray[np.float32]


def pack(weight: NDArray[np.generic], spec: QuantSpec, axis: int | None, refine: bool = True) -> Packed:
    """Round a weight to nearest, with zero point 0.

    Args:
        weight: the weight, of any shape.
        spec: a symmetric and signed number format.
        axis: the axis with one scale per index; None: per tensor.
        refine: use the scales with the least squared error, not those that just cover the largest weights.
    """
    placed = replace(spec, axis=axis)
    params = params_from_range(*weight_range(weight, placed), placed)
    if refine:
        params = refine_scale(weight, params, placed)
    scale = spread(params.scale, placed, weight.shape)
    return Packed(quantize(weight, params, placed), scale.reshape(scale.shape or (1,) * weight.ndim))


def pack_rows(weight: NDArray[np.generic], spec: QuantSpec, axis: int | None, refine: bool = True) -> Packed:
    """Do the same as `pack` for a stack of matrices ``[D, rows, K]``; the scale is ``[D, rows, 1]``.

    Args:
        weight: the matrices, ``[D, rows, K]``.
        spec: a symmetric and signed number format.
        axis: 1: one scale per row of each matrix; None: per tensor, repeated as ``[D, 1, 1]``.
        refine: use the scales with the least squared error, not those that just cover the largest weights.
    """
    flat = pack(weight.reshape(-1, weight.shape[-1]), spec, None if axis is None else 0, refine)
    scale = np.broadcast_to(flat.scale, (weight.shape[0], 1)) if axis is None else flat.scale
    return Packed(flat.integers.reshape(weight.shape), scale.reshape(weight.shape[0], -1, 1))


Array = NDArray[np.generic]


FLOAT = {"to": ir.DataType.FLOAT}
"""The attributes of a Cast to float."""


@dataclass(frozen=True)
class Layout:
    """The layout in which a kernel needs its weights.

    Attributes:
        pack: rounds the weights.
        integers, scale: reshape the two arrays afterwards.
    """

    pack: Callable[[Array, QuantSpec, int | None, bool], Packed] = pack
    integers: Callable[[Array], Array] = np.asarray
    scale: Callable[[Array], Array] = np.asarray


AS_IT_IS = Layout()


Known = dict[Hashable, Packed]
"""Weights that are rounded already, by tensor, axis and layout: variants of a model share most of them."""


CONTRIB = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""

_OUTPUTS: Mapping[str, int] = {"DynamicQuantizeLinear": 3}
"""Number of outputs of the standard operators that have several."""


class ModelRewriter:
    """Inserts nodes and constants into a copy of a model.

    New nodes are inserted right before the node that they replace, in its graph. Constants become
    initializers of the main graph, which bodies of control flow can read too. Weights and quantized data that
    several nodes read are made once.

    Attributes:
        model: the copy.
        scheme: the requested form of quantization.
    """

    def __init__(self, model: ir.Model, scheme: DynamicScheme, known: Known) -> None:
        """Copy ``model``. Weights in ``known`` are not rounded again, and new ones are added to it."""
        self.model = model.clone()
        self.scheme = scheme
        self._known = known
        nodes = list(all_nodes(self.model))
        values = [v for graph in self.model.graphs() for v in (*graph.inputs, *graph.initializers.values())]
        values += [value for node in nodes for value in node.outputs]
        self._names = {value.name for value in values} | {node.name for node in nodes}
        self._transposed = find_transposed(self.model)
        self._made: dict[Hashable, tuple[ir.Value, ...]] = {}

    def add(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        before: ir.Node,
        attributes: Mapping[str, Any] | None = None,
        named: str | None = None,
    ) -> tuple[ir.Value, ...]:
        """Insert a new node before another one, and return its outputs.

        Args:
            op_type: operator type of the new node.
            inputs: its inputs; None for a missing one.
            before: the node to insert it before.
            attributes: its attributes.
            named: prefix of the new names; the name of ``before`` if None.
        """
        outputs = _OUTPUTS.get(op_type, 1)
        name = self._unique(f"{named or before.name}_{op_type}")
        node = ir.node(op_type, inputs, attributes=attributes or {}, num_outputs=outputs, name=name)
        return self._insert(node, before)

    def substitute(
        self,
        node: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any],
    ) -> None:
        """Replace a node by an operator of ONNX Runtime's own with the same outputs.

        Args:
            node: the node to replace.
            op_type: operator type of the new node, in the domain `CONTRIB`.
            inputs: its inputs; None for a missing one.
            attributes: its attributes.
        """
        name, count = self._unique(f"{node.name}_{op_type}"), len(node.outputs)
        new = ir.node(op_type, inputs, attributes=attributes, num_outputs=count, domain=CONTRIB, name=name)
        outputs = self._insert(new, node)
        for old, made in zip(node.outputs, outputs, strict=True):
            if not old.name:
                made.name = ""
        self.model.graph.opset_imports.setdefault(CONTRIB, 1)
        self.replace(node, *outputs)

    def _insert(self, node: ir.Node, before: ir.Node) -> tuple[ir.Value, ...]:
        for index, value in enumerate(node.outputs):
            value.name = self._unique(f"{node.name}_out{index or ''}")
        assert before.graph is not None
        before.graph.insert_before(before, node)
        return tuple(node.outputs)

    def constant(self, name: str, array: Array) -> ir.Value:
        """Add an initializer."""
        value = ir.val(self._unique(name), const_value=ir.tensor(np.asarray(array, order="C")))
        self.model.graph.register_initializer(value)
        return value

    def quantized(self, data: ir.Value, reader: ir.Node) -> tuple[ir.Value, ...]:
        """Quantize ``data`` to uint8 at run time, and return the integers, the scale and the zero point.

        Nodes of one graph that read the same data share these values.
        """
        key = ("data", data, reader.graph)
        if key not in self._made:
            self._made[key] = self.add("DynamicQuantizeLinear", [data], reader)
        return self._made[key]

    def packed(
        self, weight: ir.Value, axis: int | None, layout: Layout = AS_IT_IS
    ) -> tuple[ir.Value, ir.Value]:
        """Round ``weight``, and return its integers and its scales.

        Args:
            weight: a constant.
            axis: the axis with one scale per index; None: per tensor.
            layout: the layout that the kernel needs.
        """
        key = ("packed", weight, axis, layout)
        if key not in self._made:
            packed = self._packed(weight, axis, layout)
            self._made[key] = (
                self.constant(f"{weight.name}_quantized", layout.integers(packed.integers)),
                self.constant(f"{weight.name}_scale", layout.scale(packed.scale)),
            )
        integers, scale = self._made[key]
        return integers, scale

    def _packed(self, weight: ir.Value, axis: int | None, layout: Layout) -> Packed:
        if (same := self._transposed.get(weight)) is not None:  # with the same scales, it is stored once
            turned = self._packed(same, None if axis is None else 1 - axis, layout)
            return Packed(turned.integers.T, turned.scale.T)
        scheme = self.scheme
        key = (weight.const_value, scheme.axis(axis), layout.pack)
        if key not in self._known:
            refine = scheme.config.weight_method == "mse"
            self._known[key] = layout.pack(_array(weight), scheme.weight, key[1], refine)
        return self._known[key]

    def half(self, weight: ir.Value) -> ir.Value:
        """Store ``weight`` in float16."""
        key = ("half", weight)
        if key not in self._made:
            self._made[key] = (self.constant(f"{weight.name}_half", _array(weight).astype(np.float16)),)
        return self._made[key][0]

    def unpacked(self, weight: ir.Value, axis: int | None, layout: Layout = AS_IT_IS) -> ir.Value:
        """Store ``weight`` in fewer bits and unpack it to float; runtimes fold that when they load the model.

        Args:
            weight: a constant.
            axis: the axis with one scale per index; None: per tensor.
            layout: the layout of the stored integers and scales.
        """
        key = ("unpacked", weight, axis)
        if key not in self._made:
            first, name = self.model.graph[0], weight.name
            if self.scheme.form is WeightForm.FLOAT16:
                (real,) = self.add("Cast", [self.half(weight)], first, FLOAT, named=name)
            else:
                integers, scale = self.packed(weight, axis, layout)
                (reals,) = self.add("Cast", [integers], first, FLOAT, named=name)
                (real,) = self.add("Mul", [reals, scale], first, named=name)
            real.shape, real.type = weight.shape, weight.type
            self._made[key] = (real,)
        return self._made[key][0]

    def replace(self, node: ir.Node, *outputs: ir.Value) -> None:
        """Replace the outputs of ``node`` by ``outputs``, and remove the node."""
        for old, new in zip(node.outputs, outputs, strict=False):
            if old.name:
                replace_value(old, new)
        assert node.graph is not None
        node.graph.remove(node, safe=True)

    def finish(self) -> ir.Model:
        """Return the rewritten copy, without constants that are no longer read or are stored twice."""
        for graph in self.model.graphs():
            for name, value in list(graph.initializers.items()):
                if not is_read(value) and not value.is_graph_input():
                    del graph.initializers[name]
        share_transposed(self.model)
        return self.model

    def _unique(self, name: str) -> str:
        chosen = unique_name(name, self._names)
        self._names.add(chosen)
        return chosen


def _array(weight: ir.Value) -> Array:
    array = constant_value(weight)
    assert array is not None
    return array
