"""Put a Relu or Clip where a QuantizeLinear did its work, before that QuantizeLinear is taken out.

ONNX Runtime's quantizer drops a Relu or Clip before a QuantizeLinear, because a range that begins at zero
cuts off negative values anyway:

    Conv → QuantizeLinear(range 0 … 6)   ->   Conv → Clip(0, 6)

A range that ends at zero does the same to positive values. A range with zero inside may come from a Clip too,
or cut rare values only: `onnxq.calibration.saturation` asks the samples.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onnxq.graph.nodes import (
    add_initializer,
    constant_value,
    name_of,
    replace_value,
    unused_name,
    unused_node,
)
from onnxq.graph.operators import MOVING, Range, clip_range, data_values
from onnxq.graph.walks import only_reader

NEVER_NEGATIVE = frozenset(
    (
        *("Relu", "Sigmoid", "HardSigmoid", "Softmax", "Softplus", "Abs", "Exp", "Sqrt"),
        *("ReduceL1", "ReduceL2", "ReduceSumSquare"),
    )
)
"""Operators without negative outputs, whatever their inputs are."""

KEEPING_SIGN = MOVING | frozenset(
    (
        *("Concat", "Add", "Mul", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"),
        *("ReduceMax", "ReduceMin", "ReduceMean", "ReduceSum"),
    )
)
"""Operators without negative outputs if none of their inputs is negative."""

OPSET_OF_LIMITS_AS_INPUTS = 11
"""Before it, the limits of a Clip are attributes."""


BEFORE_CLIP = "_before_clip"
"""What is added to the name of a tensor whose clipped values take over its name."""


def clip_before(model: ir.Model, quantize: ir.Node, ends: Range) -> ir.Value:
    """Return what ``quantize`` reads, clipped to its range if that begins or ends at zero.

    Args:
        model: the model. A Relu or Clip is added, unless the values are known to lie within the range.
        quantize: the QuantizeLinear. If it alone reads its input, the clipped tensor takes over the
            name. What the caller passes to the model is not clipped.
        ends: the lowest and the highest real number of its grid; infinite if they differ by channel.
    """
    real = quantize.inputs[0]
    assert real is not None
    assert quantize.graph is not None
    if 0.0 not in ends or real.producer() is None or (ends[0] == 0 and _is_never_negative(real)):
        return real
    if only_reader(real) is quantize:
        return clip_for_all(model, real, ends)
    clip = _clip(model, real, ends)
    clipped = clip.outputs[0]
    clipped.name = unused_name(f"{real.name}_clipped", model)
    clipped.type, clipped.shape = real.type, real.shape
    quantize.graph.insert_before(quantize, clip)
    quantize.replace_input_with(0, clipped)
    return clipped


def clip_for_all(model: ir.Model, real: ir.Value, ends: Range) -> ir.Value:
    """Clip a computed tensor for all who read it, and return the clipped one, which takes over the name.

    Args:
        model: the model; it is changed.
        real: the tensor. `BEFORE_CLIP` is added to its name.
        ends: the limits.
    """
    producer, before = real.producer(), unused_name(f"{real.name}{BEFORE_CLIP}", model)
    assert producer is not None
    assert producer.graph is not None
    clip = _clip(model, real, ends)
    clip.replace_input_with(0, None)
    producer.graph.insert_after(producer, clip)
    replace_value(real, clip.outputs[0])
    clip.replace_input_with(0, real)
    real.name = before
    return clip.outputs[0]


def _is_never_negative(value: ir.Value) -> bool:
    left, seen = [value], {value}
    while left:
        value = left.pop()
        node, stored = value.producer(), constant_value(value)
        if stored is not None and not np.any(np.less(stored, 0)):
            continue
        if node is None:
            return False
        limits = clip_range(node)
        if node.op_type in NEVER_NEGATIVE or (limits is not None and limits[0] >= 0):
            continue
        if node.op_type not in KEEPING_SIGN:
            return False
        sources = set(data_values(node))
        left += sources - seen
        seen |= sources
    return True


def _clip(model: ir.Model, real: ir.Value, ends: Range) -> ir.Node:
    name = unused_node(f"{name_of(real)}_clip", model)
    if ends == (0.0, math.inf):
        return ir.node("Relu", [real], name=name)
    if model.graph.opset_imports[""] < OPSET_OF_LIMITS_AS_INPUTS:
        return ir.node("Clip", [real], attributes=dict(zip(("min", "max"), ends, strict=True)), name=name)
    dtype = (real.dtype or ir.DataType.FLOAT).numpy()
    limits = [add_initializer(model, f"{name}_limit", np.array(end, dtype)) for end in ends]
    return ir.node("Clip", [real, *limits], name=name)
