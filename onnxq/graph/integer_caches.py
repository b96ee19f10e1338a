"""Caches of keys and values in int8: integers go in and come out, and the model computes in float.

::

    past int8 -> DequantizeLinear -> as before -> QuantizeLinear -> present int8

Both have the same scales, so an integer that goes in comes out unchanged, however many steps a decoder makes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calibrators.data.caches import OPERATORS, Cache, find_caches
from onnxq.graph.nodes import add_initializer, name_of, unused_name, unused_node

OPSET_OF_SCALES = 13
"""The first opset with a scale for each channel."""


@dataclass(frozen=True)
class CacheScale:
    """The scales of a cache; zero points are 0.

    Attributes:
        scale: float32 ``[size of the axis]``; a single number for all elements.
        axis: the axis along which the scales change; None: one scale.
    """

    scale: NDArray[np.float32]
    axis: int | None


def quantize_caches(model: ir.Model, scales: Mapping[str, CacheScale]) -> None:
    """Let caches go in and come out as int8, in place; their names stay.

    Args:
        model: a model whose caches are float.
        scales: name of the input of a cache -> its scales.
    """
    for cache in find_caches(model.graph):
        found = scales.get(name_of(cache.past))
        if found is not None:
            numbers = _constants(model, cache, found)
            _take_integers(model, cache, numbers, found.axis)
            _give_integers(model, cache, numbers, found.axis)


def round_caches(model: ir.Model, scales: Mapping[str, CacheScale]) -> ir.Model:
    """Return a copy with float caches whose elements are all rounded before they are read.

    That is how a decoder computes that has read each position from its cache. New values in operators with a
    cache inside are not rounded.

    Args:
        model: a model whose caches are float.
        scales: name of the input of a cache -> its scales.
    """
    copy = model.clone()
    for cache in find_caches(copy.graph):
        found = scales.get(name_of(cache.past))
        if found is None:
            continue
        numbers = _constants(copy, cache, found)
        inside = cache.writer.op_type in OPERATORS
        for value in (cache.past, cache.present) if inside else (cache.writer.outputs[0],):
            _round(copy, value, numbers, found.axis)
    return copy


_Numbers = tuple[ir.Value, ir.Value]
"""Scales and zero points as initializers."""


def _constants(model: ir.Model, cache: Cache, found: CacheScale) -> _Numbers:
    name, dtype = name_of(cache.past), cache.past.dtype
    assert dtype is not None
    scale = found.scale.astype(dtype.numpy()).reshape(() if found.axis is None else -1)
    zero = np.zeros(np.shape(scale), np.int8)
    return add_initializer(model, f"{name}_scale", scale), add_initializer(model, f"{name}_zero", zero)


def _node(op_type: str, value: ir.Value, numbers: _Numbers, axis: int | None, model: ir.Model) -> ir.Node:
    attributes = {} if axis is None else {"axis": axis}
    name = unused_node(f"{value.name}_{op_type}", model)
    node = ir.node(op_type, [value, *numbers], attributes=attributes, name=name)
    output = node.outputs[0]
    output.name, output.shape = unused_name(f"{value.name}_{op_type}", model), value.shape
    dtype = numbers[1 if op_type == "QuantizeLinear" else 0].dtype
    assert dtype is not None
    output.type = ir.TensorType(dtype)
    return node


def _take_integers(model: ir.Model, cache: Cache, numbers: _Numbers, axis: int | None) -> None:
    past, uses = cache.past, tuple(cache.past.uses())
    node = _node("DequantizeLinear", past, numbers, axis, model)
    model.graph.insert_before(model.graph[0], node)
    past.type = ir.TensorType(ir.DataType.INT8)
    for use in uses:
        use.node.replace_input_with(use.idx, node.outputs[0])


def _give_integers(model: ir.Model, cache: Cache, numbers: _Numbers, axis: int | None) -> None:
    present = cache.present
    name, place = name_of(present), model.graph.outputs.index(present)
    present.name = unused_name(f"{name}_float", model)
    node = _node("QuantizeLinear", present, numbers, axis, model)
    node.outputs[0].name = name
    model.graph.append(node)
    model.graph.outputs[place] = node.outputs[0]


def _round(model: ir.Model, value: ir.Value, numbers: _Numbers, axis: int | None) -> None:
    """Let all that read ``value`` read it rounded; an output keeps its name."""
    uses, producer = tuple(value.uses()), value.producer()
    is_output, name = value.is_graph_output(), name_of(value)
    pair = [_node("QuantizeLinear", value, numbers, axis, model)]
    pair.append(_node("DequantizeLinear", pair[0].outputs[0], numbers, axis, model))
    if producer is None:
        model.graph.insert_before(model.graph[0], pair)
    else:
        model.graph.insert_after(producer, pair)
    rounded = pair[1].outputs[0]
    for use in uses:
        use.node.replace_input_with(use.idx, rounded)
    if is_output:
        model.graph.outputs[model.graph.outputs.index(value)] = rounded
        value.name, rounded.name = unused_name(f"{name}_float", model), name
