"""Find the outputs whose rows the values of a model select or put in order, as a detector's boxes.

After TopK, NonMaxSuppression, NonZero, Unique or Compress, a small change of the scores changes the order or
the number of rows, although each row stays what it is. The axis of the rows is followed from the selection
through later operators to the outputs. It ends at operators without a rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from onnxq.graph.nodes import (
    STANDARD_DOMAIN,
    all_nodes,
    constant_value,
    input_at,
    int_attribute,
    ints_attribute,
    rank,
)


@dataclass(frozen=True)
class Rows:
    """The rows of a tensor that a selection made.

    Attributes:
        axis: their axis, counted from the first.
        batched: whether each index of axis 0 has rows of its own, as after TopK.
    """

    axis: int
    batched: bool


SELECTIONS = frozenset({"TopK", "NonMaxSuppression", "NonZero", "Unique", "Compress"})


def selects(model: ir.Model) -> bool:
    """Whether the model has a selection."""
    return any(node.op_type in SELECTIONS for node in all_nodes(model))


def selected_rows(model: ir.Model) -> Mapping[ir.Value, Rows]:
    """Map the tensors whose rows come from a selection to these rows; bodies of Loop and Scan are left out.

    Args:
        model: a model with inferred shapes, without functions.
    """
    found: dict[ir.Value, Rows] = {}
    _follow(model.graph, found)
    return found


def _follow(graph: ir.Graph, found: dict[ir.Value, Rows]) -> None:
    for node in graph:
        if node.domain == STANDARD_DOMAIN:
            found.update(_branched(node, found) if node.op_type == "If" else _one_or_other(node, found))


def _one_or_other(node: ir.Node, found: Mapping[ir.Value, Rows]) -> Iterator[tuple[ir.Value, Rows]]:
    return _made(node) if node.op_type in SELECTIONS else _moved(node, found)


def _branched(node: ir.Node, found: dict[ir.Value, Rows]) -> Iterator[tuple[ir.Value, Rows]]:
    """Yield the outputs of an If that have rows in one of its branches."""
    for attribute in node.attributes.values():
        branch = attribute.as_graph()
        _follow(branch, found)
        pairs = zip(node.outputs, branch.outputs, strict=True)
        yield from ((output, found[given]) for output, given in pairs if given in found)


def _made(node: ir.Node) -> Iterator[tuple[ir.Value, Rows]]:
    """Yield the outputs of a selection whose rows it makes."""
    dims = rank(input_at(node, 0))
    axis = int_attribute(node, "axis", -1)
    if node.op_type == "TopK" and dims is not None:
        axis %= dims
        several = (value for value in node.outputs if _shape(value)[axis : axis + 1] != (1,))
        yield from ((value, Rows(axis, batched=axis > 0)) for value in several)
    elif node.op_type in {"NonMaxSuppression", "NonZero"}:
        yield node.outputs[0], Rows(int(node.op_type == "NonZero"), batched=False)
    elif node.op_type in {"Unique", "Compress"}:
        along = axis % dims if "axis" in node.attributes and dims is not None else 0
        yield node.outputs[0], Rows(along, batched=False)


def _moved(node: ir.Node, found: Mapping[ir.Value, Rows]) -> Iterator[tuple[ir.Value, Rows]]:
    """Yield the outputs that have the rows of an input."""
    rule = _RULES.get(node.op_type)
    for index, value in enumerate(node.inputs):
        if rule is None or value is None or value not in found or value.shape is None:
            continue
        for output in node.outputs:
            axis = None if output.shape is None else rule(node, index, found[value].axis)
            if axis is not None:
                yield output, Rows(axis, found[value].batched and axis > 0)


_Rule = Callable[[ir.Node, int, int], int | None]
"""Node, position of an input, axis of its rows -> axis of the rows in the outputs; None if there is none."""


def _shape(value: ir.Value | None) -> tuple[int | ir.SymbolicDim, ...]:
    return () if value is None or value.shape is None else tuple(value.shape)


def _kept(node: ir.Node, index: int, axis: int) -> int | None:
    """Elements stay where they are; smaller inputs are broadcast, aligned at the last axis."""
    return axis + len(_shape(node.outputs[0])) - len(_shape(node.inputs[index]))


def _batch_kept(node: ir.Node, index: int, axis: int) -> int | None:
    return 0 if index == axis == 0 else None


def _multiplied(node: ir.Node, index: int, axis: int) -> int | None:
    """MatMul sums over the last axis of the first factor, and the last but one of the second."""
    summed = len(_shape(node.inputs[index])) - 1 - index
    return None if axis == summed else _kept(node, index, axis)


def _transposed(node: ir.Node, _: int, axis: int) -> int | None:
    backwards = tuple(reversed(range(len(_shape(node.outputs[0])))))
    return ints_attribute(node, "perm", backwards).index(axis)


def _reshaped(node: ir.Node, index: int, axis: int) -> int | None:
    """The axis with as many elements in front of it, or behind it, as before."""
    given, made = _shape(node.inputs[0]), _shape(node.outputs[0])
    for size_of in (_behind, _before):
        wanted = size_of(given, axis)
        places = [i for i in range(len(made)) if wanted is not None and size_of(made, i) == wanted]
        places = [i for i in places if _is_same(made[i], given[axis])]
        if index == 0 and len(places) == 1:
            return places[0]
    return None


def _behind(shape: tuple[int | ir.SymbolicDim, ...], axis: int) -> int | None:
    return _product(shape[axis + 1 :])


def _before(shape: tuple[int | ir.SymbolicDim, ...], axis: int) -> int | None:
    return _product(shape[:axis])


def _product(sizes: tuple[int | ir.SymbolicDim, ...]) -> int | None:
    known = [size for size in sizes if isinstance(size, int)]
    return math.prod(known) if len(known) == len(sizes) else None


def _is_same(one: int | ir.SymbolicDim, other: int | ir.SymbolicDim) -> bool:
    """Whether two sizes are equal; unknown ones are taken for equal."""
    return one == other if isinstance(one, int) or isinstance(other, int) else True


def _gathered(node: ir.Node, index: int, axis: int) -> int | None:
    chosen = int_attribute(node, "axis", 0) % len(_shape(node.inputs[0]))
    if index == 1:
        return chosen + axis
    if axis == chosen:
        return None
    return axis if axis < chosen else axis + len(_shape(node.inputs[1])) - 1


def _gathered_elements(node: ir.Node, index: int, axis: int) -> int | None:
    chosen = int_attribute(node, "axis", 0) % len(_shape(node.inputs[0]))
    return None if index == 0 and axis == chosen else axis


def _gathered_nd(node: ir.Node, index: int, axis: int) -> int | None:
    return axis if index == 1 and axis < len(_shape(node.inputs[1])) - 1 else None


def _reduced(node: ir.Node, index: int, axis: int) -> int | None:
    dims = len(_shape(node.inputs[0]))
    given = constant_value(input_at(node, 1))
    axes = ints_attribute(node, "axes", ()) if given is None else tuple(given.reshape(-1).tolist())
    gone = {each % dims for each in axes}
    return _without(node, axis, gone) if gone and index == 0 else None


def _best(node: ir.Node, _: int, axis: int) -> int | None:
    return _without(node, axis, {int_attribute(node, "axis", 0) % len(_shape(node.inputs[0]))})


def _without(node: ir.Node, axis: int, gone: set[int]) -> int | None:
    if axis in gone:
        return None
    return axis if int_attribute(node, "keepdims", 1) else axis - sum(each < axis for each in gone)


def _pooled(node: ir.Node, index: int, axis: int) -> int | None:
    """RoiAlign: one row for each box."""
    return 0 if index > 0 else None


_KEPT = (
    *("Add", "Sub", "Mul", "Div", "Pow", "Mod", "Min", "Max", "Sum", "Mean", "Where", "PRelu"),
    *("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Xor", "Not"),
    *("Abs", "Ceil", "Clip", "Erf", "Exp", "Floor", "Log", "Neg", "Reciprocal", "Round", "Sign", "Sqrt"),
    *("Relu", "LeakyRelu", "Elu", "Gelu", "HardSigmoid", "HardSwish", "Mish", "Sigmoid", "Softplus", "Tanh"),
    *("Cast", "Identity", "Dropout", "Softmax", "LogSoftmax", "LayerNormalization", "LpNormalization"),
    *("Concat", "Pad", "Slice", "Split", "Expand", "Tile", "QuantizeLinear", "DequantizeLinear"),
)

_BATCH_KEPT = (
    *("Conv", "ConvTranspose", "Gemm", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"),
    *("BatchNormalization", "InstanceNormalization", "GroupNormalization", "Resize"),
)

_REDUCED = ("ReduceMax", "ReduceMin", "ReduceMean", "ReduceSum", "ReduceProd", "ReduceL2")

_RULES: Mapping[str, _Rule] = {
    **dict.fromkeys(_KEPT, _kept),
    **dict.fromkeys(_BATCH_KEPT, _batch_kept),
    **dict.fromkeys(_REDUCED, _reduced),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshaped),
    **dict.fromkeys(("ArgMax", "ArgMin"), _best),
    "MatMul": _multiplied,
    "Transpose": _transposed,
    "Gather": _gathered,
    "GatherElements": _gathered_elements,
    "GatherND": _gathered_nd,
    "RoiAlign": _pooled,
}
