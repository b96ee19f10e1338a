"""Canonical forms that targets know.

GlobalAveragePool for ReduceMean, Add for Sum, Flatten for Reshape, a matrix for a stack of one matrix.
Attributes of an AveragePool that change nothing are removed, because integer kernels do not know them all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from onnxq.graph.nodes import (
    add_initializer,
    all_nodes,
    constant_value,
    input_at,
    int_attribute,
    ints_attribute,
    is_op,
    rank,
    unused_name,
)
from onnxq.graph.operators import attribute_value
from onnxq.graph.passes._weighted import FLOATS
from onnxq.graph.walks import producer_of


class ReduceMeanToPoolPass(ir.passes.InPlacePass):
    """Turn a ReduceMean over all spatial axes into a GlobalAveragePool.

    ReduceMean(x[N, C, d1 … dn], axes=2…n+1, keepdims=1)  ->  GlobalAveragePool(x)
    ReduceMean(x[N, C, d1 … dn], axes=2…n+1, keepdims=0)  ->  Flatten(GlobalAveragePool(x), axis=1)

    The means of a normalization that is written in primitives stay: runtimes know LayerNormalization by them.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every ReduceMean over exactly the spatial axes of a tensor of known rank."""
        means = [node for node in all_nodes(model) if _is_spatial_mean(node) and not _normalizes(node)]
        for node in means:
            _rewrite(node)
        return ir.passes.PassResult(model, modified=bool(means))


def _is_spatial_mean(node: ir.Node) -> bool:
    if not is_op(node, "ReduceMean") or node.inputs[0] is None or node.inputs[0].dtype not in FLOATS:
        return False
    dims, axes = rank(node.inputs[0]), _axes(node)
    return dims is not None and dims >= 3 and sorted(a % dims for a in axes) == list(range(2, dims))


def _normalizes(mean: ir.Node) -> bool:
    """Whether a mean is subtracted from its own input, or is one of squares."""
    source = mean.inputs[0]
    square = producer_of(source)
    if square is not None and (is_op(square, "Pow") or (is_op(square, "Mul") and len({*square.inputs}) == 1)):
        return True
    return any(is_op(use.node, "Sub") and source in use.node.inputs for use in mean.outputs[0].uses())


def _axes(node: ir.Node) -> tuple[int, ...]:
    """Read the axes from the attribute (opset below 18) or input; empty if not constant, or for all axes."""
    stored = constant_value(input_at(node, 1))
    return ints_attribute(node, "axes", ()) if stored is None else tuple(int(a) for a in stored.reshape(-1))


def _rewrite(node: ir.Node) -> None:
    flat = not int_attribute(node, "keepdims", 1)
    node.op_type = "GlobalAveragePool"
    node.attributes.clear()
    node.resize_inputs(1)
    if flat and node.graph is not None:
        _flatten(node, node.graph)


def _flatten(node: ir.Node, graph: ir.Graph) -> None:
    """Insert a Flatten after the node; its output takes over the name of the node's output."""
    pooled, source = node.outputs[0], node.inputs[0]
    flatten = ir.node("Flatten", inputs=[pooled], attributes={"axis": 1}, name=f"{node.name}_flatten")
    flat = flatten.outputs[0]
    flat.name, flat.shape, flat.type = pooled.name, pooled.shape, pooled.type
    users = [use for use in pooled.uses() if use.node is not flatten]
    for user, index in users:
        user.replace_input_with(index, flat)
    for i, output in enumerate(graph.outputs):
        if output is pooled:
            graph.outputs[i] = flat
    pooled.name = f"{flat.name}_pooled"
    if source is not None and source.shape is not None:
        pooled.shape = ir.Shape([*source.shape[:2], *[1] * (len(source.shape) - 2)])
    graph.insert_after(node, flatten)


class SumToAddPass(ir.passes.InPlacePass):
    """Turn a Sum of two operands into Add, the form that targets know, and a Sum of one into Identity.

        Sum(a, b)  ->  Add(a, b)
        Sum(a)     ->  Identity(a)

    A Sum of more operands stays.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rename every Sum that has one or two operands."""
        names = {1: "Identity", 2: "Add"}
        sums = [node for node in all_nodes(model) if is_op(node, "Sum") and len(node.inputs) in names]
        for node in sums:
            node.op_type = names[len(node.inputs)]
        return ir.passes.PassResult(model, modified=bool(sums))


class ReshapeToFlattenPass(ir.passes.InPlacePass):
    """Turn a Reshape that only merges all axes after the batch axis into a Flatten.

        Reshape(x[n, d1 … dk], (n, d1·…·dk))  ->  Flatten(x, axis=1)

    The shape may be a constant such as (0, -1) or computed from the input. A Flatten needs no shape, so the
    chain of Shape, Gather and Concat that exporters write around a Reshape disappears.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every Reshape that certainly keeps the first axis and gives two axes."""
        matches = [node for node in all_nodes(model) if is_op(node, "Reshape") and _keeps_batch(node)]
        for node in matches:
            node.op_type = "Flatten"
            node.attributes.clear()
            node.attributes["axis"] = ir.AttrInt64("axis", 1)
            node.resize_inputs(1)
        return ir.passes.PassResult(model, modified=bool(matches))


def _keeps_batch(node: ir.Node) -> bool:
    source, shape = node.inputs[0], constant_value(node.inputs[1])
    before = None if source is None else source.shape
    if shape is None:
        after = node.outputs[0].shape
        return after is not None and before is not None and _same_batch(before, after)
    target = [int(d) for d in shape.reshape(-1)]
    if len(target) != 2 or 0 in target[1:]:
        return False
    if target[0] == 0:  # copied from the input, whose elements are then all in the second axis
        return not int_attribute(node, "allowzero", 0) and before is not None and len(before) >= 2
    return before is not None and len(before) >= 2 and _same_sizes(before, target)


def _same_batch(before: ir.Shape, after: ir.Shape) -> bool:
    """Whether both shapes begin with the same known or named size."""
    if len(after) != 2 or len(before) < 2:
        return False
    first, second = before[0], after[0]
    if isinstance(first, ir.SymbolicDim) and first.value is None:
        return False
    return first == second


def _same_sizes(before: ir.Shape, target: list[int]) -> bool:
    """Whether a constant target keeps the batch axis: same first size, or the second holds all the rest."""
    if target[0] > 0:
        return before[0] == target[0]
    rest = before[1:]
    return ir.Shape(rest).is_static() and target[1] == math.prod(ir.Shape(rest).numpy())


class PlainAveragePoolPass(ir.passes.InPlacePass):
    """Remove the attributes of an AveragePool that change nothing, where integer kernels may lack them.

    dilations of 1                                        ->  removed
    ceil_mode, where no size is rounded                   ->  removed
    count_include_pad beside ceil_mode, without padding   ->  removed
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Remove what changes nothing from every AveragePool."""
        pools = [node for node in all_nodes(model) if is_op(node, "AveragePool")]
        removed = [(node, name) for node in pools for name in _superfluous(node)]
        for node, name in removed:
            del node.attributes[name]
        return ir.passes.PassResult(model, modified=bool(removed))


def _superfluous(pool: ir.Node) -> Iterator[str]:
    """Yield the attributes of a pool that change nothing."""
    if set(ints_attribute(pool, "dilations", ())) == {1}:
        yield "dilations"
    if int_attribute(pool, "ceil_mode", 0):
        if not _is_rounded(pool):
            yield "ceil_mode"
        elif int_attribute(pool, "count_include_pad", 0) and not _is_padded(pool):
            yield "count_include_pad"


def _is_padded(pool: ir.Node) -> bool:
    """Whether a pool may have padding; SAME_UPPER and SAME_LOWER depend on the size of its input."""
    return attribute_value(pool, "auto_pad") in _SAME or any(ints_attribute(pool, "pads", ()))


_SAME = ("SAME_UPPER", "SAME_LOWER")


def _is_rounded(pool: ir.Node) -> bool:
    """Whether the windows of a pool may end beyond its padded input."""
    kernel, source = ints_attribute(pool, "kernel_shape", ()), pool.inputs[0]
    ones = (1,) * len(kernel)
    strides, dilations = (ints_attribute(pool, name, ones) for name in ("strides", "dilations"))
    if set(strides) == {1}:
        return False
    if source is None or source.shape is None or attribute_value(pool, "auto_pad") in _SAME:
        return True
    sizes, pads = source.shape[2:], ints_attribute(pool, "pads", (0, 0) * len(kernel))
    ends = zip(sizes, pads[: len(kernel)], pads[len(kernel) :], kernel, dilations, strides, strict=True)
    return not all(
        isinstance(size, int) and (size + before + after - dilation * (window - 1) - 1) % stride == 0
        for size, before, after, window, dilation, stride in ends
    )


class StackOfOneToMatrixPass(ir.passes.InPlacePass):
    """Turn a constant operand of MatMul that is a stack of one matrix into that matrix.

        MatMul(x, W[1, …, 1, K, N])  ->  MatMul(x, W[K, N])

    The other operand must have at least as many axes, so that the output keeps its own. If it has fewer, but
    is no vector, an Unsqueeze gives it as many. Kernels take weights in integers only if they are a matrix.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every constant that only MatMul reads, beside operands of known rank."""
        stacks = [value for value in model.graph.initializers.values() if _is_stack_of_one(value)]
        for stack in stacks:
            _unstack(model, stack)
        return ir.passes.PassResult(model, modified=bool(stacks))


def _is_stack_of_one(value: ir.Value) -> bool:
    array = constant_value(value)
    if array is None or array.ndim < 3 or any(size != 1 for size in array.shape[:-2]):
        return False
    readers = [(use.node, use.node.inputs[1 - use.idx]) for use in value.uses() if is_op(use.node, "MatMul")]
    alone = len(readers) == len(value.uses()) and not value.is_graph_output()
    return alone and all((rank(other) or 0) >= 2 and constant_value(other) is None for _, other in readers)


def _unstack(model: ir.Model, stack: ir.Value) -> None:
    array = constant_value(stack)
    assert array is not None
    for node, index in stack.uses():
        _raise_rank(model, node, 1 - index, array.ndim)
    stack.const_value = ir.tensor(array.reshape(array.shape[-2:]), name=stack.name)
    stack.shape = ir.Shape(array.shape[-2:])


def _raise_rank(model: ir.Model, node: ir.Node, index: int, wanted: int) -> None:
    """Insert an Unsqueeze before input ``index`` of ``node`` if it has less than ``wanted`` axes."""
    value = node.inputs[index]
    assert value is not None
    assert value.shape is not None
    assert node.graph is not None
    missing = wanted - len(value.shape)
    if missing <= 0:
        return
    axes = add_initializer(model, unused_name(f"{value.name}_axes", model), np.arange(missing))
    unsqueeze = ir.node("Unsqueeze", [value, axes], name=f"{node.name}_unsqueeze")
    raised = unsqueeze.outputs[0]
    raised.name, raised.type = unused_name(f"{value.name}_unsqueezed", model), value.type
    raised.shape = ir.Shape([*[1] * missing, *value.shape])
    node.graph.insert_before(node, unsqueeze)
    node.replace_input_with(index, raised)
