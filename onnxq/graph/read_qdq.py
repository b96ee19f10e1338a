"""Reading a Q/DQ model of any origin: which nodes are to run in integers, and between which parameters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxq.graph.nodes import input_at, int_attribute, ints_attribute
from onnxq.graph.operators import WEIGHTED, clip_range

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
"""In the standard domain, or in ONNX Runtime's own: they mean the same."""

SCALE, ZERO_POINT = 1, 2
"""Their inputs."""

AXIS = 1
"""The axis of a DequantizeLinear that names none."""

Kind = Literal["activation", "weight", "bias"]


@dataclass(frozen=True, eq=False)
class QdqEdge:
    """An input of a node that comes from a DequantizeLinear.

    Attributes:
        node: who reads.
        index: which input.
        dequantize: the DequantizeLinear.
        kind: what it carries.
        turned: the Transposes between that and the node, the first one first.
    """

    node: ir.Node
    index: int
    dequantize: ir.Node
    kind: Kind
    turned: tuple[ir.Node, ...] = ()

    @property
    def quantize(self) -> ir.Node | None:
        """The QuantizeLinear before it, if there is one."""
        return quantizer(self.dequantize.inputs[0])

    @cached_property
    def scale(self) -> NDArray[np.generic] | None:
        """Of the DequantizeLinear; None if it is computed at run time."""
        return constant(input_at(self.dequantize, SCALE))

    @cached_property
    def zero_point(self) -> NDArray[np.generic] | None:
        """Likewise; also None if there is none."""
        return constant(input_at(self.dequantize, ZERO_POINT))

    @property
    def dtype(self) -> ir.DataType | None:
        """The type of the integers."""
        return integer_type(self.dequantize)

    @property
    def axis(self) -> int | None:
        """The axis, of what the node reads, along which scales differ; None if there is one scale."""
        if self.scale is None or self.scale.size == 1:
            return None
        axis = int_attribute(self.dequantize, "axis", AXIS)
        axis += (self.rank or 0) if axis < 0 else 0
        for node in self.turned:
            axis = _permutation(node, self.rank or 0).index(axis)
        return axis

    @property
    def rank(self) -> int | None:
        """The number of axes, None if unknown."""
        values = stored(self.dequantize.inputs[0])
        shape = self.dequantize.inputs[0].shape if self.dequantize.inputs[0] is not None else None
        return values.ndim if values is not None else len(shape) if shape is not None else None

    @property
    def in_blocks(self) -> bool:
        """Whether neighbours along the axis share scales."""
        return int_attribute(self.dequantize, "block_size", 0) > 0


BIAS_TOLERANCE = 0.01
"""How far a bias's scale may be from input scale x weight scale: others round it."""


def scaled_by_both(bias: QdqEdge) -> bool:
    """Whether the scale of an int32 bias is that of the products that it is added to, as far as known."""
    operator = WEIGHTED.get(bias.node.op_type)
    if operator is None:
        return True
    others = {edge.index: edge.scale for edge in edges(bias.node)}
    data, weight = others.get(operator.data), others.get(operator.weight)
    if bias.dtype != ir.DataType.INT32 or data is None or weight is None or bias.scale is None:
        return True
    product = data.astype(np.float64).reshape(-1)[0] * weight.astype(np.float64)
    return bool(np.allclose(bias.scale.astype(np.float64), product, rtol=BIAS_TOLERANCE, atol=0))


def called(node: ir.Node) -> str:
    """The name of a node, or of its output if it has none."""
    return node.name or next((value.name for value in node.outputs if value.name), "") or "?"


def quantizer(value: ir.Value | None) -> ir.Node | None:
    """The QuantizeLinear that made ``value``, if one did."""
    return _made_by(value, QUANTIZE)


def dequantizer(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear that made ``value``, if one did; constants may be transposed behind it."""
    turned = _transposes(value)
    return _made_by(turned[0].inputs[0] if turned else value, DEQUANTIZE)


def _transposes(value: ir.Value | None) -> tuple[ir.Node, ...]:
    """The Transposes that a constant went through last."""
    maker = _made_by(value, "Transpose")
    return () if maker is None or not is_stored(value) else (*_transposes(maker.inputs[0]), maker)


def _permutation(node: ir.Node, rank: int) -> tuple[int, ...]:
    return ints_attribute(node, "perm", tuple(reversed(range(rank))))


def _made_by(value: ir.Value | None, op_type: str) -> ir.Node | None:
    producer = value.producer() if value is not None else None
    return producer if producer is not None and producer.op_type == op_type else None


def constant(value: ir.Value | None) -> NDArray[np.generic] | None:
    """The array of an initializer or of a Constant, None for anything else."""
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else np.asarray(tensor.numpy())


def is_stored(value: ir.Value | None) -> bool:
    """Whether ``value`` is a constant, perhaps behind Q, DQ, Cast, Sub (of zero points) and Transpose."""
    return stored(value) is not None


def stored(value: ir.Value | None) -> NDArray[np.generic] | None:
    """The constant that ``value`` was made of; None if it was made of something computed."""
    while value is not None and (maker := value.producer()) is not None and maker.op_type in _PASSED:
        if maker.op_type == "Sub" and not is_stored(maker.inputs[1]):
            return None
        value = maker.inputs[0]
    return constant(value)


_PASSED = frozenset({QUANTIZE, DEQUANTIZE, "Cast", "Sub", "Identity", "Transpose"})


def integer_type(node: ir.Node) -> ir.DataType | None:
    """The type of the integers that a QuantizeLinear gives or a DequantizeLinear takes, None if unknown."""
    if zero := input_at(node, ZERO_POINT):
        values = constant(zero)
        return zero.dtype or (None if values is None else ir.DataType.from_numpy(values.dtype))
    if node.op_type == QUANTIZE:
        chosen = int_attribute(node, "output_dtype", 0)
        return ir.DataType(chosen) if chosen else ir.DataType.UINT8
    source = node.inputs[0]
    if before := quantizer(source):
        return integer_type(before)
    return source.dtype if source is not None else None


def edges(node: ir.Node) -> Iterator[QdqEdge]:
    """The inputs of ``node`` that come from a DequantizeLinear. What only moves a constant has none."""
    if node.op_type in _PASSED and is_stored(input_at(node, 0)):
        return
    for index, value in enumerate(node.inputs):
        if (maker := dequantizer(value)) is not None:
            yield QdqEdge(node, index, maker, _kind(node, index, value, maker), _transposes(value))


def _kind(node: ir.Node, index: int, value: ir.Value | None, maker: ir.Node) -> Kind:
    """Stored int32 is a bias wherever it is read: by a normalization, or by the Add behind a MatMul."""
    operator = WEIGHTED.get(node.op_type)
    if not is_stored(value):
        return "activation"
    if operator is None:
        return "bias" if integer_type(maker) == ir.DataType.INT32 else "activation"
    return "bias" if index == operator.bias else "weight" if index == operator.weight else "activation"


def computing(graph: ir.Graph) -> Iterator[ir.Node]:
    """The nodes that are neither Q nor DQ."""
    return (node for node in graph if node.op_type not in (QUANTIZE, DEQUANTIZE))


def layers(graph: ir.Graph) -> tuple[ir.Node, ...]:
    """The weighted nodes that are to run in integers: data and weight both come from DequantizeLinear.

    Weights in blocks beside float data count too.
    """
    return tuple(node for node in graph if node.op_type in WEIGHTED and _both_sides(node))


def _both_sides(node: ir.Node) -> bool:
    operator = WEIGHTED[node.op_type]
    data, weight = (dequantizer(input_at(node, index)) for index in (operator.data, operator.weight))
    if weight is not None and int_attribute(weight, "block_size", 0) > 0:
        return True
    return data is not None and weight is not None


def links(graph: ir.Graph) -> tuple[ir.Node, ...]:
    """The other nodes that stand between integers: all their real inputs from DQ, all outputs to Q."""
    return tuple(node for node in computing(graph) if node.op_type not in WEIGHTED and _between(node))


def _between(node: ir.Node) -> bool:
    reals = [value for value in node.inputs if value is not None and _is_real(value)]
    behind = [value for value in node.outputs if value.name and (value.uses() or value.is_graph_output())]
    return (
        bool(reals and behind)
        and any(not is_stored(value) for value in reals)
        and all(dequantizer(value) is not None for value in reals)
        and all(readers_quantize(unclipped(value)) for value in behind)
    )


def _is_real(value: ir.Value) -> bool:
    return dequantizer(value) is not None or value.dtype in (None, ir.DataType.FLOAT, ir.DataType.FLOAT16)


def unclipped(value: ir.Value) -> ir.Value:
    """``value``, or what the Relu and Clip that alone read it make of it."""
    uses = tuple(value.uses())
    if len(uses) == 1 and not value.is_graph_output() and clip_range(uses[0].node) is not None:
        return unclipped(uses[0].node.outputs[0])
    return value


def readers_quantize(value: ir.Value) -> bool:
    """Whether all who read ``value`` are QuantizeLinear, and it does not leave the graph."""
    uses = tuple(value.uses())
    return bool(uses) and not value.is_graph_output() and all(use.node.op_type == QUANTIZE for use in uses)
