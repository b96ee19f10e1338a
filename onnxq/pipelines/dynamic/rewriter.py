"""The copy of the model that operators are rewritten in, and weights packed into fewer bits.

Weights in fewer bits: numpy only.

The copy of the model that operators are rewritten in, and what they already share in it.
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
from onnxq.pipelines.dynamic.scheme import DynamicScheme, WeightForm

LARGEST_HALF = float(np.finfo(np.float16).max)
"""The largest finite float16."""


@dataclass(frozen=True)
class Packed:
    """``weight = integers * scale``, nearly.

    Attributes:
        integers: of the shape of the weight.
        scale: float32, of the same rank, with 1 for each axis that shares its scale.
    """

    integers: NDArray[np.generic]
    scale: NDArray[np.float32]


def pack(weight: NDArray[np.generic], spec: QuantSpec, axis: int | None, refine: bool = True) -> Packed:
    """Round to nearest; zero points are 0.

    Args:
        weight: any shape.
        spec: a symmetric and signed number format.
        axis: has a scale for each of its indices; None: one scale for all.
        refine: take the scales with the least squared error, not those that just cover the largest weights.
    """
    placed = replace(spec, axis=axis)
    params = params_from_range(*weight_range(weight, placed), placed)
    if refine:
        params = refine_scale(weight, params, placed)
    scale = spread(params.scale, placed, weight.shape)
    return Packed(quantize(weight, params, placed), scale.reshape(scale.shape or (1,) * weight.ndim))


def pack_rows(weight: NDArray[np.generic], spec: QuantSpec, axis: int | None, refine: bool = True) -> Packed:
    """The same for a stack of matrices ``[D, rows, K]``; the scale is ``[D, rows, 1]``.

    ``axis`` 1 has a scale for each row of each matrix, None one for all: ``[D, 1, 1]``.
    """
    flat = pack(weight.reshape(-1, weight.shape[-1]), spec, None if axis is None else 0, refine)
    scale = np.broadcast_to(flat.scale, (weight.shape[0], 1)) if axis is None else flat.scale
    return Packed(flat.integers.reshape(weight.shape), scale.reshape(weight.shape[0], -1, 1))


Array = NDArray[np.generic]


FLOAT = {"to": ir.DataType.FLOAT}
"""The attributes of a Cast."""


@dataclass(frozen=True)
class Layout:
    """How a kernel wants its weights.

    Attributes:
        pack: rounds them.
        integers, scale: what becomes of the two arrays then.
    """

    pack: Callable[[Array, QuantSpec, int | None, bool], Packed] = pack
    integers: Callable[[Array], Array] = np.asarray
    scale: Callable[[Array], Array] = np.asarray


AS_IT_IS = Layout()


Known = dict[Hashable, Packed]
"""Weights of one setting that are rounded already: forms of a model have most of them in common."""


class ModelRewriter:
    """What is put into the model goes right before the node that it is for, into its graph.

    Constants become initializers of the main graph, where bodies of control flow see them too. Weights and
    quantized data that several nodes read are made once.

    Attributes:
        model: the copy.
        scheme: what is asked for.
    """

    def __init__(self, model: ir.Model, scheme: DynamicScheme, known: Known) -> None:
        """A copy of ``model``; what ``known`` has of its weights is not rounded again."""
        self.model = model.clone()
        self.scheme = scheme
        self._known = known
        nodes = list(all_nodes(self.model))
        values = [v for graph in self.model.graphs() for v in (*graph.inputs, *graph.initializers.values())]
        values += [value for node in nodes for value in node.outputs]
        self._names = {value.name for value in values} | {node.name for node in nodes}
        self._made: dict[Hashable, tuple[ir.Value, ...]] = {}

    def add(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        before: ir.Node,
        attributes: Mapping[str, Any] | None = None,
        outputs: int = 1,
        domain: str = "",
        named: str | None = None,
    ) -> tuple[ir.Value, ...]:
        """A new node in front of another one, named after it if not otherwise; its outputs."""
        name = self._unique(f"{named or before.name}_{op_type}")
        node = ir.node(
            op_type, inputs, attributes=attributes or {}, num_outputs=outputs, domain=domain, name=name
        )
        for index, value in enumerate(node.outputs):
            value.name = self._unique(f"{name}_out{index or ''}")
        assert before.graph is not None
        before.graph.insert_before(before, node)
        return tuple(node.outputs)

    def constant(self, name: str, array: Array) -> ir.Value:
        """A new initializer."""
        value = ir.val(self._unique(name), const_value=ir.tensor(np.asarray(array, order="C")))
        self.model.graph.register_initializer(value)
        return value

    def quantized(self, data: ir.Value, reader: ir.Node) -> tuple[ir.Value, ...]:
        """``data`` in uint8 with the range that it has at run time, its scale and its zero point.

        Nodes of one graph that read the same data share them.
        """
        key = ("data", data, reader.graph)
        if key not in self._made:
            self._made[key] = self.add("DynamicQuantizeLinear", [data], reader, outputs=3)
        return self._made[key]

    def packed(
        self, weight: ir.Value, axis: int | None, layout: Layout = AS_IT_IS
    ) -> tuple[ir.Value, ir.Value]:
        """The integers and the scales of ``weight``."""
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
        scheme = self.scheme
        key = (weight.const_value, scheme.axis(axis), layout.pack)
        if key not in self._known:
            refine = scheme.config.weight_method == "mse"
            self._known[key] = layout.pack(_array(weight), scheme.weight, key[1], refine)
        return self._known[key]

    def half(self, weight: ir.Value) -> ir.Value:
        """``weight`` in float16."""
        key = ("half", weight)
        if key not in self._made:
            self._made[key] = (self.constant(f"{weight.name}_half", _array(weight).astype(np.float16)),)
        return self._made[key][0]

    def unpacked(self, weight: ir.Value, axis: int | None, layout: Layout = AS_IT_IS) -> ir.Value:
        """``weight`` in float, made when the model is loaded of what is stored: runtimes fold constants."""
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
        """Let ``outputs`` take the place of those of ``node``, which goes."""
        for old, new in zip(node.outputs, outputs, strict=False):
            if old.name:
                replace_value(old, new)
        assert node.graph is not None
        node.graph.remove(node, safe=True)

    def finish(self) -> ir.Model:
        """The changed copy, without the constants that nobody reads any more."""
        for graph in self.model.graphs():
            for name, value in list(graph.initializers.items()):
                if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                    del graph.initializers[name]
        return self.model

    def _unique(self, name: str) -> str:
        chosen = unique_name(name, self._names)
        self._names.add(chosen)
        return chosen


def _array(weight: ir.Value) -> Array:
    array = constant_value(weight)
    assert array is not None
    return array
