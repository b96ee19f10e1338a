"""Read a Q/DQ model of any origin: which nodes are to run in integers, and with which parameters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxq.graph.nodes import input_at, int_attribute, ints_attribute
from onnxq.graph.operators import WEIGHTED
from onnxq.graph.walks import is_read, producer_of, unclipped

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
"""Operators in the standard domain or in ONNX Runtime's own; both mean the same."""

SCALE, ZERO_POINT = 1, 2
"""Positions of their inputs."""

AXIS = 1
"""The default axis of a DequantizeLinear."""

Kind = Literal["activation", "weight", "bias"]


@dataclass(frozen=True, eq=False)
class QdqEdge:
    """An input of a node that comes from a DequantizeLinear.

    Attributes:
        node: the node that reads.
        index: position of the input.
        dequantize: the DequantizeLinear.
        kind: the role of the tensor.
        turned: the Transposes between the DequantizeLinear and the node, in order.
    """

    node: ir.Node
    index: int
    dequantize: ir.Node
    kind: Kind
    turned: tuple[ir.Node, ...] = ()

    @property
    def quantize(self) -> ir.Node | None:
        """The QuantizeLinear before the DequantizeLinear; None if there is none."""
        return quantizer(self.dequantize.inputs[0])

    @cached_property
    def scale(self) -> NDArray[np.generic] | None:
        """The scale of the DequantizeLinear; None if it is computed at run time."""
        return constant(input_at(self.dequantize, SCALE))

    @cached_property
    def zero_point(self) -> NDArray[np.generic] | None:
        """The zero point of the DequantizeLinear; None if it has none, or it is computed at run time."""
        return constant(input_at(self.dequantize, ZERO_POINT))

    @property
    def dtype(self) -> ir.DataType | None:
        """The type of the integers."""
        return integer_type(self.dequantize)

    @property
    def axis(self) -> int | None:
        """The per-channel axis of the tensor that the node reads; None for a per-tensor scale."""
        if self.scale is None or self.scale.size == 1:
            return None
        axis = int_attribute(self.dequantize, "axis", AXIS)
        axis += (self.rank or 0) if axis < 0 else 0
        for node in self.turned:
            axis = _permutation(node, self.rank or 0).index(axis)
        return axis

    @property
    def rank(self) -> int | None:
        """The number of axes; None if unknown."""
        values = stored(self.dequantize.inputs[0])
        shape = self.dequantize.inputs[0].shape if self.dequantize.inputs[0] is not None else None
        return values.ndim if values is not None else len(shape) if shape is not None else None

    @property
    def in_blocks(self) -> bool:
        """Whether the scales are per block."""
        return int_attribute(self.dequantize, "block_size", 0) > 0


BIAS_TOLERANCE = 0.01
"""Relative tolerance for a bias scale compared with input scale x weight scale; some tools round it."""


def scaled_by_both(bias: QdqEdge) -> bool:
    """Whether the scale of an int32 bias is input scale x weight scale, as far as these are known."""
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
    """Return the name of a node, or of its output if the node has none."""
    return node.name or next((value.name for value in node.outputs if value.name), "") or "?"


def quantizer(value: ir.Value | None) -> ir.Node | None:
    """Return the QuantizeLinear that produces ``value``, else None."""
    return _made_by(value, QUANTIZE)


def dequantizer(value: ir.Value | None) -> ir.Node | None:
    """Return the DequantizeLinear that produces ``value``, else None.

    A constant may pass Transposes, and any tensor a Max of this tensor alone (see `keep_apart_from_fp8`).
    """
    alone = _made_by(value, "Max")
    value = alone.inputs[0] if alone is not None and len(alone.inputs) == 1 else value
    turned = _transposes(value)
    return _made_by(turned[0].inputs[0] if turned else value, DEQUANTIZE)


def _transposes(value: ir.Value | None) -> tuple[ir.Node, ...]:
    """Return the Transposes that a constant passed through last, in order."""
    maker = _made_by(value, "Transpose")
    return () if maker is None or not is_stored(value) else (*_transposes(maker.inputs[0]), maker)


def _permutation(node: ir.Node, rank: int) -> tuple[int, ...]:
    return ints_attribute(node, "perm", tuple(reversed(range(rank))))


def _made_by(value: ir.Value | None, op_type: str) -> ir.Node | None:
    maker = producer_of(value)
    return maker if maker is not None and maker.op_type == op_type else None


def constant(value: ir.Value | None) -> NDArray[np.generic] | None:
    """Return the array of an initializer or a Constant node; None for anything else."""
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else np.asarray(tensor.numpy())


def is_stored(value: ir.Value | None) -> bool:
    """Whether ``value`` is a constant, perhaps after Q, DQ, Cast, Sub (of zero points) and Transpose."""
    return stored(value) is not None


def stored(value: ir.Value | None) -> NDArray[np.generic] | None:
    """Return the constant from which ``value`` is made (see `is_stored`); None if there is none."""
    while value is not None and (maker := value.producer()) is not None and maker.op_type in _PASSED:
        if maker.op_type == "Sub" and not is_stored(maker.inputs[1]):
            return None
        value = maker.inputs[0]
    return constant(value)


_PASSED = frozenset({QUANTIZE, DEQUANTIZE, "Cast", "Sub", "Identity", "Transpose"})


def integer_type(node: ir.Node) -> ir.DataType | None:
    """Return the integer type of a QuantizeLinear's output or a DequantizeLinear's input; None if unknown."""
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
    """Yield the inputs of ``node`` from a DequantizeLinear; none for nodes that only transform a constant."""
    if node.op_type in _PASSED and is_stored(input_at(node, 0)):
        return
    for index, value in enumerate(node.inputs):
        if (maker := dequantizer(value)) is not None:
            yield QdqEdge(node, index, maker, _kind(node, index, value, maker), _transposes(value))


def _kind(node: ir.Node, index: int, value: ir.Value | None, maker: ir.Node) -> Kind:
    """Find the role of an input; stored int32 is always a bias, also of a normalization or an Add."""
    operator = WEIGHTED.get(node.op_type)
    if not is_stored(value):
        return "activation"
    if operator is None:
        return "bias" if integer_type(maker) == ir.DataType.INT32 else "activation"
    return "bias" if index == operator.bias else "weight" if index == operator.weight else "activation"


def computing(graph: ir.Graph) -> Iterator[ir.Node]:
    """Yield the nodes that are neither Q nor DQ."""
    return (node for node in graph if node.op_type not in (QUANTIZE, DEQUANTIZE))


def layers(graph: ir.Graph) -> tuple[ir.Node, ...]:
    """Find the weighted nodes that are to run in integers: data and weight come from DequantizeLinear.

    Nodes with per-block weights and float data count too.
    """
    return tuple(node for node in graph if node.op_type in WEIGHTED and _both_sides(node))


def _both_sides(node: ir.Node) -> bool:
    operator = WEIGHTED[node.op_type]
    data, weight = (dequantizer(input_at(node, index)) for index in (operator.data, operator.weight))
    if weight is not None and int_attribute(weight, "block_size", 0) > 0:
        return True
    return data is not None and weight is not None


def links(graph: ir.Graph) -> tuple[ir.Node, ...]:
    """Find the other nodes that are to run in integers: float inputs come from DQ, all outputs go to Q."""
    return tuple(node for node in computing(graph) if node.op_type not in WEIGHTED and _between(node))


def _between(node: ir.Node) -> bool:
    reals = [value for value in node.inputs if value is not None and _is_real(value)]
    outputs = [value for value in node.outputs if value.name and is_read(value)]
    return (
        bool(reals and outputs)
        and any(not is_stored(value) for value in reals)
        and all(dequantizer(value) is not None for value in reals)
        and all(readers_quantize(unclipped(value)) for value in outputs)
    )


def _is_real(value: ir.Value) -> bool:
    return dequantizer(value) is not None or value.dtype in (None, ir.DataType.FLOAT, ir.DataType.FLOAT16)


def readers_quantize(value: ir.Value) -> bool:
    """Whether ``value`` is read only by QuantizeLinear and is not a graph output."""
    uses = tuple(value.uses())
    return bool(uses) and not value.is_graph_output() and all(use.node.op_type == QUANTIZE for use in uses)
