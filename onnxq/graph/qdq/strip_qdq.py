"""Strip Q and DQ from a model of any origin, and record their parameters.

Weights become the float numbers that their integers stand for, so the result of quantization-aware training
is kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from onnxq.core.errors import ModelError
from onnxq.core.numerics import grid_of, spread
from onnxq.core.plan import FLOATING, QuantSpec
from onnxq.graph.half_precision.widen import use_float32
from onnxq.graph.nodes import (
    add_initializer,
    all_nodes,
    input_at,
    int_attribute,
    ints_attribute,
    name_of,
    rank,
)
from onnxq.graph.operators import Range, clip_range
from onnxq.graph.passes import plain
from onnxq.graph.qdq.implied_clips import clip_before
from onnxq.graph.qdq.integer_edges import convert_ends, join_pairs
from onnxq.graph.qdq.qoperator import use_pairs
from onnxq.graph.qdq.read_qdq import (
    AXIS,
    DEQUANTIZE,
    SCALE,
    ZERO_POINT,
    constant,
    integer_type,
    quantizer,
    stored,
)
from onnxq.graph.walks import is_read, producer_of

BIAS = ir.DataType.INT32


@dataclass(frozen=True)
class RecordedQParams:
    """The quantization parameters of one tensor, as recorded in the model.

    Attributes:
        dtype: type of the integers.
        scale: scale, ``()``, ``[C]`` or per block.
        zero_point: zero point, same shape as the scale.
        axis: axis of the channels or the blocks.
        block_size: number of elements per block; None: no blocks.
        limits: the lowest and highest integer, if a Clip leaves fewer than the type has.
    """

    dtype: ir.DataType
    scale: NDArray[np.float32]
    zero_point: NDArray[np.float64]
    axis: int | None = None
    block_size: int | None = None
    limits: tuple[int, int] | None = None

    @property
    def spec(self) -> QuantSpec:
        """The number format; with ``limits`` the smallest that holds them."""
        symmetric = self.dtype in FLOATING
        full = QuantSpec(self.dtype, symmetric, axis=self.axis, block_size=self.block_size)
        if self.limits is None:
            return full
        low, high = self.limits
        bits = max(high, -low - 1, 0).bit_length() + self.dtype.is_signed()
        return replace(full, narrow_range=low == -high != 0, reduce_bits=self.dtype.bitwidth - bits)

    def with_positive_scales(self) -> RecordedQParams:
        """The grid of a constant with positive scales.

        NNCF gives weights a negative scale where the number of largest magnitude is positive, so that the
        lowest integer stands for it. With the scale 0 all numbers are 0, on any grid.
        """
        zero = np.where(self.scale < 0, -self.zero_point, self.zero_point)
        scale = np.where(self.scale == 0, np.float32(1), np.abs(self.scale))
        return replace(self, scale=np.asarray(scale, np.float32), zero_point=np.asarray(zero, np.float64))

    @property
    def ends(self) -> Range:
        """The lowest and the highest real number of the grid; infinite if they differ by channel."""
        low, high = ((end - self.zero_point) * self.scale for end in self.spec.limits)
        lowest = float(low.flat[0]) if _is_one(low) else -math.inf
        return lowest, float(high.flat[0]) if _is_one(high) else math.inf


@dataclass
class StrippedModel:
    """A float model and the recorded parameters, by tensor name.

    Attributes:
        model: the model without Q and DQ.
        activations: parameters of computed tensors.
        weights: parameters of constants, without biases.
        conflicting: tensors with several different parameters, of which the first are recorded.
    """

    model: ir.Model
    activations: dict[str, RecordedQParams] = field(default_factory=dict)
    weights: dict[str, RecordedQParams] = field(default_factory=dict)
    conflicting: list[str] = field(default_factory=list)


def strip(model: ir.Model) -> StrippedModel:
    """Remove Q and DQ from a copy of ``model``.

    Raises:
        ModelError: a DequantizeLinear reads integers that come neither from a QuantizeLinear nor from a
            constant, or a scale is computed at run time.
    """
    copy = plain(model)
    use_pairs(copy)
    join_pairs(copy)
    result = StrippedModel(copy)
    for node in list(all_nodes(copy)):
        if node.op_type == DEQUANTIZE and node.graph is not None:
            _take_out(node, result)
    convert_ends(copy)
    use_float32(copy)
    common.RemoveUnusedNodesPass()(copy)
    return result


def _take_out(node: ir.Node, result: StrippedModel) -> None:
    recorded, source = _read(node), node.inputs[0]
    maker = producer_of(source)
    if maker is not None and (limits := clip_range(maker)) is not None and all(map(math.isfinite, limits)):
        recorded, source = replace(recorded, limits=(int(limits[0]), int(limits[1]))), maker.inputs[0]
    before = quantizer(source)
    integers = stored(source)
    if integers is not None:
        reals = _meant(integers, recorded, before is not None, node)
        _make_constant(node.outputs[0], reals, recorded.with_positive_scales(), result)
    elif not (recorded.scale > 0).all():
        raise ModelError(f"node {node.name!r}: expected positive, finite scales, got {recorded.scale.min()}")
    elif before is not None:
        _pass_on(node, before, recorded, result)
    elif source is not None and source.is_graph_input():
        _note(name_of(node.outputs[0]), recorded, result)
    else:
        raise ModelError(
            f"node {node.name!r} dequantizes integers that no QuantizeLinear made: only models with pairs of "
            "QuantizeLinear and DequantizeLinear are supported"
        )


def _meant(
    array: NDArray[np.generic], recorded: RecordedQParams, as_reals: bool, node: ir.Node
) -> NDArray[np.float32]:
    """Compute the float numbers for a stored constant: integers, or floats that a QuantizeLinear rounds."""
    try:
        return _reals(_levels(array, recorded) if as_reals else array, recorded)
    except (ValueError, IndexError) as error:
        raise ModelError(
            f"node {node.name!r}: scales of shape {list(recorded.scale.shape)} do not fit its input of "
            f"shape {list(array.shape)}"
        ) from error


def _read(node: ir.Node) -> RecordedQParams:
    given, zero = constant(input_at(node, SCALE)), constant(input_at(node, ZERO_POINT))
    dtype = integer_type(node)
    if given is None or dtype is None or (zero is None and input_at(node, ZERO_POINT) is not None):
        raise ModelError(f"node {node.name!r}: its scale or type is known only at run time: not supported")
    scale: NDArray[np.float32] = given.astype(np.float32)
    if not np.isfinite(scale).all():
        raise ModelError(f"node {node.name!r}: expected positive, finite scales, got {scale.min()}")
    zero = np.zeros(scale.shape) if zero is None else zero
    block = int_attribute(node, "block_size", 0) or None
    whole = scale.size == 1 or (block is None and scale.size > 0 and _is_one(scale) and _is_one(zero))
    values, zeros = (array.reshape(-1)[0] if whole else array for array in (scale, zero))
    axis = None if whole else int_attribute(node, "axis", AXIS)
    known = rank(node.inputs[0])
    if axis is not None and known is not None:
        if not -known <= axis < known:
            raise ModelError(f"node {node.name!r}: its input has {known} axes, so there is no axis {axis}")
        axis %= known
    return RecordedQParams(dtype, np.asarray(values), np.asarray(zeros, np.float64), axis, block)


def _is_one(array: NDArray[np.generic]) -> bool:
    """Whether all elements are equal; then a per-channel value is the same as a per-tensor one."""
    return bool(np.all(array == array.reshape(-1)[0]))


def _levels(reals: NDArray[np.generic], recorded: RecordedQParams) -> NDArray[np.float64]:
    """Compute the numbers of the grid that QuantizeLinear makes of a float constant."""
    scale = spread(recorded.scale, recorded.spec, reals.shape)
    zero = spread(recorded.zero_point, recorded.spec, reals.shape)
    qmin, qmax = recorded.spec.limits
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(scale == 0, 0, reals.astype(np.float32) / scale)
    steps = grid_of(recorded.spec).rounded(ratio).astype(np.float64)
    return np.asarray(np.clip(steps + zero, qmin, qmax))


def _reals(levels: NDArray[np.generic], recorded: RecordedQParams) -> NDArray[np.float32]:
    scale = spread(recorded.scale, recorded.spec, levels.shape)
    zero = spread(recorded.zero_point, recorded.spec, levels.shape)
    return ((levels.astype(np.float64) - zero) * scale).astype(np.float32)


def _make_constant(
    old: ir.Value, reals: NDArray[np.float32], recorded: RecordedQParams, result: StrippedModel
) -> None:
    """Replace ``old``, and its Transposes, by float constants, and record their parameters."""
    name, old.name = old.name or "weight", None
    for turned, permutation in list(_transposes(old, reals.ndim)):
        axis = None if recorded.axis is None else permutation.index(recorded.axis)
        blocks = recorded.scale.ndim > 1
        other = replace(
            recorded,
            scale=recorded.scale.transpose(permutation) if blocks else recorded.scale,
            zero_point=recorded.zero_point.transpose(permutation) if blocks else recorded.zero_point,
            axis=axis,
        )
        _make_constant(turned, reals.transpose(permutation), other, result)
    if not is_read(old):
        return
    new = add_initializer(result.model, name, np.ascontiguousarray(reals))
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    if recorded.dtype != BIAS:
        result.weights[name_of(new)] = recorded


def _transposes(value: ir.Value, axes: int) -> Iterator[tuple[ir.Value, list[int]]]:
    """Yield the output of each Transpose of a value with so many axes, and its permutation."""
    for use in tuple(value.uses()):
        if use.node.op_type == "Transpose":
            yield use.node.outputs[0], list(ints_attribute(use.node, "perm", tuple(reversed(range(axes)))))
            use.node.replace_input_with(0, None)


def _pass_on(node: ir.Node, before: ir.Node, recorded: RecordedQParams, result: StrippedModel) -> None:
    """Let the readers of ``node`` read the tensor before quantization, and record the parameters."""
    real, out = clip_before(result.model, before, recorded.ends), node.outputs[0]
    if out.is_graph_output():
        name, out.name = out.name, None
        same = ir.node("Identity", [real], name=f"{node.name}_stripped")
        same.outputs[0].name, same.outputs[0].type, same.outputs[0].shape = name, out.type, out.shape
        assert node.graph is not None
        node.graph.insert_after(node, same)
        out.replace_all_uses_with(same.outputs[0], replace_graph_outputs=True)
        _note(name or "", recorded, result)
    else:
        out.replace_all_uses_with(real)
    _note(name_of(real), recorded, result)


def _note(name: str, recorded: RecordedQParams, result: StrippedModel) -> None:
    known = result.activations.setdefault(name, recorded)
    if not (np.array_equal(known.scale, recorded.scale) and known.ends == recorded.ends):
        result.conflicting.append(name)
