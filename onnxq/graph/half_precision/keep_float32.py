"""Which nodes stay in float32 in a model of half precision, and why.

float16 holds magnitudes from 6e-8 (with full precision from 6.1e-5) to 65504 in 11 bits. So a node stays in
float32 if a tensor that it reads or gives lies beyond that, if a constant changes in float16, if it adds many
numbers, or if integers or angles come of it that need more bits. bfloat16 has the range of float32 and 8
bits: only the rules about bits apply.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calibrators.extremes import Extremes
from onnxq.core.numerics import decibels, sqnr
from onnxq.graph.half_precision.half_forms import CONTROL_FLOW, half_form, is_float32
from onnxq.graph.half_precision.saturate import LARGEST
from onnxq.graph.nodes import all_nodes, bodies, constant_value, input_at, is_op, name_of
from onnxq.graph.operators import MOVING
from onnxq.graph.walks import producer_of

MARGIN = 4.0
"""By how much values may exceed those of the samples before float16 overflows."""

SMALLEST = 2.0**-14
"""The smallest number that float16 holds with full precision."""

EXACT = {ir.DataType.FLOAT16: 2.0**11, ir.DataType.BFLOAT16: 2.0**8}
"""Type -> up to which number it holds all integers. Also the most ones that can be added one by one."""

LARGEST_ANGLE = {ir.DataType.FLOAT16: 8.0, ir.DataType.BFLOAT16: 1.0}
"""Type -> the largest angle, in radians, that it holds with an error below 0.004."""

CONSTANT_SQNR = {ir.DataType.FLOAT16: 50.0, ir.DataType.BFLOAT16: 40.0}
"""Type -> the least SQNR, in dB, of a constant in that type; numbers of full precision have 70 and 52 dB."""

NUMBER_ERROR = 2.0**-8
"""The largest relative error of a single number, or of a divisor."""

SUMS = ("ReduceSum", "ReduceMean", "ReduceL1", "ReduceLogSumExp", "GlobalAveragePool", "CumSum")
SQUARES = ("ReduceSumSquare", "ReduceL2", "LpNormalization", "InstanceNormalization", "GroupNormalization")
EXPONENTIAL = ("Softmax", "LogSoftmax")
NORMALIZATIONS = ("LayerNormalization", "RMSNormalization")
"""Operators that add many numbers: the numbers, their squares, exponentials of at most one, and squares in
float32, whatever the type of the data (their attribute ``stash_type``)."""

ADDING = (*SUMS, *SQUARES, *EXPONENTIAL, *NORMALIZATIONS)

GROWING = (
    *("Exp", "Pow", "ReduceProd", "Reciprocal", "Log", "ReduceSum", "ReduceL1", "CumSum"),
    *SQUARES,
)
"""Operators that may leave the range of float16 for ordinary inputs: without data they stay float32."""


@dataclass(frozen=True)
class Knowledge:
    """What is known of a float32 model.

    Attributes:
        dtype: float16 or bfloat16, the type to convert to.
        extremes: the extremes of its tensors on samples; empty if there are no samples.
        given: reasons that are known before, by name of the node.
    """

    dtype: ir.DataType
    extremes: Mapping[str, Extremes] = field(default_factory=dict)
    given: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_narrow(self) -> bool:
        """Whether the type has a smaller range than float32."""
        return self.dtype == ir.DataType.FLOAT16


def float32_nodes(model: ir.Model, known: Knowledge) -> dict[str, str]:
    """Map each node that stays in float32 to the reason.

    Args:
        model: a model in float32 whose tensors have types.
        known: what is known of it.
    """
    tensors = _float32_tensors(model, known)
    found = {**_before_angles(model, known), **known.given}
    for node in all_nodes(model):
        if _has_floats(node) and node.name not in found:
            reason = _reason(node, model, known, tensors)
            if reason:
                found[name_of(node)] = reason
    _join_moves(model, found)
    return found


def divisors(model: ir.Model) -> set[str]:
    """Name the tensors that something is divided by, or a logarithm is taken of."""
    reads = ((node, i, value) for node in all_nodes(model) for i, value in enumerate(node.inputs))
    return {name_of(value) for node, i, value in reads if value is not None and _divides(node, i)}


def converted(array: NDArray[np.generic], dtype: ir.DataType) -> NDArray[np.generic]:
    """Round an array to a half-precision type."""
    with np.errstate(over="ignore"):
        return array.astype(dtype.numpy())


def _has_floats(node: ir.Node) -> bool:
    return any(map(is_float32, (*node.inputs, *node.outputs)))


def _reason(node: ir.Node, model: ir.Model, known: Knowledge, tensors: Mapping[ir.Value, str]) -> str | None:
    """Return why the node stays in float32; None if it need not."""
    if is_op(node, "QuantizeLinear", "DequantizeLinear"):
        return None
    if half_form(node, known.dtype, model.graph.opset_imports) is None:
        return f"{node.op_type} has no form in {known.dtype.name.lower()}"
    values = [value for value in (*node.inputs, *node.outputs, *_carried(node)) if value is not None]
    touched = next((tensors[value] for value in values if value in tensors), None)
    return touched or next((text for rule in _RULES if (text := rule(node, known))), None)


def _carried(node: ir.Node) -> Iterator[ir.Value]:
    """Yield the values that go in and out of the bodies of a node."""
    for body in bodies(node):
        yield from (*body.inputs, *body.outputs)


# --- tensors ----------------------------------------------------------------------------------------


def _float32_tensors(model: ir.Model, known: Knowledge) -> dict[ir.Value, str]:
    """Map each computed tensor that half precision does not hold to the reason."""
    found: dict[ir.Value, str] = {}
    for graph in model.graphs():
        for value in (*graph.inputs, *(output for node in graph for output in node.outputs)):
            if is_float32(value) and (reason := _tensor_reason(value, known)):
                found[value] = reason
    return found


def _tensor_reason(value: ir.Value, known: Knowledge) -> str | None:
    seen = known.extremes.get(name_of(value))
    if seen is None:
        maker = value.producer()
        return None if maker is None else _unknown(maker, known)
    if known.is_narrow and seen.largest * MARGIN > LARGEST:
        return f"values of {value.name!r} reach {seen.largest:.3g}, and float16 ends at {LARGEST:.0f}"
    if known.is_narrow and 0 < seen.largest < SMALLEST:
        return f"all values of {value.name!r} are below {seen.largest:.3g}, where float16 loses precision"
    readers = [(use.node, use.idx) for use in value.uses()]
    if seen.largest > EXACT[known.dtype] and any(map(_makes_integers, (node for node, _ in readers))):
        return f"integers up to {seen.largest:.6g} are made of {value.name!r}"
    source = value.producer()
    if source is not None and _reads_integers(source) and seen.largest > EXACT[known.dtype]:
        return f"{value.name!r} has integers up to {seen.largest:.6g}"
    if known.is_narrow and seen.least < SMALLEST and any(_divides(*reader) for reader in readers):
        return f"{value.name!r} is divided by, and is as small as {seen.least:.3g}"
    return None


_PERIODIC = ("Sin", "Cos", "Tan")


def _makes_integers(node: ir.Node) -> bool:
    target = node.attributes.get_int("to", 0)
    return is_op(node, "Cast") and not ir.DataType(target).is_floating_point()


def _reads_integers(node: ir.Node) -> bool:
    """Whether the node makes floats of integers."""
    data = input_at(node, 0)
    return is_op(node, "Cast") and data is not None and data.dtype in _INTEGERS


def _divides(node: ir.Node, index: int) -> bool:
    """Whether the input at ``index`` is what another is divided by, or a logarithm is taken of."""
    return is_op(node, "Reciprocal", "Log") or (is_op(node, "Div") and index == 1)


# --- angles -----------------------------------------------------------------------------------------

_LINEAR = ("Mul", "Div", "Add", "Sub", "Neg", "MatMul", "Concat", "Cast", *sorted(MOVING))
"""Operators that compute angles from positions."""


def _before_angles(model: ir.Model, known: Knowledge) -> dict[str, str]:
    """Map the nodes that read large angles, or those of unknown size, and those before them to the reason.

    The error of an angle is the relative error of what it is computed from, times the angle: so rounding
    positions or frequencies is no better than rounding the angle itself.
    """
    found: dict[str, str] = {}
    for node in all_nodes(model):
        angle = input_at(node, 0) if is_op(node, *_PERIODIC) else None
        if angle is not None and (reason := _angle_reason(angle, known)):
            found.update(dict.fromkeys(map(name_of, (node, *_linear_before(angle))), reason))
    return found


def _angle_reason(angle: ir.Value, known: Knowledge) -> str | None:
    seen = known.extremes.get(name_of(angle))
    if seen is not None:
        large = seen.largest > LARGEST_ANGLE[known.dtype]
        return f"angles reach {seen.largest:.3g}" if large else None
    return None if known.extremes else "without data, nothing is known of the size of its angles"


def _linear_before(angle: ir.Value) -> Iterator[ir.Node]:
    """Yield the nodes back from an angle, as long as each reads one computed tensor only."""
    value: ir.Value | None = angle
    while value is not None and (node := producer_of(value)) is not None and is_op(node, *_LINEAR):
        yield node
        computed = [each for each in node.inputs if is_float32(each) and constant_value(each) is None]
        value = computed[0] if len(computed) == 1 else None


# --- nodes ------------------------------------------------------------------------------------------


def _constant(node: ir.Node, known: Knowledge) -> str | None:
    """A constant that changes in half precision: it overflows, or becomes zero, or is inexact as a number."""
    for index, value in enumerate(node.inputs):
        array = constant_value(value)
        if value is None or array is None or not is_float32(value) or not array.size:
            continue
        apart = _counts_apart(node, index, array)
        if not apart and _surely_fits(array, known):
            continue
        name = known.dtype.name.lower()
        finite = np.isfinite(array)
        half = converted(array, known.dtype).astype(np.float32)
        if not np.isfinite(half[finite]).all():
            return f"constant {value.name!r} has {np.abs(array[finite]).max():.3g}, too large for {name}"
        if apart and _error(array[finite], half[finite]) > NUMBER_ERROR:
            return f"constant {value.name!r} is as small as {_least(array):.3g}, too small for {name}"
        if sqnr(array[finite], half[finite]) < CONSTANT_SQNR[known.dtype]:
            return f"constant {value.name!r} loses precision in {name}"
    return None


def _surely_fits(array: NDArray[np.generic], known: Knowledge) -> bool:
    """Whether rounding an array to float16 is harmless, told by its sums and extremes, which is quick.

    A number is off by at most ``2^-11`` of itself or by ``2^-25``, half the step of the smallest numbers.
    """
    if not known.is_narrow:
        return False
    flat = array.astype(np.float32, copy=False).ravel()
    signal = float(np.dot(flat, flat))
    noise = signal * 2.0**-22 + flat.size * 2.0**-50
    return max(-flat.min(), flat.max()) <= LARGEST and decibels(signal, noise) > CONSTANT_SQNR[known.dtype]


def _counts_apart(node: ir.Node, index: int, array: NDArray[np.generic]) -> bool:
    """Whether the relative error of each number counts: of a single number, a divisor, a variance."""
    variance = is_op(node, "BatchNormalization") and index == _VARIANCE
    return array.size == 1 or _divides(node, index) or variance


_VARIANCE = 4


def _error(exact: NDArray[np.generic], half: NDArray[np.generic]) -> float:
    """Return the largest relative error."""
    wide = exact.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.nan_to_num(np.abs(half.astype(np.float64) - wide) / np.abs(wide)).max(initial=0.0))


def _least(array: NDArray[np.generic]) -> float:
    sizes = np.abs(array[array != 0])
    return float(sizes.min(initial=np.inf))


def _epsilon(node: ir.Node, known: Knowledge) -> str | None:
    """An epsilon that vanishes beside a small variance."""
    epsilon = node.attributes.get_float("epsilon", 1.0)
    if (
        not known.is_narrow
        or node.op_type in NORMALIZATIONS
        or _error(np.array([epsilon]), converted(np.array([epsilon]), known.dtype).astype(np.float64))
        <= NUMBER_ERROR
    ):
        return None
    return f"its epsilon, {epsilon:.3g}, is too small for float16"


def _sum(node: ir.Node, known: Knowledge) -> str | None:
    """A sum of many numbers, which rounds each partial sum, or a sum that may overflow."""
    data = input_at(node, 0)
    if data is None or not is_op(node, *ADDING):
        return None
    count = _summed(node)
    if count is not None and count > EXACT[known.dtype]:
        return f"it adds {count} numbers at a time"
    seen = known.extremes.get(name_of(data))
    if seen is None or not known.is_narrow:
        return None
    if node.op_type in SUMS and seen.largest * (count or 1) * MARGIN > LARGEST:
        return f"sums of {data.name!r} may exceed {LARGEST:.0f}"
    if node.op_type in SQUARES and seen.largest**2 * MARGIN > LARGEST:
        return f"squares of {data.name!r} may exceed {LARGEST:.0f}"
    return None


def _summed(node: ir.Node) -> int | None:
    """Return how many numbers the node adds for each result, by the known shapes; None if unknown."""
    data, output = node.inputs[0], node.outputs[0]
    if data is None or data.shape is None:
        return None
    if node.op_type in EXPONENTIAL:
        return _product(data.shape[node.attributes.get_int("axis", -1) :][:1])
    if node.op_type in NORMALIZATIONS:
        return _product(data.shape[node.attributes.get_int("axis", -1) :])
    if node.op_type in ("InstanceNormalization", "GlobalAveragePool"):
        return _product(data.shape[2:])
    if node.op_type in ("CumSum", "LpNormalization", "GroupNormalization") or output.shape is None:
        return None
    whole, left = _product(data.shape), _product(output.shape)
    return None if whole is None or not left else whole // left


def _product(sizes: tuple[int | ir.SymbolicDim, ...] | ir.Shape) -> int | None:
    known = [size for size in sizes if isinstance(size, int)]
    return math.prod(known) if len(known) == len(tuple(sizes)) else None


def _unknown(node: ir.Node, known: Knowledge) -> str | None:
    """A node whose result may be of any size, while nothing is known of its tensors; so is what reads it."""
    divides = is_op(node, "Div") and constant_value(input_at(node, 1)) is None
    grows = divides or _reads_integers(node) or is_op(node, *GROWING)
    if not known.is_narrow or known.extremes or not grows:
        return None
    return f"without data, nothing is known of the range of {node.outputs[0].name!r}"


_INTEGERS = (ir.DataType.INT32, ir.DataType.INT64, ir.DataType.UINT32, ir.DataType.UINT64)

_RULES: tuple[Callable[[ir.Node, Knowledge], str | None], ...] = (_constant, _epsilon, _sum, _unknown)


# --- regions ----------------------------------------------------------------------------------------

BETWEEN = "it only moves values between nodes in float32"


def _join_moves(model: ir.Model, found: dict[str, str]) -> None:
    """Keep in float32 what only moves values between nodes in float32: else two Casts would stand there."""
    nodes = list(all_nodes(model))
    for node in nodes:
        if not is_op(node, *MOVING) or node.op_type in CONTROL_FLOW or node.name in found:
            continue
        sources = [producer_of(value) for value in node.inputs if is_float32(value)]
        readers = [use.node for value in node.outputs for use in value.uses()]
        before = all(source is not None and source.name in found for source in sources)
        after = bool(readers) and all(reader.name in found for reader in readers)
        if sources and before and after:
            found[name_of(node)] = BETWEEN
