"""Check a Q/DQ model against the rules of its target, from the graph alone, without running a runtime.

Runtimes refuse some of what their rules forbid. Most of it they accept silently, and then compute something
else or in float. For example, TensorRT reads unsigned integers as signed ones, and all runtimes run weights
in float whose scales lie along another axis than the output channels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxq.core.plan import OPSET, OPSET_OF_BLOCKS, QuantSpec
from onnxq.graph.nodes import input_at
from onnxq.graph.operators import WEIGHTED, misfit, window_elements
from onnxq.graph.qdq.read_qdq import (
    DEQUANTIZE,
    QUANTIZE,
    SCALE,
    ZERO_POINT,
    QdqEdge,
    called,
    constant,
    dequantizer,
    edges,
    integer_type,
    is_stored,
    readers_quantize,
    scaled_by_both,
)
from onnxq.graph.walks import unclipped
from onnxq.targets.target import BiasStyle, OpRule, Output, Target
from onnxq.verify.allowed_types import allowed_types
from onnxq.verify.subject import Subject
from onnxq.verify.verdict import Finding, Severity, Verdict, make_verdict, unchecked

LEGALITY = "legality"

RUNTIME = "onnxruntime"
"""The only runtime that reads integer operators and scales that are computed at run time."""

OPERATORS = re.compile(r"QLinear.*|ConvInteger|MatMulInteger|DynamicQuantizeLinear")
"""The names of integer operators."""


def check(subject: Subject) -> Verdict:
    """Find everything in the main graph that ``subject.target`` refuses or reads as something else."""
    if not subject.quantized:
        return unchecked(LEGALITY, "nothing is quantized: there is no DequantizeLinear in the graph")
    view = _View(subject.target, subject.model.graph.opset_imports.get("", 0))
    found = [finding for node in subject.model.graph for finding in _of_node(node, view)]
    counts = {"layers": len(subject.layers), "weighted": subject.weighted}
    summary = f"{len(subject.layers)} of {subject.weighted} operators with weights are quantized"
    return make_verdict(LEGALITY, summary, found, counts)


@dataclass(frozen=True)
class _View:
    """The data that the rules use besides the node."""

    target: Target
    opset: int

    def rule(self, node: ir.Node) -> OpRule | None:
        return self.target.rules.get(node.op_type)


def _of_node(node: ir.Node, view: _View) -> Iterator[Finding]:
    for check_node in OF_PARAMETERS if node.op_type in (QUANTIZE, DEQUANTIZE) else OF_NODES:
        yield from check_node(node, view)
    for edge in edges(node) if node.op_type != QUANTIZE else ():
        for check_edge in OF_EDGES:
            yield from check_edge(edge, view)


# --- QuantizeLinear and DequantizeLinear ------------------------------------------------------


def _scale(node: ir.Node, view: _View) -> Iterator[Finding]:
    scale = constant(input_at(node, SCALE))
    zero = input_at(node, ZERO_POINT)
    if scale is None or (zero is not None and constant(zero) is None):
        text = "its scale or zero point is computed at run time."
        severity: Severity = "warning" if RUNTIME in view.target.runtimes else "error"
        yield Finding(called(node), severity, text, "Only ONNX Runtime takes that: store them as constants.")
    elif not np.all(np.isfinite(scale)) or np.any(scale.astype(np.float64) <= 0):
        yield _error(node, f"its scale holds {_worst(scale)}.", "A scale is a positive, finite number.")


def _worst(scale: NDArray[np.generic]) -> str:
    values = scale.astype(np.float64).reshape(-1)
    return str(next(float(value) for value in values if not (np.isfinite(value) and value > 0)))


def _opset(node: ir.Node, view: _View) -> Iterator[Finding]:
    dtype, scale = integer_type(node), constant(input_at(node, SCALE))
    needed = QuantSpec(dtype, symmetric=False).opset if dtype is not None else OPSET
    needed = max(needed, OPSET_OF_BLOCKS if "block_size" in node.attributes else 0)
    if node.domain or view.opset >= needed or (needed == OPSET and (scale is None or scale.size == 1)):
        return
    what = "per-channel scales" if needed == OPSET else f"{_words(dtype)} or blocks"
    yield _error(node, f"the model has opset {view.opset}, but {what} need {needed}.", "Raise the opset.")


def _no_zero_point(node: ir.Node, view: _View) -> Iterator[Finding]:
    typed = input_at(node, ZERO_POINT) is not None or "output_dtype" in node.attributes
    if node.op_type == QUANTIZE and not typed and view.target.activation.symmetric:
        kind = _words(view.target.activation.dtype)
        text = f"it has no zero point, so it gives uint8, but {view.target.name} reads that as {kind}."
        yield _error(node, text, f"Give it an explicit zero point: {kind}, 0.")


# --- Edges ------------------------------------------------------------------------------------


def _type(edge: QdqEdge, view: _View) -> Iterator[Finding]:
    """Check the number format of an activation or of weights."""
    if edge.kind == "bias" or edge.dtype is None:
        return
    allowed = allowed_types(edge, view.target)
    if edge.dtype not in allowed:
        names = ", ".join(sorted(map(_words, allowed))) or "float"
        yield _error(
            edge.node,
            f"its {_what(edge)} {_words(edge.dtype)}, which {view.target.name} does not compute with.",
            f"Use {names}.",
        )
    elif edge.kind == "weight" and view.target.shifted_weights:
        return
    elif _wrong_zero_point(edge, allowed[edge.dtype]):
        yield _error(
            edge.node,
            f"its {_what(edge)} {_words(edge.dtype)} with another zero point than "
            f"{_middle(allowed[edge.dtype])}, the only one that {view.target.name} takes.",
            "Quantize symmetrically.",
        )


def _wrong_zero_point(edge: QdqEdge, spec: QuantSpec) -> bool:
    """Whether the format is symmetric, and the zero point is not in the middle of it."""
    if not spec.symmetric or edge.zero_point is None:
        return False
    return bool(np.any(edge.zero_point.astype(np.int64) != _middle(spec)))


def _middle(spec: QuantSpec) -> int:
    return 0 if spec.dtype.is_signed() else 2 ** (spec.dtype.bitwidth - 1)


def _axis(edge: QdqEdge, view: _View) -> Iterator[Finding]:
    """Check per-channel scales: along the output channels for weights, never for activations."""
    if edge.axis is None or edge.in_blocks or edge.kind == "bias":
        return
    if edge.kind == "activation":
        if not _repeats_one(edge):
            text = f"its input {edge.index} is quantized per channel; only weights may be."
            yield _error(edge.node, text, "Quantize it per tensor.")
        return
    right = WEIGHTED[edge.node.op_type].channel_axis(edge.node, edge.rank or 0)
    if not _per_channel(edge, view):
        text = f"its weights are quantized per channel, but {view.target.name} takes one scale for them."
        yield _error(edge.node, text, "Quantize them per tensor.")
    elif edge.axis != right:
        where = "none" if right is None else f"axis {right}"
        text = f"its weights have their scales along axis {edge.axis}; output channels lie along {where}."
        yield _error(edge.node, text, "Quantize along the output channels, or per tensor.")


def _per_channel(edge: QdqEdge, view: _View) -> bool:
    """Whether the operator takes per-channel weights of this type."""
    rule, types = view.rule(edge.node), view.target.per_channel_types
    return (rule is None or rule.per_channel) and (types is None or edge.dtype in types)


def _repeats_one(edge: QdqEdge) -> bool:
    """Whether all channels have the same scale and zero point, so it is per tensor in effect."""
    known = (edge.scale, edge.zero_point)
    return all(array is None or np.all(array == array.reshape(-1)[0]) for array in known)


def _grid(edge: QdqEdge, view: _View) -> Iterator[Finding]:
    """Check that scales are powers of two, and that weights leave bits unused, if the target needs that."""
    spec = view.target.weight if edge.kind == "weight" else view.target.activation
    if edge.dtype != spec.dtype or edge.kind == "bias":
        return
    if spec.power_of_two and edge.scale is not None and np.any(np.frexp(edge.scale)[0] != 0.5):
        text = f"the scale of its {_noun(edge)} is no power of two, as {view.target.name} needs it."
        yield _error(edge.node, text, "Quantize for this target.")
    levels = constant(edge.dequantize.inputs[0])
    if edge.kind == "weight" and spec.reduce_bits and levels is not None and levels.size:
        low, high = spec.limits
        if levels.min() < low or levels.max() > high:
            text = f"its weights exceed {low} … {high}, and sums of 16 bits may saturate."
            yield Finding(called(edge.node), "warning", text, "Quantize for this target.")


def _bias(edge: QdqEdge, view: _View) -> Iterator[Finding]:
    if edge.kind != "bias" or edge.dtype is None or view.target.bias is BiasStyle.OWN:
        return
    if edge.dtype not in view.target.bias_types:
        names = ", ".join(sorted(map(_words, view.target.bias_types)))
        text = f"its bias is {_words(edge.dtype)}; {view.target.name} takes {names}."
        yield _error(edge.node, text, "Keep the bias in float." if "FLOAT" in names.upper() else "")
    elif not scaled_by_both(edge):
        text = "its bias has another scale than input scale x weight scale, which integer kernels assume."
        yield _error(edge.node, text, "Quantize it with that product.")


def _pair(edge: QdqEdge, view: _View) -> Iterator[Finding]:
    """Check that the Q and the DQ of a tensor have the same scale and zero point."""
    before = edge.quantize
    if before is None:
        return
    for index, what in ((SCALE, "scale"), (ZERO_POINT, "zero point")):
        one, other = (constant(input_at(node, index)) for node in (before, edge.dequantize))
        if one is not None and other is not None and not _same(one, other):
            text = f"its input {edge.index} is quantized with one {what} and dequantized with another."
            yield Finding(called(edge.node), "warning", text, "Give both the same.")


def _same(one: NDArray[np.generic], other: NDArray[np.generic]) -> bool:
    """Whether both arrays are equal, or one of them repeats the only number of the other."""
    return np.array_equal(one, other) or (1 in (one.size, other.size) and bool(np.all(one == other)))


# --- Nodes ------------------------------------------------------------------------------------


def _sides(node: ir.Node, view: _View) -> Iterator[Finding]:
    """Check that both the data and the weights of an operator are in integers, or neither.

    Weights are constants: a second operand that is computed at run time is data too.
    """
    operator = WEIGHTED.get(node.op_type)
    if operator is None or _is_float_anyway(node, view):
        return
    given = {edge.index: edge for edge in edges(node)}
    data, weight = given.get(operator.data), given.get(operator.weight)
    alone = data or weight
    if alone is None or (data is not None and weight is not None):
        return
    if alone.kind == "weight":
        if not alone.in_blocks:
            text = "its weights are quantized, but its data is not: it runs in float."
            yield _error(node, text, "Quantize both or neither.")
    elif not _guarded(node, alone, view):
        other = "weights are" if is_stored(input_at(node, operator.weight)) else "other operand is"
        text = f"its data is quantized, but its {other} not: it runs in float."
        rule = view.rule(node)
        needed = rule is not None and rule.output is Output.FREE  # with other outputs, all readers get a DQ
        severity: Severity = "error" if needed else "warning"
        yield Finding(called(node), severity, text, "Quantize both or neither.")


def _is_float_anyway(node: ir.Node, view: _View) -> bool:
    """Whether the weights of ``node`` are computed at run time, and the target has no kernel for that."""
    rule = view.rule(node)
    return rule is not None and not rule.dynamic_weight and not _has_stored_weights(node)


def _has_stored_weights(node: ir.Node) -> bool:
    return is_stored(input_at(node, WEIGHTED[node.op_type].weight))


def _guarded(node: ir.Node, data: QdqEdge, view: _View) -> bool:
    """Whether a scale repeated for each channel keeps the operator in float, which is then intended."""
    return node.op_type in view.target.keep_float_weights and data.axis is not None


def _output(node: ir.Node, view: _View) -> Iterator[Finding]:
    """Check that a Q follows a quantized operator whose integer kernel needs it."""
    rule = view.rule(node)
    if rule is None or rule.output is not Output.QUANTIZED or node.op_type not in WEIGHTED:
        return
    if _is_float_anyway(node, view):
        return
    operator = WEIGHTED[node.op_type]
    if any(dequantizer(input_at(node, i)) is None for i in (operator.data, operator.weight)):
        return
    output = node.outputs[0]
    if not (readers_quantize(output) or readers_quantize(unclipped(output))):
        text = "a node or the graph reads its output in float, so it runs in float."
        severity: Severity = "error" if _has_stored_weights(node) else "warning"
        advice = "Quantize its output for all readers, or keep its inputs in float."
        yield Finding(called(node), severity, text, advice)


def _window(node: ir.Node, view: _View) -> Iterator[Finding]:
    """Report a quantized convolution whose window is too large for the kernels of the target."""
    rule = view.rule(node)
    if rule is None or rule.kernel_elements is None or not any(edges(node)):
        return
    if (count := window_elements(node) or 0) > (most := rule.kernel_elements):
        text = f"its window has {count} elements, and {view.target.name} has kernels for at most {most}."
        yield _error(node, text, "Keep it in float, without Q/DQ.")


def _integer_operator(node: ir.Node, view: _View) -> Iterator[Finding]:
    if OPERATORS.fullmatch(node.op_type) and RUNTIME not in view.target.runtimes:
        text = f"{node.op_type} is an operator that {view.target.name} does not read."
        yield _error(node, text, "Write QuantizeLinear and DequantizeLinear instead (Q/DQ format).")


def _widths(node: ir.Node, view: _View) -> Iterator[Finding]:
    """Report activations of several widths around one node: kernels take and give one."""
    read = {edge.dtype for edge in edges(node) if edge.kind == "activation"}
    uses = [use.node for value in node.outputs for use in unclipped(value).uses()]
    given = {integer_type(one) for one in uses if one.op_type == QUANTIZE}
    widths = sorted({dtype.bitwidth for dtype in read | given if dtype in view.target.activation_types})
    if read and len(widths) > 1:
        text = f"it reads and gives activations of {' and '.join(map(str, widths))} bits."
        yield Finding(called(node), "warning", text, "Convert them by DQ and Q before or after it.")


def _attributes(node: ir.Node, view: _View) -> Iterator[Finding]:
    """Report a node between Q/DQ with attributes that its integer kernel does not compute."""
    rule = view.rule(node)
    reason = misfit(node, rule.unknown_attributes, rule.wrong_together) if rule is not None else None
    outputs = [value for value in node.outputs if value.name]
    if reason is None or not any(edges(node)) or not all(map(readers_quantize, outputs)):
        return
    severity: Severity = "error" if RUNTIME in view.target.runtimes else "warning"
    yield Finding(called(node), severity, f"{reason}.", "Keep it in float, without Q/DQ directly around it.")


def _ruleless(node: ir.Node, view: _View) -> Iterator[Finding]:
    """Report Q/DQ around an operator without an integer kernel."""
    target = view.target
    if node.op_type in target.rules or node.op_type in target.transparent or not any(edges(node)):
        return
    outputs = [value for value in node.outputs if value.name]
    if node.op_type in _FUSED or not all(readers_quantize(value) for value in outputs):
        return
    text = f"it is between Q/DQ, but {target.name} has no integer kernel for {node.op_type}."
    yield Finding(called(node), "warning", text, "Keep it in float: Q/DQ only cost time here.")


_FUSED = frozenset({"Relu", "Clip"})


# --- Texts ------------------------------------------------------------------------------------


def _error(node: ir.Node, message: str, advice: str) -> Finding:
    return Finding(called(node), "error", message, advice)


def _words(dtype: ir.DataType | None) -> str:
    return dtype.name.lower() if dtype is not None else "unknown types"


def _noun(edge: QdqEdge) -> str:
    return "weights" if edge.kind == "weight" else f"input {edge.index}"


def _what(edge: QdqEdge) -> str:
    return "weights are" if edge.kind == "weight" else f"input {edge.index} is"


OF_PARAMETERS: tuple[Callable[[ir.Node, _View], Iterator[Finding]], ...] = (_scale, _opset, _no_zero_point)
OF_EDGES: tuple[Callable[[QdqEdge, _View], Iterator[Finding]], ...] = (_type, _axis, _grid, _bias, _pair)
OF_NODES: tuple[Callable[[ir.Node, _View], Iterator[Finding]], ...] = (
    _sides,
    _output,
    _widths,
    _window,
    _integer_operator,
    _attributes,
    _ruleless,
)
