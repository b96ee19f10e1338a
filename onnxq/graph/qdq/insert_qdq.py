"""Insert Q/DQ pairs into a model as a plan says; all QuantizeLinear and DequantizeLinear are made here.

An activation gets one QuantizeLinear for each of its groups, and one DequantizeLinear for each reader, since
ONNX Runtime fuses a DequantizeLinear only into a single reader. A constant is stored in integers, once per
group or, if the runtime wants that, once per reader, with one DequantizeLinear for each reader.

If kernels do not support the stored type, a Cast is inserted, and a Sub that removes the zero points. If the
runtime wants constants in float, they are stored in float on their grid, and a QuantizeLinear turns them into
exactly the same integers.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxq.core.numerics import dequantize, quantize, quantize_bias, spread
from onnxq.core.plan import (
    GRAPH_OUTPUT,
    OPSET_OF_BLOCKS,
    BiasPoint,
    Group,
    QuantParams,
    QuantPlan,
    QuantPoint,
)
from onnxq.graph.half_precision.narrow import Narrowing, narrow
from onnxq.graph.half_precision.widen import store_in_half
from onnxq.graph.nodes import constant_value, insert_after, unique_name
from onnxq.graph.ort_rewrites import (
    join_float_readers,
    keep_apart_from_fp8,
    keep_layout_of_cubic,
    pad_input_channels,
    separate_from_qdq,
    unfuse_layernorm_adds,
    unfuse_products,
)
from onnxq.graph.qdq.integer_tables import look_up_integers
from onnxq.graph.qdq.on_integers import work_on_integers
from onnxq.graph.share_transposed import share_transposed
from onnxq.graph.slim import slim
from onnxq.graph.walks import is_read

LEAST_SHARED = 1024
"""Smaller constants are stored in both forms: their float numbers take about as much as two nodes."""


RUNTIME_DOMAIN = "com.microsoft"
"""The domain of ONNX Runtime's own operators, where Q and DQ have 16 bits in every opset."""

_WIDE = frozenset({ir.DataType.INT16, ir.DataType.UINT16})

LONGEST_NAME = 48
"""Of longer names of new tensors and nodes, only the end is kept: some exporters write 400 characters."""


def insert_qdq(model: ir.Model, plan: QuantPlan) -> ir.Model:
    """Copy ``model`` and insert the Q/DQ pairs of ``plan``, which must have parameters."""
    inserter = _Inserter(model.clone(), plan)
    for point in plan.points:
        inserter.quantize_edge(point)
    for bias in plan.biases:
        inserter.quantize_bias(bias)
    inserter.share_with_bodies()
    look_up_integers(inserter.model, plan, inserter.stored)
    quantized = inserter.finish()
    work_on_integers(quantized, plan.on_integers)
    unfuse_layernorm_adds(quantized, plan.unfused_sums)
    separate_from_qdq(quantized, plan.separated)
    keep_apart_from_fp8(quantized)
    if plan.join_float_readers:
        join_float_readers(quantized, {*plan.integer_nodes, *plan.passthrough_nodes})
    unfuse_products(quantized, plan.unfused_products & {point.consumer for point in plan.points})
    keep_layout_of_cubic(quantized)
    return quantized


def as_written(model: ir.Model, plan: QuantPlan, narrowing: Narrowing | None = None) -> ir.Model:
    """Make the model as it is written: with Q/DQ pairs, padded input channels, and no matrix stored twice.

    Args:
        model: the float model.
        plan: its plan, with parameters.
        narrowing: what is written in half precision; None: nothing.
    """
    quantized = insert_qdq(model, plan)
    pad_input_channels(quantized, plan.channel_padding)
    share_transposed(quantized)
    if narrowing is not None:
        narrow(quantized, narrowing)
    if plan.half_constants and plan.float_type == ir.DataType.FLOAT:
        store_in_half(quantized)
    slim(quantized)
    return quantized


class _Inserter:
    """Inserts Q/DQ pairs into a model, which it changes, and remembers the constants already made."""

    def __init__(self, model: ir.Model, plan: QuantPlan) -> None:
        self.model = model
        self._graph = model.graph
        self._plan = plan
        self._values = ir.convenience.create_value_mapping(model.graph)
        self._nodes = {node.name: node for node in model.graph.all_nodes()}
        self._names = set(self._values) | {name for name in self._nodes if name}
        self._integers: dict[tuple[str, ...], ir.Value] = {}
        self._scales: dict[tuple[str | int, ...], tuple[ir.Value, ...]] = {}
        self._last: ir.Node | None = None

    @property
    def stored(self) -> dict[str, ir.Value]:
        """Constants that are stored in integers, by name."""
        return {tensor: value for (tensor, *_), value in self._integers.items() if value.is_initializer()}

    def quantize_edge(self, point: QuantPoint) -> None:
        """Let ``point``'s consumer read integers through its own DequantizeLinear."""
        group = self._plan.groups[point.group]
        key = (point.tensor, group.name, *_copy(point, group))
        if key not in self._integers:
            make = self._store if group.constant else self._quantize
            self._integers[key] = make(self._source(point), group)
        if point.replicated_scale is None:
            place = {"axis": point.spec.axis, "block_size": point.spec.block_size}
            self._read(point, self._integers[key], self._params(group, *_copy(point, group)), place)
        else:
            place = {"axis": point.replicated_scale[0]}
            self._read(point, self._integers[key], self._repeated(group, point.replicated_scale[1]), place)

    def _source(self, point: QuantPoint) -> ir.Value:
        """The float values to quantize for ``point``: its tensor, or that dequantized, to be converted.

        ONNX Runtime's quantizer writes a change of width as the same pair of DequantizeLinear and
        QuantizeLinear (``convert`` in its overrides of tensors); its QNN provider makes it one Convert.
        """
        value = self._values[point.tensor]
        if point.converted_from is None:
            return value
        key = point.tensor, point.converted_from
        group = self._plan.groups[point.converted_from]
        if key not in self._integers:
            self._integers[key] = self._quantize(value, group)
        node = self._dequantize(point.tensor, self._integers[key], self._params(group), {})
        insert_after(self._integers[key], node, self._graph)
        return node.outputs[0]

    def quantize_bias(self, point: BiasPoint) -> None:
        """Store a bias as int32 with scale = input scale x weight scale, ``()`` or ``[C]``.

        Its zero point is 0, the default of DequantizeLinear, and is not stored.
        """
        bias = constant_value(self._values[point.tensor])
        assert bias is not None
        weight = self._plan.params[point.weight_group].scale
        scale = np.asarray(self._plan.params[point.input_group].scale * weight, dtype=np.float32)
        values = np.broadcast_to(bias.reshape(-1), scale.shape) if scale.ndim else bias.reshape(-1)
        key = (point.tensor, point.input_group, point.weight_group)
        if key not in self._integers:
            self._integers[key] = self._constant(f"{point.tensor}_quantized", quantize_bias(values, scale))
            self._scales[key] = (self._constant(f"{point.tensor}_scale", scale),)
        self._read(point, self._integers[key], self._scales[key], {"axis": 0 if scale.ndim else None})

    def share_with_bodies(self) -> None:
        """Let bodies of control flow read the stored integers, dequantized: else the file has both forms.

        Cast and Mul dequantize them, which runtimes fold when they load the model, unlike DequantizeLinear.
        """
        for (tensor, name, *_), stored in list(self._integers.items()):
            uses = [use for use in self._values[tensor].uses() if use.node.graph is not self._graph]
            group = self._plan.groups.get(name)
            if uses and group is not None and _is_shareable(group, stored):
                real = self._dequantized(stored, group)
                for use in uses:
                    use.node.replace_input_with(use.idx, real)

    def _dequantized(self, stored: ir.Value, group: Group) -> ir.Value:
        array, scale = constant_value(stored), self._plan.params[group.name].scale
        assert array is not None
        factor = spread(scale, group.spec, array.shape)
        real = self._unpacked(stored, array.ndim, group, ir.DataType.FLOAT)
        return self._before_all("Mul", [real, self._constant(f"{stored.name}_factor", factor)], {})

    def finish(self) -> ir.Model:
        """Remove the initializers that are no longer read, and return the model."""
        for name, value in list(self._graph.initializers.items()):
            if not is_read(value) and not value.is_graph_input():
                del self._graph.initializers[name]
        return self.model

    def _store(self, value: ir.Value, group: Group) -> ir.Value:
        real = constant_value(value)
        assert real is not None
        params = self._plan.params[group.name]
        integers = quantize(real, params, group.spec)
        if group.stored_as_float:
            return self._quantize(self._on_grid(value, dequantize(integers, params, group.spec)), group)
        stored = self._constant(f"{value.name}_quantized", integers)
        return (
            stored if group.cast_to is None else self._unpacked(stored, integers.ndim, group, group.cast_to)
        )

    def _on_grid(self, value: ir.Value, reals: NDArray[np.float32]) -> ir.Value:
        stored = self._constant(f"{value.name}_on_grid", reals)
        stored.shape = value.shape
        return stored

    def _unpacked(self, stored: ir.Value, rank: int, group: Group, dtype: ir.DataType) -> ir.Value:
        """Cast ``stored`` to a wider type and subtract its zero points; the runtime does it once, at load."""
        zero, spec = self._plan.params[group.name].zero_point, group.spec
        if zero.any():
            shape = [-1 if axis == spec.axis else 1 for axis in range(rank)]
            zeros = self._constant(f"{stored.name}_zero_points", zero.reshape(shape))
            pair = [self._before_all("Cast", [value], {"to": ir.DataType.INT32}) for value in (stored, zeros)]
            stored = self._before_all("Sub", pair, {})
        return self._before_all("Cast", [stored], {"to": dtype})

    def _before_all(
        self, op_type: str, inputs: list[ir.Value], attributes: Mapping[str, ir.DataType]
    ) -> ir.Value:
        """Add a node that reads constants, at the start of the graph, after the others added here."""
        name = inputs[0].name
        node = ir.node(op_type, inputs, attributes=attributes, name=self._unique(f"{name}_{op_type}"))
        out = node.outputs[0]
        out.name = self._unique(f"{name}_unpacked")
        out.type = ir.TensorType(attributes["to"]) if attributes else inputs[0].type
        out.shape = inputs[0].shape
        if self._last is None:
            self._graph.insert_before(self._graph[0], node)
        else:
            self._graph.insert_after(self._last, node)
        self._last = node
        return out

    def _quantize(self, value: ir.Value, group: Group) -> ir.Value:
        if group.spec.reduce_bits and not group.constant:
            value = self._clip(value, group)
        node = ir.node(
            "QuantizeLinear",
            [value, *self._params(group)],
            attributes={} if group.spec.axis is None else {"axis": group.spec.axis},
            name=self._unique(f"{value.name}_QuantizeLinear"),
            domain=self._domain(group.spec.dtype),
        )
        out = node.outputs[0]
        out.name = self._unique(f"{value.name}_quantized")
        out.dtype, out.shape = group.spec.dtype, value.shape
        insert_after(value, node, self._graph)
        return out

    def _clip(self, value: ir.Value, group: Group) -> ir.Value:
        """Insert a Clip to the reduced range: QuantizeLinear saturates only at the limits of its type."""
        ends = np.array(group.spec.limits, group.spec.dtype.numpy())
        low, high = dequantize(ends, self._plan.params[group.name], group.spec)
        limits = self._constant(f"{group.name}_low", low), self._constant(f"{group.name}_high", high)
        node = ir.node("Clip", [value, *limits], name=self._unique(f"{value.name}_Clip"))
        out = node.outputs[0]
        out.name = self._unique(f"{value.name}_clipped")
        out.type, out.shape = value.type, value.shape
        insert_after(value, node, self._graph)
        return out

    def _read(
        self,
        point: QuantPoint | BiasPoint,
        integers: ir.Value,
        params: tuple[ir.Value, ...],
        place: Mapping[str, int | None],
    ) -> None:
        node = self._dequantize(point.tensor, integers, params, place)
        out = node.outputs[0]
        producer = integers.producer()
        if point.consumer == GRAPH_OUTPUT:
            self._graph.insert_after(_known(producer), node)
            self._leave(point, out)
            return
        consumer = _known(self._nodes[point.consumer])
        if producer is not None:
            self._graph.insert_after(producer, node)
        else:
            self._graph.insert_before(consumer, node)
        consumer.replace_input_with(point.input_index, out)

    def _dequantize(
        self, tensor: str, integers: ir.Value, params: tuple[ir.Value, ...], place: Mapping[str, int | None]
    ) -> ir.Node:
        node = ir.node(
            "DequantizeLinear",
            [integers, *params],
            attributes={name: number for name, number in place.items() if number is not None},
            name=self._unique(f"{tensor}_DequantizeLinear"),
            domain=self._domain(integers.dtype),
        )
        out = node.outputs[0]
        out.name = self._unique(f"{tensor}_dequantized")
        out.dtype, out.shape = ir.DataType.FLOAT, integers.shape
        return node

    def _domain(self, dtype: ir.DataType | None) -> str:
        """The domain of Q and DQ: ONNX Runtime's own for 16 bits where the model's opset has only 8."""
        imports = self._graph.opset_imports
        if dtype not in _WIDE or imports.get("", OPSET_OF_BLOCKS) >= OPSET_OF_BLOCKS:
            return ""
        imports.setdefault(RUNTIME_DOMAIN, 1)
        return RUNTIME_DOMAIN

    def _leave(self, point: QuantPoint | BiasPoint, value: ir.Value) -> None:
        """Make ``value`` the graph output instead of the tensor of ``point``, and give it that name."""
        old = self._graph.outputs[point.input_index]
        value.name, old.name = old.name, self._unique(f"{old.name}_float")
        self._graph.outputs[point.input_index] = value

    def _params(self, group: Group, *copy: str) -> tuple[ir.Value, ...]:
        key = (group.name, *copy)
        if key not in self._scales:
            params: QuantParams = self._plan.params[group.name]
            scale = self._constant(f"{group.name}_scale", params.scale)
            self._scales[key] = (scale, *self._zero_points(group, params))
        return self._scales[key]

    def _zero_points(self, group: Group, params: QuantParams) -> tuple[ir.Value, ...]:
        """Store zero points in the type that DequantizeLinear reads; per-block ones are omitted if all 0."""
        dtype = group.cast_to or group.spec.dtype
        values = params.zero_point.astype(np.int32) * (group.cast_to is None)
        if group.spec.block_size is not None and not values.any():
            return ()
        return (self._constant(f"{group.name}_zero_point", values.astype(dtype.numpy())),)

    def _repeated(self, group: Group, size: int) -> tuple[ir.Value, ...]:
        """Store the parameters of a tensor, repeated for each of ``size`` channels."""
        key = (group.name, size)
        if key not in self._scales:
            params = self._plan.params[group.name]
            self._scales[key] = (
                self._constant(f"{group.name}_scales", np.full(size, params.scale)),
                self._constant(f"{group.name}_zero_points", np.full(size, params.zero_point)),
            )
        return self._scales[key]

    def _constant(self, name: str, array: NDArray[np.generic]) -> ir.Value:
        value = ir.val(self._unique(name), const_value=ir.tensor(array))
        self._graph.register_initializer(value)
        return value

    def _unique(self, name: str) -> str:
        chosen = unique_name(name[-LONGEST_NAME:], self._names)
        self._names.add(chosen)
        return chosen


def _copy(point: QuantPoint, group: Group) -> tuple[str, ...]:
    """Return the key of the stored copy of integers and scales that ``point`` reads; empty if shared."""
    return (point.consumer,) if group.copied else ()


def _is_shareable(group: Group, stored: ir.Value) -> bool:
    """Whether nodes that read floats may read the integers of a constant, dequantized by Cast and Mul."""
    array = constant_value(stored)
    plain = group.constant and group.spec.block_size is None
    return plain and array is not None and array.size >= LEAST_SHARED


def _known(node: ir.Node | None) -> ir.Node:
    assert node is not None
    return node
