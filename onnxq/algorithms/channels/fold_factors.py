"""Folding of channel factors into the constants of a model, or into a Mul where there is no such constant.

SmoothQuant (Xiao et al., 2022) divides the outputs of a LayerNormalization by factors, and folds these into
the weights of the consumers. In BERT the residual Add reads the same tensor, and a Gelu has no constants to
fold factors into. In such cases a Mul by a vector is inserted before the layers that read the tensor, one for
all of them. The Mul adds some latency. So it is inserted only where the tensor is in float anyway, and only
where it reduces the noise enough (`onnxq.algorithms.channels.equalize.worthwhile`).

Inputs of the graph have no constants to fold factors into either. Their channels may be of very different
sizes, such as those of a picture and a mask that are joined before the first convolution.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxq.algorithms.channels.labels import FIXED, Channels, Labels, ScaleFold
from onnxq.algorithms.channels.scale_rules import in_columns, own_weight
from onnxq.algorithms.layers.matrices import layers
from onnxq.core.plan import QuantPlan
from onnxq.graph.nodes import (
    add_initializer,
    constant_value,
    insert_after,
    int_attribute,
    is_op,
    name_of,
    rank,
    replace_constant,
    unused_name,
    unused_node,
)
from onnxq.graph.operators import INPUT_CHANNELS
from onnxq.graph.walks import raw_values

Factors = NDArray[np.float64]
"""One factor for each label of `Channels`; that of a fixed channel is 1."""


def folded(model: ir.Model, channels: Channels, factors: Factors) -> ir.Model:
    """Return a copy of ``model`` with the same outputs and each channel c multiplied by ``factors[c]``.

    A constant with other consumers is copied before it is changed.

    Args:
        model: the float model.
        channels: the labels of its channels, and the constants to fold factors into.
        factors: one positive factor for each label.
    """
    copy = model.clone()
    nodes = {node.name: node for node in copy.graph}
    for fold in channels.folds:
        factor = factors[fold.up] / factors[fold.down]
        if (factor != 1).any():
            _fold(copy, nodes[fold.node], fold, factor)
    return copy


def _fold(model: ir.Model, node: ir.Node, fold: ScaleFold, factor: Factors) -> None:
    array = constant_value(node.inputs[fold.index])
    assert array is not None
    replace_values(model, node, fold.index, array.astype(np.float64) * factor, "scaled")


def replace_values(
    model: ir.Model, node: ir.Node, index: int, values: NDArray[np.float64], suffix: str
) -> None:
    """Give a node another constant of the same rank and type; a copy if others read the old one too.

    Args:
        model: the model; it is changed.
        node: the node.
        index: position of the constant among its inputs.
        values: the new values; leading dimensions of size 1 are dropped if the constant has fewer.
        suffix: appended to the name of a copy.
    """
    old = node.inputs[index]
    array = constant_value(old)
    assert old is not None
    assert array is not None
    changed = np.asarray(_fitting(values, array.ndim), array.dtype)
    replace_constant(model, node, index, changed, f"{old.name}_{suffix}")


def _fitting(array: NDArray[np.float64], rank: int) -> NDArray[np.float64]:
    """Drop leading dimensions of size 1 until ``array`` has at most ``rank`` dimensions."""
    while array.ndim > rank and array.shape[0] == 1:
        array = array[0]
    return array


@dataclass(frozen=True)
class MulSite:
    """A site where a Mul can be inserted.

    Attributes:
        tensor: name of the tensor to multiply.
        readers: names of the nodes that read the product as their input 0.
        labels: labels of the channels of the product.
        is_raw: whether the tensor is computed from inputs of the graph without weights. Then small channels
            may be small by their unit, and a Mul is worthwhile only if the sizes are very different.
    """

    tensor: str
    readers: tuple[str, ...]
    labels: Labels
    is_raw: bool


def find_places(
    model: ir.Model, plan: QuantPlan, channels: Channels, skip: Collection[str] = ()
) -> tuple[Channels, list[MulSite]]:
    """Find the sites where a Mul can scale the channels of a tensor.

    Such a tensor is in float, shares its scale with no other tensor, and has only fixed channels. All points
    where it is quantized are data inputs of layers. For a convolution, no other layer may precede the tensor:
    a Mul before every convolution would take too long.

    Args:
        model: the float model.
        plan: its quantization plan.
        channels: the labels of its channels.
        skip: names of tensors to leave out.

    Returns:
        ``channels`` with additional labels for the products, and the sites.
    """
    nodes = {name_of(node): node for node in model.graph}
    readers, raw = _readers(model, plan), raw_values(model.graph)
    alone = {group.tensors[0] for group in plan.groups.values() if len(group.tensors) == 1}
    places, count = [], channels.count
    for value in _floats(model, plan):
        name = name_of(value)
        names = readers.get(name, ())
        shape = _factor_shape(value, [nodes[reader] for reader in names])
        if shape is None or name not in alone or name in skip or channels.of(name).any():
            continue
        if value in raw or all(is_op(nodes[reader], "Gemm", "MatMul") for reader in names):
            labels = np.arange(count, count + math.prod(shape)).reshape(shape)
            places.append(MulSite(name, names, labels, value in raw))
            count += labels.size
    return _extended(channels, places, nodes, count), places


def _floats(model: ir.Model, plan: QuantPlan) -> Iterator[ir.Value]:
    """Yield the inputs of the graph, and the outputs of all nodes that run in float."""
    yield from model.graph.inputs
    for node in model.graph:
        if node.name not in plan.integer_nodes:
            yield from node.outputs


def _readers(model: ir.Model, plan: QuantPlan) -> dict[str, tuple[str, ...]]:
    """Return the consumers of each tensor whose quantized consumers are all data inputs of layers."""
    data = {(one.name, one.data.input_index) for one in layers(model, plan)}
    found: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for point in plan.points:
        found[point.tensor].append((point.consumer, point.input_index))
    return {
        tensor: tuple(name for name, _ in edges) for tensor, edges in found.items() if data.issuperset(edges)
    }


def _factor_shape(value: ir.Value, readers: Collection[ir.Node]) -> tuple[int, ...] | None:
    """Return the shape of the factors that all ``readers`` can take, in the rank of ``value``; else None."""
    shapes = {_factors_of(reader, rank(value) or 0) for reader in readers}
    return shapes.pop() if len(shapes) == 1 else None


def _factors_of(node: ir.Node, dims: int) -> tuple[int, ...] | None:
    weight = own_weight(node)
    if weight is None or int_attribute(node, "transA", 0):
        return None
    last = dims - 1, len(weight)
    axis, size = last if is_op(node, "MatMul") else INPUT_CHANNELS[node.op_type](node, weight.shape)
    return tuple(size if d == axis else 1 for d in range(dims)) if 0 <= axis < dims else None


def _extended(
    channels: Channels, places: Collection[MulSite], nodes: Mapping[str, ir.Node], count: int
) -> Channels:
    folds = [
        ScaleFold(reader, 1, np.full((), FIXED, np.int64), _down(nodes[reader], place.labels))
        for place in places
        for reader in place.readers
    ]
    labels = {**channels.labels, **{place.tensor: place.labels for place in places}}
    return replace(channels, labels=labels, count=count, folds=(*channels.folds, *folds))


def _down(node: ir.Node, labels: Labels) -> Labels:
    weight = own_weight(node)
    assert weight is not None
    return in_columns(node, weight.shape, labels)


def with_muls(model: ir.Model, places: Collection[MulSite], factors: Factors) -> ir.Model:
    """Return a copy of ``model`` with a Mul by the factors at each of ``places``.

    Args:
        model: a model whose constants the factors are folded into already.
        places: the sites.
        factors: one positive factor for each label.
    """
    copy = model.clone()
    values = ir.convenience.create_value_mapping(copy.graph)
    nodes = {node.name: node for node in copy.graph}
    for place in places:
        value = values[place.tensor]
        vector = factors[place.labels].astype(np.float32)
        vector = vector.reshape(vector.shape[vector.shape.index(vector.size) :])  # without leading ones
        scale = add_initializer(copy, unused_name(f"{place.tensor}_factors", copy), vector)
        node = ir.node("Mul", [value, scale], name=unused_node(f"{place.tensor}_smooth", copy))
        out = node.outputs[0]
        out.name = unused_name(f"{place.tensor}_smooth", copy)
        out.type, out.shape = value.type, value.shape
        insert_after(value, node, copy.graph)
        for reader in place.readers:
            nodes[reader].replace_input_with(0, out)
    return copy
