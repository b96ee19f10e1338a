"""What a Reshape makes where ONNX's inference gives up: as many dimensions as its second input has numbers.

Exporters (Paddle's, TensorFlow's) join a shape of sizes read off a tensor and of constants. Inference follows
the numbers only as long as it knows them all, and forgets the rank and the constants with the rest.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from onnxq.graph import constant_value, int_attribute, is_op

Sizes = list[int | None]
"""Numbers of a shape, None where not known."""


def guess_reshapes(nodes: Iterable[ir.Node]) -> bool:
    """Give the outputs of Reshapes that have no shape one; whether there was any."""
    found = False
    for node in nodes:
        if is_op(node, "Reshape") and node.outputs[0].shape is None:
            sizes = _numbers(node.inputs[1])
            if sizes is not None:
                node.outputs[0].shape = ir.Shape([_size(node, i, size) for i, size in enumerate(sizes)])
                found = True
    return found


def _size(node: ir.Node, index: int, number: int | None) -> int | ir.SymbolicDim | None:
    """What a number means to a Reshape: 0 keeps the size that there is, -1 is whatever is left."""
    data = node.inputs[0]
    if number == 0 and not int_attribute(node, "allowzero", 0):
        known = data is not None and data.shape is not None and index < len(data.shape)
        return data.shape[index] if known else None  # type: ignore[union-attr,index]
    return None if number is None or number < 0 else number


def _numbers(value: ir.Value | None) -> Sizes | None:
    """The numbers of a vector; None if not even their count is known."""
    constant = constant_value(value)
    if constant is not None:
        return [int(number) for number in np.ravel(constant)]
    node = None if value is None else value.producer()
    if is_op(node, "Concat"):
        assert node is not None
        parts = [_numbers(part) for part in node.inputs]
        return None if None in parts else [number for part in parts for number in part or ()]
    if is_op(node, "Cast", "Identity"):
        assert node is not None
        return _numbers(node.inputs[0])
    shape = None if value is None else value.shape
    count = shape[0] if shape is not None and len(shape) == 1 else None
    return [None] * count if isinstance(count, int) else None
