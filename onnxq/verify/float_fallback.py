"""Why runtimes leave quantized nodes in float: the patterns that are known, the likeliest cause first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.graph.nodes import input_at
from onnxq.graph.operators import WEIGHTED
from onnxq.graph.read_qdq import (
    QUANTIZE,
    ZERO_POINT,
    QdqEdge,
    called,
    constant,
    edges,
    integer_type,
    is_stored,
    scaled_by_both,
    unclipped,
)
from onnxq.verify.verdict import Finding, Severity

_BITS = frozenset({ir.DataType.INT8, ir.DataType.UINT8})

_PASSING = frozenset(
    (
        *("MaxPool", "ReduceMax", "ReduceMin", "Resize", "Reshape", "Transpose", "Flatten", "Squeeze"),
        *("Unsqueeze", "Slice", "Gather", "Expand", "Tile", "DepthToSpace", "Split"),
    )
)
"""Operators that only pass values on."""

_KERNELS = _PASSING | {
    *("Conv", "Gemm", "MatMul", "Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool"),
    *("LeakyRelu", "Sigmoid", "Softmax", "Relu", "Clip"),
}
"""Operators that ONNX Runtime has integer kernels for, and those that it fuses with them."""


@dataclass(frozen=True)
class FallbackReason:
    """A reason: whether it holds of a node, what to say of it, and what to do.

    ``of_some``: other versions of the runtime may have the kernel, so that it is not the model's fault.
    """

    holds: Callable[[ir.Node], bool]
    because: str
    advice: str
    of_some: bool = False


def finding(runtime: str, node: ir.Node, severity: Severity) -> Finding:
    """What to say of a quantized ``node`` that ``runtime`` runs in float."""
    trap = next((trap for trap in FALLBACK_REASONS[runtime] if trap.holds(node)), _UNKNOWN)
    message = f"its {node.op_type} runs in float on {runtime}: {trap.because}."
    return Finding(called(node), "warning" if trap.of_some else severity, message, trap.advice)


_UNKNOWN = FallbackReason(lambda node: True, "why is not known", "Leave it float: without Q/DQ it is faster.")


# --- What is asked of a node ------------------------------------------------------------------


def _activations(node: ir.Node) -> Iterator[QdqEdge]:
    return (edge for edge in edges(node) if edge.kind == "activation")


def _weights(node: ir.Node) -> Iterator[QdqEdge]:
    return (edge for edge in edges(node) if edge.kind == "weight")


def _quantizers(value: ir.Value) -> list[ir.Node]:
    return [use.node for use in value.uses() if use.node.op_type == QUANTIZE]


def _run_time_scale(node: ir.Node) -> bool:
    return any(
        edge.scale is None or (input_at(edge.dequantize, ZERO_POINT) is not None and edge.zero_point is None)
        for edge in edges(node)
    )


def _a_scale_a_channel(node: ir.Node) -> bool:
    return any(edge.axis is not None for edge in _activations(node))


def _wide(node: ir.Node) -> bool:
    return any(edge.dtype not in _BITS for edge in (*_activations(node), *_weights(node)))


def _wrong_axis(node: ir.Node) -> bool:
    return any(
        edge.axis is not None and not edge.in_blocks and edge.axis != _right_axis(node, edge)
        for edge in _weights(node)
    )


def _right_axis(node: ir.Node, edge: QdqEdge) -> int | None:
    return WEIGHTED[node.op_type].channel_axis(node, edge.rank or 0)


def _narrow_bias(node: ir.Node) -> bool:
    return any(edge.kind == "bias" and edge.dtype in _BITS for edge in edges(node))


def _bias_of_another_scale(node: ir.Node) -> bool:
    return any(edge.kind == "bias" and not scaled_by_both(edge) for edge in edges(node))


def _leaves_the_graph(node: ir.Node) -> bool:
    return any(unclipped(value).is_graph_output() for value in node.outputs)


def _read_in_float(node: ir.Node) -> bool:
    return not _quantizers(unclipped(node.outputs[0]))


def _two_readers(node: ir.Node) -> bool:
    ends = (node.outputs[0], unclipped(node.outputs[0]))
    return any(len(value.uses()) > 1 for value in ends)


def _clip_remains(node: ir.Node) -> bool:
    """A Relu or Clip before a Q whose lowest level lies below its limit."""
    value = unclipped(node.outputs[0])
    return value is not node.outputs[0] and not all(map(_starts_at_lowest, _quantizers(value)))


def _starts_at_lowest(quantize: ir.Node) -> bool:
    dtype, zero = integer_type(quantize), constant(input_at(quantize, ZERO_POINT))
    lowest = 0 if dtype == ir.DataType.UINT8 else -128
    return bool(np.all(zero == lowest)) if zero is not None else lowest == 0


def _other_type_behind(node: ir.Node) -> bool:
    """Q gives another type than DQ took."""
    before = {edge.dtype for edge in _activations(node)}
    behind = {integer_type(quantize) for quantize in _quantizers(unclipped(node.outputs[0]))}
    return bool(before and behind) and before != behind


def _other_types_beside(node: ir.Node) -> bool:
    return len({edge.dtype for edge in _activations(node)}) > 1


def _other_numbers_behind(node: ir.Node) -> bool:
    """An operator that only passes values on, with other parameters behind than before."""
    before = [(edge.scale, edge.zero_point) for edge in edges(node)][:1]
    quantizers = [q for value in node.outputs for q in _quantizers(value)]
    behind = [(constant(input_at(q, 1)), constant(input_at(q, ZERO_POINT))) for q in quantizers]
    return any(not _equal(one, other) for one, other in zip(before * len(behind), behind, strict=True))


def _equal(one: tuple[object, object], other: tuple[object, object]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))  # type: ignore[arg-type]


def _signed_and_shared(node: ir.Node) -> bool:
    """Signed activations, before or behind, that others read too."""
    if not any(edge.dtype == ir.DataType.INT8 for edge in _activations(node)):
        return False
    around = [edge.quantize for edge in _activations(node)] + _quantizers(unclipped(node.outputs[0]))
    return any(_readers(quantize) > 1 for quantize in around if quantize is not None)


def _readers(quantize: ir.Node) -> int:
    """How many read what a Q gives, through one DQ or several."""
    behind = (use.node for use in quantize.outputs[0].uses())
    return sum(len(node.outputs[0].uses()) for node in behind)


def _shifted_weights(node: ir.Node) -> bool:
    zeros = (edge.zero_point for edge in _weights(node))
    return any(zero is not None and bool(np.any(zero)) for zero in zeros)


def _shifted_signed(node: ir.Node) -> bool:
    edges_ = (edge for edge in _activations(node) if edge.dtype == ir.DataType.INT8)
    return any(edge.zero_point is not None and bool(np.any(edge.zero_point)) for edge in edges_)


def _shifted(node: ir.Node) -> bool:
    return any(edge.zero_point is not None and bool(np.any(edge.zero_point)) for edge in _activations(node))


def _needs_q(node: ir.Node) -> bool:
    return node.op_type != "MatMul"


def _no_kernel(*op_types: str) -> Callable[[ir.Node], bool]:
    return lambda node: node.op_type in op_types


def _product_of_activations(node: ir.Node) -> bool:
    operator = WEIGHTED.get(node.op_type)
    return operator is not None and not is_stored(input_at(node, operator.weight))


# --- By runtime -------------------------------------------------------------------------------

_RUN_TIME = FallbackReason(
    _run_time_scale, "a scale or zero point is computed at run time", "Calibrate, and store the numbers."
)
_CHANNELS = FallbackReason(
    _a_scale_a_channel, "its data has a scale a channel", "Quantize activations per tensor."
)
_AXIS = FallbackReason(
    _wrong_axis,
    "the scales of its weights do not lie along its output channels",
    "Quantize along the output channels.",
)
_WIDE = FallbackReason(_wide, "there is no such kernel but for 8 bits", "Quantize to 8 bits.")

FALLBACK_REASONS: Mapping[str, tuple[FallbackReason, ...]] = {
    "onnxruntime": (
        FallbackReason(
            lambda node: node.op_type not in _KERNELS,
            "it has no integer kernel",
            "Leave it float: Q/DQ around it only cost.",
        ),
        _WIDE,
        FallbackReason(
            _bias_of_another_scale,
            "the scale of its bias is not input scale x weight scale",
            "Quantize the bias with that product, or leave it float.",
        ),
        FallbackReason(
            _narrow_bias, "its bias has 8 bits", "Store it in int32, with input scale x weight scale."
        ),
        FallbackReason(
            lambda node: _needs_q(node) and _leaves_the_graph(node),
            "its output leaves the graph in float",
            "Quantize the output (--quantize-outputs), or leave the node float.",
        ),
        FallbackReason(
            lambda node: _needs_q(node) and _read_in_float(node),
            "no QuantizeLinear follows it",
            "Quantize its output, or leave the node float.",
        ),
        FallbackReason(
            _two_readers,
            "its output has more than one reader",
            "Give it one QuantizeLinear, with a DequantizeLinear for each reader.",
        ),
        FallbackReason(
            _clip_remains,
            "a Relu or Clip stands before a QuantizeLinear whose zero point is not the lowest level",
            "Quantize to uint8 with the zero point at the lower limit.",
        ),
        FallbackReason(
            _other_type_behind,
            "its input and its output are of different integer types",
            "Use one type for all activations.",
        ),
        FallbackReason(
            _other_types_beside,
            "its inputs are of different integer types",
            "Use one type for all activations.",
        ),
        FallbackReason(
            lambda node: node.op_type in _PASSING and _other_numbers_behind(node),
            "it only passes values on, but has other scales behind than before",
            "Give both the same scale and zero point.",
        ),
        FallbackReason(
            _signed_and_shared,
            "its signed input or output has several readers, which keeps it signed: no such kernel on x86",
            "Quantize activations to uint8.",
        ),
    ),
    "tensorrt": (
        FallbackReason(
            _no_kernel("ConvTranspose"),
            "TensorRT-RTX builds none in int8",
            "With other versions it may run in int8; with this one Q/DQ only cost: leave it float.",
            of_some=True,
        ),
        _RUN_TIME,
        _CHANNELS,
        _AXIS,
    ),
    "openvino": (
        _RUN_TIME,
        _WIDE,
        _CHANNELS,
        _AXIS,
        FallbackReason(
            _shifted_weights, "its weights have a zero point", "Quantize weights to int8 with zero point 0."
        ),
        FallbackReason(
            lambda node: _product_of_activations(node) and _shifted(node),
            "it multiplies two activations, and they have a zero point",
            "Quantize both to int8 with zero point 0.",
        ),
        FallbackReason(
            lambda node: node.op_type == "ConvTranspose" and _shifted(node),
            "it takes data with zero point 0 only",
            "Quantize its data to int8 with zero point 0.",
        ),
        FallbackReason(
            _shifted_signed,
            "its signed data has a zero point",
            "Quantize activations to uint8, or to int8 with zero point 0.",
        ),
        FallbackReason(
            lambda node: node.op_type == "ConvTranspose" and node.attributes.get_int("group", 1) > 1,
            "its groups have no integer kernel",
            "Leave it float.",
        ),
    ),
}
