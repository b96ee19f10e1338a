"""Let operators work on the integers themselves, for which ONNX Runtime has a kernel but fuses no Q/DQ.

An operator that only moves values, or cuts them off, gives integers with the same scale and zero point:

    Q → DQ → Pad → Q → DQ            ->  Q → Pad → DQ
    Q → DQ → Relu → Q → DQ           ->  Q → Clip → DQ

The ramp of a HardSwish, ``clip(x / 6 + 1/2, 0, 1)``, is x cut off at -3 and 3, on another grid. The ends of
the ramp are rounded to integers. What is left is a product of two quantized tensors:

    Q → DQ → HardSwish → Q           ->  Q → DQ → Mul → Q
                                           ↳ Clip → DQ ↗

A BatchNormalization that no layer could take in is a depthwise convolution with one weight a channel, which
its scale reproduces exactly:

    Q → DQ → BatchNormalization → Q  ->  Q → DQ → Conv → Q

A node whose parameters do not allow it stays, in float between Q/DQ.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxq.core.numerics import quantize_bias
from onnxq.core.plan import QuantSpec
from onnxq.graph.batchnorm_statistics import read_batchnorm
from onnxq.graph.nodes import add_initializer, input_at, is_op, rank, replace_value, unused_name, unused_node
from onnxq.graph.operators import attribute_value, clip_range
from onnxq.graph.qdq.read_qdq import (
    DEQUANTIZE,
    QUANTIZE,
    SCALE,
    ZERO_POINT,
    constant,
    integer_type,
    quantizer,
)
from onnxq.graph.walks import only_reader, producer_of

HARD_SWISH_END = 3.0
"""The ramp of a HardSwish goes from minus this to this."""


@dataclass(frozen=True)
class _Between:
    """A node between DequantizeLinear and QuantizeLinear.

    Attributes:
        model: the model.
        node: the node.
        before: the DequantizeLinear of its first input.
        after: the QuantizeLinear of each of its outputs.
        scale: the scale of ``before``.
        zero: the zero point of ``before``.
        limits: the lowest and the highest integer.
    """

    model: ir.Model
    node: ir.Node
    before: ir.Node
    after: tuple[ir.Node, ...]
    scale: float
    zero: int
    limits: tuple[int, int]

    @property
    def keeps_params(self) -> bool:
        """Whether the parameters after the node are those before it."""
        return all(node.inputs[1:] == self.before.inputs[1:] for node in self.after)

    def level(self, real: float) -> int:
        """The integer that stands for ``real``, at most the highest and at least the lowest."""
        low, high = self.limits
        return int(np.clip(np.rint(np.float64(real) / self.scale) + self.zero, low, high))

    def constant(self, name: str, number: float, dtype: ir.DataType | None = None) -> ir.Value:
        """Add a constant, of the type of the integers unless ``dtype`` is another."""
        dtype = dtype or integer_type(self.before)
        assert dtype is not None
        return add_initializer(self.model, f"{self.node.name}_{name}", np.array(number, dtype.numpy()))


def work_on_integers(model: ir.Model, names: Collection[str]) -> None:
    """Rewrite the nodes of the main graph with these names, where their parameters allow it.

    Args:
        model: a Q/DQ model; it is changed.
        names: names of nodes between Q/DQ.
    """
    for node in [node for node in model.graph if node.name in names]:
        if node.op_type == "BatchNormalization":
            _convolve(node, model)
            continue
        found = _between(node, model)
        if found is not None:
            _FORMS.get(node.op_type, _move)(found)


def _between(node: ir.Node, model: ir.Model) -> _Between | None:
    before = producer_of(node.inputs[0])
    after = tuple(reader for value in node.outputs if value.name and (reader := only_reader(value)))
    if (
        before is None
        or before.op_type != DEQUANTIZE
        or [n.op_type for n in after] != [QUANTIZE] * len(after)
    ):
        return None
    scale, zero = constant(before.inputs[SCALE]), constant(input_at(before, ZERO_POINT))
    dtype = integer_type(before)
    if (
        scale is None
        or scale.size != 1
        or dtype is None
        or len(after) < sum(bool(v.name) for v in node.outputs)
    ):
        return None
    limits = QuantSpec(dtype, symmetric=False).limits
    return _Between(model, node, before, after, float(scale), 0 if zero is None else int(zero), limits)


def _move(found: _Between) -> None:
    """Let a node that moves values read and give integers; what a Pad fills in is zero."""
    if not found.keeps_params:
        return
    if found.node.op_type == "Pad" and attribute_value(found.node, "mode") == "constant":
        found.node.resize_inputs(max(len(found.node.inputs), 3))
        found.node.replace_input_with(2, found.constant("zero", found.zero))
    _read_integers(found)


def _clip(found: _Between) -> None:
    """Turn a Relu or Clip into a Clip of integers."""
    ends = clip_range(found.node)
    if not found.keeps_params or ends is None:
        return
    found.node.op_type = "Clip"
    found.node.resize_inputs(3)
    for index, name, end in ((1, "low", ends[0]), (2, "high", ends[1])):
        found.node.replace_input_with(index, found.constant(name, found.level(end)))
    _read_integers(found)


def _read_integers(found: _Between) -> None:
    """Remove the DequantizeLinear before the node and the QuantizeLinear after it."""
    found.node.replace_input_with(0, found.before.inputs[0])
    for after in found.after:
        value, integers = after.inputs[0], after.outputs[0]
        assert value is not None
        value.type = ir.TensorType(integers.dtype or ir.DataType.UINT8)
        integers.replace_all_uses_with(value)
        _remove(after)
    _remove(found.before)


LEVEL = 64
"""The integer that stands for the factor of a channel; the scale of the channel is a 64th of the factor."""

LARGEST_BIAS = 2.0**30
"""The largest integer of a bias."""


def _convolve(node: ir.Node, model: ir.Model) -> None:
    """Turn a BatchNormalization after a DequantizeLinear into a depthwise convolution in integers.

    It stays as it is, in float, if float32 cannot hold its scales.
    """
    before, norm, axes = producer_of(node.inputs[0]), read_batchnorm(node), rank(node.inputs[0])
    step = None if before is None or before.op_type != DEQUANTIZE else constant(before.inputs[SCALE])
    if norm is None or axes is None or step is None or step.size != 1:
        return
    with np.errstate(all="ignore"):
        factor = norm.gamma / norm.deviation
        shift = norm.beta - norm.mean * factor
        least = np.maximum(
            np.abs(shift) / (step.astype(np.float64) * LARGEST_BIAS), np.finfo(np.float32).tiny
        )
        scale = np.maximum(np.abs(factor) / LEVEL, least).astype(np.float32)
        steps = (scale * step).astype(np.float32)
    if not np.isfinite([scale, steps, shift]).all() or not steps.all():
        return
    weight = np.rint(factor / scale).astype(np.int8).reshape(-1, *[1] * (axes - 1))
    node.op_type = "Conv"
    node.attributes.clear()
    node.attributes["group"] = ir.AttrInt64("group", len(scale))
    node.attributes["kernel_shape"] = ir.AttrInt64s("kernel_shape", [1] * (axes - 2))
    node.resize_inputs(3)
    _read_stored(node, 1, (weight, scale), model)
    _read_stored(node, 2, (quantize_bias(shift, steps), steps), model)


def _read_stored(
    node: ir.Node, index: int, arrays: tuple[NDArray[np.generic], NDArray[np.float32]], model: ir.Model
) -> None:
    """Let an input of a convolution read constant integers with a scale for each channel."""
    name, ends = f"{node.name}_{('x', 'factor', 'shift')[index]}", ("quantized", "scale")
    stored = [add_initializer(model, f"{name}_{e}", array) for e, array in zip(ends, arrays, strict=True)]
    read = ir.node(DEQUANTIZE, stored, attributes={"axis": 0}, name=unused_node(f"{name}_read", model))
    out = read.outputs[0]
    out.name, out.type = unused_name(name, model), ir.TensorType(ir.DataType.FLOAT)
    out.shape = ir.Shape(arrays[0].shape)
    assert node.graph is not None
    node.graph.insert_before(node, read)
    node.replace_input_with(index, out)


def _hard_swish(found: _Between) -> None:
    """Turn a HardSwish into a Clip of integers, read as the ramp from 0 to 1, and a Mul."""
    half, (lowest, highest) = round(HARD_SWISH_END / found.scale), found.limits
    low, high = found.zero - half, min(found.zero + half, highest)
    if half < 1 or low < lowest:
        return
    node, name = found.node, found.node.name
    integers = found.before.inputs[0]
    ends = found.constant("low", low), found.constant("high", high)
    clip = ir.node("Clip", [integers, *ends], name=unused_node(f"{name}_Clip", found.model))
    ramp = found.constant("ramp_scale", 0.5 / half, ir.DataType.FLOAT), ends[0]
    read = ir.node(DEQUANTIZE, [clip.outputs[0], *ramp], name=unused_node(f"{name}_ramp", found.model))
    for new, kind in ((clip, integers), (read, node.outputs[0])):
        out = new.outputs[0]
        out.name = unused_name(f"{new.name}_output", found.model)
        out.type, out.shape = kind.type if kind is not None else None, node.outputs[0].shape
    assert node.graph is not None
    node.graph.insert_before(node, [clip, read])
    node.op_type = "Mul"
    node.resize_inputs(2)
    node.replace_input_with(1, read.outputs[0])


@dataclass(frozen=True)
class Ramp:
    """A ramp ``clip(slope * x + offset, 0, 1)`` that is computed by a Clip of the integers of x.

    Attributes:
        quantize: the QuantizeLinear of x.
        slope: its slope.
        offset: its value at zero.
    """

    quantize: ir.Node
    slope: float
    offset: float


def ramp_of(dequantize: ir.Node) -> Ramp | None:
    """Return the ramp that a DequantizeLinear reads; None if it reads anything else.

    A slope that stands for that of HardSwish, but whose ends are rounded to integers, is 1/6.
    """
    clip = producer_of(dequantize.inputs[0])
    quantize = quantizer(clip.inputs[0]) if clip is not None and is_op(clip, "Clip") else None
    if clip is None or quantize is None:
        return None
    (scale, zero), (other, shift) = _params(quantize), _params(dequantize)
    low, high = (constant(input_at(clip, index)) for index in (1, 2))
    if min(scale, other) <= 0 or (scale, zero) == (other, shift) or low is None or high is None:
        return None
    dtype = integer_type(quantize)
    cut = dtype is not None and int(high) == QuantSpec(dtype, symmetric=False).limits[1]
    if int(low) != shift or not (cut or np.isclose((int(high) - shift) * other, 1)):
        return None
    half = round(HARD_SWISH_END / scale)
    if zero - shift == half and np.isclose(other * 2 * half, 1):
        return Ramp(quantize, 0.5 / HARD_SWISH_END, 0.5)
    return Ramp(quantize, other / scale, (zero - shift) * other)


def _params(node: ir.Node) -> tuple[float, int]:
    """The scale and the zero point of a Q or DQ; a scale of 0 if there are several, or it is not constant."""
    scale, zero = constant(input_at(node, SCALE)), constant(input_at(node, ZERO_POINT))
    if scale is None or scale.size != 1 or (zero is None and input_at(node, ZERO_POINT) is not None):
        return 0.0, 0
    return float(scale), 0 if zero is None else int(zero)


def replace_by_hard_sigmoid(model: ir.Model, node: ir.Node, ramp: Ramp) -> None:
    """Let a HardSigmoid of what is quantized take the place of a ramp.

    Args:
        model: the model; it is changed.
        node: the DequantizeLinear of the ramp.
        ramp: what it computes.
    """
    integers = ramp.quantize.outputs[0]
    read = ir.node(DEQUANTIZE, [integers, *ramp.quantize.inputs[1:]], domain=ramp.quantize.domain)
    attributes = {"alpha": ramp.slope, "beta": ramp.offset}
    new = ir.node("HardSigmoid", read.outputs, attributes=attributes, name=unused_node(f"{node.name}", model))
    read.outputs[0].name = unused_name(f"{integers.name}_reals", model)
    assert node.graph is not None
    node.graph.insert_before(node, [read, new])
    replace_value(node.outputs[0], new.outputs[0])
    _remove(node)


def _remove(node: ir.Node) -> None:
    assert node.graph is not None
    node.graph.remove(node, safe=True)


_FORMS: Mapping[str, Callable[[_Between], None]] = {"HardSwish": _hard_swish, "Relu": _clip, "Clip": _clip}
