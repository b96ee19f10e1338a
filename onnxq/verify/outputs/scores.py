"""Tell outputs that decide, such as logits, from those that describe: embeddings, features, hidden states.

The largest entry of logits is a decision. That of an embedding means nothing, and little noise changes it.
The graph tells most of them: scores of classes come from a layer with weights, or from Softmax. What comes
from a normalization, a residual sum, Tanh or a recurrent layer, whatever pools, moves or activates it then,
is no score. Nor do scores decide that lie beside other numbers, as in the rows of a detector, which hold a
box and scores. Of the others, values tell: a network that was trained to decide has scores whose softmax is
not uniform.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxq.graph.nodes import constant_value, is_op
from onnxq.graph.operators import MOVING, WEIGHTED, data_values

UNIFORM = 0.99
"""Share of the greatest possible entropy: if the softmax of no row has less, the rows are no scores.

The class of two with a probability of 0.56 has this much.
"""

LOOKED_AT = 2**20
"""About the largest number of scores of a batch to compute entropies of; of more, evenly spaced rows."""

_SCORES = frozenset(("Softmax", "LogSoftmax", "Sigmoid", "HardSigmoid", "Hardmax"))

_DESCRIBES = frozenset(
    (
        *("LayerNormalization", "RMSNormalization", "LpNormalization", "MeanVarianceNormalization"),
        *("GroupNormalization", "InstanceNormalization", "SimplifiedLayerNormalization"),
        *("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "Tanh", "LSTM", "GRU", "RNN"),
    )
)
"""Operators whose results are no scores. ONNX Runtime's own are called alike in any domain."""

_PASSED = MOVING | frozenset(
    (
        *("Identity", "Cast", "Dropout", "Resize", "Pad", "Where", "Concat"),
        *("Add", "Sub", "Mul", "Div", "Sum", "Mean", "Max", "Min", "Clip", "Relu", "LeakyRelu", "PRelu"),
        *("Elu", "Gelu", "HardSwish", "Mish", "Softplus", "Swish", "BatchNormalization"),
        *("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "GlobalLpPool"),
        *("ReduceMean", "ReduceSum", "ReduceMax", "QuantizeLinear", "DequantizeLinear"),
    )
)
"""Operators that are looked through: the result is of the kind of what they read."""

_ROOTS = ("Sqrt", "Pow", "ReduceL2")
"""Operators that make a length or a deviation of a sum of squares."""


def decides(output: ir.Value) -> bool | None:
    """Tell from the graph whether the largest entry of an output is a decision; None: it does not tell."""
    found = set(_endings(output))
    if True in found:
        return True
    return None if None in found or not found else False


def _endings(output: ir.Value, *, joined: bool = False) -> Iterator[bool | None]:
    """Yield what each of the nodes tells that the values come from, without those that are looked through.

    Args:
        output: the values.
        joined: look through every Concat.
    """
    waiting, seen = [output], {output}
    while waiting:
        value = waiting.pop()
        node = value.producer()
        if node is None:
            continue
        if node.op_type in _SCORES:
            yield True
        elif node.op_type in _DESCRIBES or _normalizes(node) or _is_residual(node):
            yield False
        elif node.op_type in WEIGHTED or node.op_type not in _PASSED:
            yield None
        elif not joined and node.op_type == "Concat" and _joins_scores(node):
            yield False
        else:
            new = {each for each in _read(node) if constant_value(each) is None} - seen
            seen |= new
            waiting.extend(new)


def _joins_scores(node: ir.Node) -> bool:
    """Whether a Concat joins scores with other numbers."""
    parts = [True in _endings(part, joined=True) for part in _read(node) if constant_value(part) is None]
    return any(parts) and not all(parts)


def _read(node: ir.Node) -> list[ir.Value]:
    """The values that the result is made of: what is divided, not what it is divided by."""
    return data_values(node)[:1] if node.op_type == "Div" else data_values(node)


def _normalizes(node: ir.Node) -> bool:
    """Whether values are divided by a length or deviation of their own."""
    return any(
        is_op(each, *_ROOTS) and _reads_source(each, data)
        for data, divisor in _divided(node)
        for each in _nearby(divisor)
    )


def _divided(node: ir.Node) -> Iterator[tuple[ir.Value, ir.Value]]:
    """Yield what may be divided by what: of a product, by what a factor is the inverse of."""
    if node.op_type not in ("Div", "Mul") or len(node.inputs) != 2:
        return
    first, second = node.inputs
    if first is None or second is None:
        return
    if node.op_type == "Div":
        yield first, second
        return
    for data, factor in ((first, second), (second, first)):
        if is_op(factor.producer(), "Reciprocal", "Div", "Pow"):
            yield data, factor


def _reads_source(root: ir.Node, data: ir.Value) -> bool:
    """Whether a root is computed from ``data``, or from what ``data`` is computed from."""
    maker = data.producer()
    sources = {data, *(() if maker is None else maker.inputs)} - {None}
    read = [value for value in root.inputs if value is not None]
    read += [value for start in read for node in _nearby(start) for value in node.inputs if value is not None]
    return not sources.isdisjoint(read)


NEARBY = 12
"""The number of nodes before a divisor to look at: a deviation is written in fewer."""


def _nearby(value: ir.Value) -> Iterator[ir.Node]:
    """Yield the last nodes before ``value``, up to layers with weights; sizes are no statistics."""
    waiting, seen = [value], set[ir.Node]()
    while waiting and len(seen) < NEARBY:
        node = waiting.pop(0).producer()
        if node is None or node in seen or node.op_type in (*WEIGHTED, "Shape", "Size"):
            continue
        seen.add(node)
        yield node
        waiting.extend(each for each in node.inputs if each is not None)


def _is_residual(node: ir.Node) -> bool:
    """Whether a sum adds to a value what was computed from it."""
    if node.op_type not in ("Add", "Sum") or any(value is None for value in node.inputs):
        return False
    terms = [value for value in node.inputs if value is not None and constant_value(value) is None]
    return len(terms) > 1 and any(
        _leads_to(one, other) for one in terms for other in terms if one is not other
    )


def _leads_to(value: ir.Value, result: ir.Value) -> bool:
    waiting, seen = [result], {result}
    while waiting:
        node = waiting.pop().producer()
        new = {each for each in (() if node is None else node.inputs) if each is not None} - seen
        if value in new:
            return True
        seen |= new
        waiting.extend(new)
    return False


def is_peaked(output: NDArray[np.generic], axis: int) -> bool:
    """Whether the softmax along ``axis`` is not uniform in some row."""
    rows = np.moveaxis(output, axis, -1).reshape(-1, output.shape[axis])
    rows = rows[:: max(1, rows.size // LOOKED_AT)].astype(np.float64)
    rows = rows[np.isfinite(rows).all(-1)]
    if not len(rows):
        return True
    shifted = rows - rows.max(-1, keepdims=True)
    weights = np.exp(shifted)
    total = weights.sum(-1)
    entropy = np.log(total) - (weights * shifted).sum(-1) / total
    return bool(entropy.min() < UNIFORM * np.log(rows.shape[-1]))
