"""Explain why a runtime runs a quantized node in float: known patterns, the likeliest cause first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.graph.nodes import input_at
from onnxq.graph.operators import WEIGHTED, groups_of, window_elements
from onnxq.graph.qdq.read_qdq import (
    QUANTIZE,
    ZERO_POINT,
    QdqEdge,
    called,
    constant,
    edges,
    integer_type,
    is_stored,
    scaled_by_both,
)
from onnxq.graph.walks import unclipped
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
"""Operators with an integer kernel in ONNX Runtime, and those that it fuses with them."""


@dataclass(frozen=True)
class FallbackReason:
    """A known reason why a runtime runs a quantized node in float.

    Attributes:
        holds: whether the reason applies to a node.
        because: the reason, for a message.
        advice: what the user can do.
        of_some: other versions of the runtime may have the kernel, so the model is not at fault.
    """

    holds: Callable[[ir.Node], bool]
    because: str
    advice: str
    of_some: bool = False


def finding(runtime: str, node: ir.Node, severity: Severity) -> Finding:
    """Report a quantized node that a runtime runs in float, with the likeliest reason.

    Args:
        runtime: the name of the runtime.
        node: the quantized node.
        severity: the severity, unless only some versions of the runtime lack the kernel.
    """
    trap = next((trap for trap in FALLBACK_REASONS[runtime] if trap.holds(node)), _UNKNOWN)
    message = f"its {node.op_type} runs in float on {runtime}: {trap.because}."
    return Finding(called(node), "warning" if trap.of_some else severity, message, trap.advice)


_UNKNOWN = FallbackReason(lambda node: True, "the reason is not known", "Keep it in float, without Q/DQ.")


# --- Conditions on a node ---------------------------------------------------------------------


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


FP8_WINDOW = 32
"""The most elements of the window of a convolution for which TensorRT-RTX builds FP8 kernels."""


def _wide_window_of_fp8(node: ir.Node) -> bool:
    if node.op_type != "Conv" or all(edge.dtype != ir.DataType.FLOAT8E4M3FN for edge in _activations(node)):
        return False
    return (window_elements(node) or 0) > FP8_WINDOW


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
    """Whether a Relu or Clip comes before a Q whose lowest level is below the lower limit."""
    value = unclipped(node.outputs[0])
    return value is not node.outputs[0] and not all(map(_starts_at_lowest, _quantizers(value)))


def _starts_at_lowest(quantize: ir.Node) -> bool:
    dtype, zero = integer_type(quantize), constant(input_at(quantize, ZERO_POINT))
    lowest = 0 if dtype == ir.DataType.UINT8 else -128
    return bool(np.all(zero == lowest)) if zero is not None else lowest == 0


def _other_type_after(node: ir.Node) -> bool:
    """Whether the Q after the node has another integer type than the DQ before it."""
    before = {edge.dtype for edge in _activations(node)}
    after = {integer_type(quantize) for quantize in _quantizers(unclipped(node.outputs[0]))}
    return bool(before and after) and before != after


def _mixed_input_types(node: ir.Node) -> bool:
    return len({edge.dtype for edge in _activations(node)}) > 1


def _other_params_after(node: ir.Node) -> bool:
    """Whether the Q after a pass-through operator has other parameters than the DQ before it."""
    before = [(edge.scale, edge.zero_point) for edge in edges(node)][:1]
    quantizers = [q for value in node.outputs for q in _quantizers(value)]
    after = [(constant(input_at(q, 1)), constant(input_at(q, ZERO_POINT))) for q in quantizers]
    return any(not _equal(one, other) for one, other in zip(before * len(after), after, strict=True))


def _equal(one: tuple[object, object], other: tuple[object, object]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))  # type: ignore[arg-type]


def _signed_and_shared(node: ir.Node) -> bool:
    """Whether a signed input or output of the node has further readers."""
    if not any(edge.dtype == ir.DataType.INT8 for edge in _activations(node)):
        return False
    around = [edge.quantize for edge in _activations(node)] + _quantizers(unclipped(node.outputs[0]))
    return any(_readers(quantize) > 1 for quantize in around if quantize is not None)


def _readers(quantize: ir.Node) -> int:
    """The number of nodes that read the output of a Q, through one or several DQ."""
    after = (use.node for use in quantize.outputs[0].uses())
    return sum(len(node.outputs[0].uses()) for node in after)


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
    _a_scale_a_channel, "its data is quantized per channel", "Quantize activations per tensor."
)
_AXIS = FallbackReason(
    _wrong_axis,
    "the scales of its weights do not lie along its output channels",
    "Quantize along the output channels.",
)
_WIDE = FallbackReason(_wide, "the runtime has an integer kernel only for 8 bits", "Quantize to 8 bits.")

FALLBACK_REASONS: Mapping[str, tuple[FallbackReason, ...]] = {
    "onnxruntime": (
        FallbackReason(
            lambda node: node.op_type not in _KERNELS,
            "it has no integer kernel",
            "Keep it in float: Q/DQ around it only cost time.",
        ),
        _WIDE,
        FallbackReason(
            _bias_of_another_scale,
            "the scale of its bias is not input scale x weight scale",
            "Quantize the bias with that product, or keep it in float.",
        ),
        FallbackReason(
            _narrow_bias, "its bias has 8 bits", "Store it in int32, with input scale x weight scale."
        ),
        FallbackReason(
            lambda node: _needs_q(node) and _leaves_the_graph(node),
            "its output is a float graph output",
            "Quantize the output (--quantize-outputs), or keep the node in float.",
        ),
        FallbackReason(
            lambda node: _needs_q(node) and _read_in_float(node),
            "no QuantizeLinear follows it",
            "Quantize its output, or keep the node in float.",
        ),
        FallbackReason(
            _two_readers,
            "its output has more than one reader",
            "Give it one QuantizeLinear, with a DequantizeLinear for each reader.",
        ),
        FallbackReason(
            _clip_remains,
            "a Relu or Clip comes before a QuantizeLinear whose zero point is not the lowest level",
            "Quantize to uint8 with the zero point at the lower limit.",
        ),
        FallbackReason(
            _other_type_after,
            "its input and its output have different integer types",
            "Use one type for all activations.",
        ),
        FallbackReason(
            _mixed_input_types,
            "its inputs have different integer types",
            "Use one type for all activations.",
        ),
        FallbackReason(
            lambda node: node.op_type in _PASSING and _other_params_after(node),
            "it only passes values on, but its output has another scale or zero point than its input",
            "Give both the same scale and zero point.",
        ),
        FallbackReason(
            _signed_and_shared,
            "its signed input or output has several readers, so it stays signed, and x86 has no such kernel",
            "Quantize activations to uint8.",
        ),
    ),
    "tensorrt": (
        FallbackReason(
            _no_kernel("ConvTranspose"),
            "TensorRT-RTX has no int8 kernel for it",
            "Other versions may run it in int8. For this one, keep it in float: Q/DQ only cost time.",
            of_some=True,
        ),
        FallbackReason(
            _wide_window_of_fp8,
            f"TensorRT has FP8 kernels for windows of at most {FP8_WINDOW} elements",
            "Keep it in float, without Q/DQ.",
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
            "it takes only data with zero point 0",
            "Quantize its data to int8 with zero point 0.",
        ),
        FallbackReason(
            _shifted_signed,
            "its signed data has a zero point",
            "Quantize activations to uint8, or to int8 with zero point 0.",
        ),
        FallbackReason(
            lambda node: node.op_type == "ConvTranspose" and groups_of(node) > 1,
            "there is no integer kernel for several groups",
            "Keep it in float.",
        ),
    ),
}
