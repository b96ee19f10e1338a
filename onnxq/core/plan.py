"""The quantization plan: what is quantized, how, and why the rest is not.

The planner makes a plan, and `insert_qdq` carries it out. A decision belongs to an *edge* (consumer, input
index), not to a node: the same tensor may reach one consumer in int8 and another in float.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calibrators.grid import E4M3, FloatFormat

GRAPH_OUTPUT = ""
"""The ``consumer`` of an edge that leads to a graph output."""

OPSET = 13
"""The opset in which QuantizeLinear and DequantizeLinear got the per-channel ``axis``."""

OPSET_OF_HALF_SCALES = 19
"""The opset in which their scales may be in half precision."""

OPSET_OF_BLOCKS = 21
"""The opset in which they got 4 and 16 bits, and ``block_size``."""

OPSET_OF_FP8 = 19
"""The opset in which they got 8-bit floating-point numbers."""

FLOATING: Mapping[ir.DataType, FloatFormat] = MappingProxyType({ir.DataType.FLOAT8E4M3FN: E4M3})
"""The types that hold floating-point numbers, with their formats."""

_FIRST_TYPES = frozenset({ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT32})


@dataclass(frozen=True)
class QuantSpec:
    """A number format.

    Attributes:
        dtype: the type of the stored numbers: integers, or floating-point numbers of 8 bits.
        symmetric: whether the zero point is fixed: 0 for signed types, the middle for unsigned ones.
            Floating-point numbers are always symmetric.
        axis: the per-channel axis of the tensor, or None for a per-tensor scale. With a block size, the axis
            that is cut into blocks.
        narrow_range: leave out the lowest integer (-128), so that the grid is symmetric.
        reduce_bits: number of bits left unused at the top (1 gives 7-bit weights, which cannot saturate
            the 16-bit sums of AVX2 kernels).
        block_size: number of neighbours along ``axis`` that share a scale; the last block may be shorter.
            Each index of the other axes has its own scales. None: not cut into blocks.
        power_of_two: whether scales are powers of two, for hardware that shifts instead of multiplying.
    """

    dtype: ir.DataType
    symmetric: bool
    axis: int | None = None
    narrow_range: bool = False
    reduce_bits: int = 0
    block_size: int | None = None
    power_of_two: bool = False

    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}  # read from YAML files, see Target

    @property
    def opset(self) -> int:
        """The lowest opset whose QuantizeLinear and DequantizeLinear support the format."""
        if self.block_size is not None:
            return OPSET_OF_BLOCKS
        if self.is_floating:
            return OPSET_OF_FP8
        return OPSET if self.dtype in _FIRST_TYPES else OPSET_OF_BLOCKS

    @property
    def is_floating(self) -> bool:
        """Whether the stored numbers are floating-point numbers."""
        return self.dtype in FLOATING

    @property
    def limits(self) -> tuple[int, int]:
        """The lowest and highest number of the grid."""
        if self.is_floating:
            largest = FLOATING[self.dtype].largest
            return -largest, largest
        bits = self.dtype.bitwidth - self.reduce_bits
        if self.dtype.is_signed():
            return -(2 ** (bits - 1)) + int(self.narrow_range), 2 ** (bits - 1) - 1
        return int(self.narrow_range), 2**bits - 1


LEAST_SCALE = 2.0**-20
"""The smallest scale that is stored in float16, where numbers are 2^-24 apart: an error of 3 %, which the
integers make good because they are chosen for the rounded scale."""

BESIDE = 64.0
"""How much larger another channel's scale must be for one below `LEAST_SCALE` to be raised to it. The
channel's error then stays 36 dB below that of the other."""


@dataclass(frozen=True)
class QuantParams:
    """Quantization parameters: ``real = (q - zero_point) * scale``; both have shape ``()`` or ``[C]``.

    With blocks, both have the shape of the tensor, with ``ceil(K / block_size)`` instead of the axis size K.
    ``scale`` is float32, ``zero_point`` has the integer type of the grid.
    """

    scale: NDArray[np.float32]
    zero_point: NDArray[np.generic]

    def rounded(self, dtype: ir.DataType) -> QuantParams:
        """Round the scale to a half-precision type, if that holds it; see `LEAST_SCALE`.

        Tiny scales of single channels, whose weights are almost zero, are raised: for them, no layer should
        be in float32.
        """
        scale = self.scale
        if dtype == ir.DataType.FLOAT16 and scale.max(initial=0.0) >= BESIDE * LEAST_SCALE:
            scale = np.maximum(scale, LEAST_SCALE)
        if dtype == ir.DataType.FLOAT or not fits_scale(scale, dtype):
            return self
        return replace(self, scale=scale.astype(dtype.numpy()).astype(np.float32))


def fits_scale(scale: NDArray[np.generic], dtype: ir.DataType) -> bool:
    """Whether a half-precision type holds all scales well enough."""
    if dtype == ir.DataType.BFLOAT16:  # it has the range of float32
        return True
    return bool(scale.max(initial=0.0) <= np.finfo(np.float16).max) and bool(
        scale.min(initial=np.inf) >= LEAST_SCALE
    )


@dataclass(frozen=True)
class QuantPoint:
    """One quantized edge: input ``input_index`` of ``consumer`` reads ``tensor`` in integers.

    ``consumer`` is a node name, or `GRAPH_OUTPUT` with the output's position as ``input_index``.
    Points of one ``group`` share their parameters.

    ``replicated_scale`` is (axis, size) if the DequantizeLinear repeats the single scale for each of ``size``
    channels. The values are the same, but this form keeps the runtime from quantizing a float consumer.

    ``converted_from`` is the group that ``tensor`` is written in, if that has another width: a DQ -> Q pair
    converts it to ``group``. None: it is quantized from float numbers.
    """

    tensor: str
    consumer: str
    input_index: int
    spec: QuantSpec
    group: str
    replicated_scale: tuple[int, int] | None = None
    converted_from: str | None = None


@dataclass(frozen=True)
class BiasPoint:
    """An int32 bias, not calibrated: its scale is input scale x weight scale, and its zero point 0."""

    tensor: str
    consumer: str
    input_index: int
    input_group: str
    weight_group: str


@dataclass(frozen=True)
class Group:
    """Tensors that share one set of parameters.

    Attributes:
        name: the tensor whose values all the others hold (a number format is added if needed to be unique).
        spec: their number format.
        tensors: all tensors of the group, in graph order.
        observed_tensors: the tensors whose merged statistics give the range. Empty for constants, whose
            values give it, and for a fixed range. A tensor that only passes on the data of another one is
            not observed.
        bounds: limits (low, high) that the range cannot usefully exceed.
        flat: the function that all readers compute, whose value hardly changes below some value, as
            `calibrators.methods.flat_end` names it; None: there is no such function.
        fixed: the exact range to use, whatever was observed; None: not fixed.
        constant: whether it is an initializer (weights, or a constant operand).
        cast_to: the type to which the stored integers, minus their zero points, are cast before they are
            dequantized; None: no cast.
        averaging_window: number of its elements that one result downstream averages; rounding errors cancel
            there, clipping errors do not.
        copied: whether each of its readers gets a copy of the stored integers and scales.
        stored_as_float: whether the constant is stored in float, on its grid, with a QuantizeLinear after it.
        method: the calibration method, if it differs from that of the other groups; for weights, ``absmax``
            is the scale that just covers the largest. None: the same method.
        percentile: the share of values to keep, in per cent, if ``method`` is ``percentile``.
    """

    name: str
    spec: QuantSpec
    tensors: tuple[str, ...]
    observed_tensors: tuple[str, ...]
    bounds: tuple[float, float] = (-np.inf, np.inf)
    flat: str | None = None
    fixed: tuple[float, float] | None = None
    constant: bool = False
    cast_to: ir.DataType | None = None
    averaging_window: int = 1
    stored_as_float: bool = False
    copied: bool = False
    method: str | None = None
    percentile: float = 99.99


@dataclass(frozen=True)
class FloatNode:
    """A node that is kept in float, and the reason."""

    op_type: str
    reason: str


@dataclass(frozen=True)
class StoredWeights:
    """The format of weights that belong to no group, because no range of the plan has to do with them.

    Attributes:
        dtype: the type of the stored numbers.
        block_size: the number of weights that share a scale; None: those of a channel, or all.
        multiplied: whether the node multiplies the integers, with activations quantized at run time; else it
            computes in float.
    """

    dtype: ir.DataType
    block_size: int | None = None
    multiplied: bool = False

    def __str__(self) -> str:
        blocks = "" if self.block_size is None else f" in blocks of {self.block_size}"
        return f"{self.dtype.name.lower()} weights{blocks}"


@dataclass(frozen=True)
class QuantPlan:
    """The quantization plan of a model; immutable.

    Attributes:
        target: name of the deployment target.
        points: all quantized edges, weights included, in graph order.
        biases: the int32 biases.
        groups: name -> group.
        integer_nodes: name -> op type of each node that is to run in integers.
        float_nodes: name -> each other node that computes float numbers and is kept in float.
        params: group name -> parameters; filled by `with_params`.
        passthrough_nodes: name -> op type of the Q/DQ-transparent nodes: they run in the type of their
            neighbours, because the runtime moves Q and DQ across them.
        weight_only_nodes: names of nodes that are kept in float, but whose weights are stored in fewer bits.
        unfused_sums: names of Adds that are kept in float and written as Sum (see `unfuse_layernorm_adds`).
        separated: names of nodes that read integers, but that the runtime must not fuse with Q/DQ (see
            `separate_from_qdq`).
        on_integers: names of nodes that are written as operators on the integers themselves (see
            `work_on_integers`).
        unfused_products: names of products with weights in blocks that are written with an Add after them
            (see `unfuse_products`).
        join_float_readers: whether float nodes that read the same quantized tensor read it through one
            DequantizeLinear (see `onnxq.graph.ort_rewrites.join_float_readers`).
        integer_tables: name of each Gather that looks up rows in integers (see `look_up_integers`) -> the
            group of the weights that the table is too; empty if it is none.
        channel_padding: name -> number of which its input channels should be a multiple (see
            `pad_input_channels`).
        float_type: the type of what is not quantized, and of scales: float32, float16 or bfloat16.
        half_constants: whether float constants are stored in float16 where it holds them exactly (see
            `store_in_half`).
        stored_weights: node name -> the format of its weights, in the modes that plan no ranges.
    """

    target: str
    points: tuple[QuantPoint, ...]
    biases: tuple[BiasPoint, ...]
    groups: Mapping[str, Group]
    integer_nodes: Mapping[str, str]
    float_nodes: Mapping[str, FloatNode]
    params: Mapping[str, QuantParams] = field(default_factory=lambda: MappingProxyType({}))
    passthrough_nodes: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    weight_only_nodes: frozenset[str] = frozenset()
    unfused_sums: frozenset[str] = frozenset()
    separated: frozenset[str] = frozenset()
    on_integers: frozenset[str] = frozenset()
    unfused_products: frozenset[str] = frozenset()
    join_float_readers: bool = False
    integer_tables: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    channel_padding: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    half_constants: bool = False
    float_type: ir.DataType = ir.DataType.FLOAT
    stored_weights: Mapping[str, StoredWeights] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def observed(self) -> tuple[str, ...]:
        """The tensors whose statistics calibration must collect, each once."""
        return tuple(dict.fromkeys(t for g in self.groups.values() for t in g.observed_tensors))

    @property
    def is_compact(self) -> bool:
        """Whether weights have less than 8 bits or a scale per block, which are chosen for their size."""
        formats = [group.spec for group in self.groups.values() if group.constant]
        return any(spec.dtype.bitwidth < 8 or spec.block_size is not None for spec in formats)

    @property
    def activation_types(self) -> Mapping[str, ir.DataType]:
        """Node name -> type of the activations that the node reads in integers; of several the widest."""
        found: dict[str, ir.DataType] = {}
        for point in self.points:
            if not self.groups[point.group].constant and point.consumer != GRAPH_OUTPUT:
                widest = found.get(point.consumer, point.spec.dtype)
                found[point.consumer] = max(widest, point.spec.dtype, key=lambda dtype: dtype.bitwidth)
        return found

    @property
    def conversions(self) -> int:
        """The number of DQ -> Q pairs that change the width of a tensor."""
        return len({(point.tensor, point.group) for point in self.points if point.converted_from is not None})

    def widened_from(self, before: QuantPlan) -> dict[str, str]:
        """Node name -> type of the activations, for the nodes that read wider ones than in ``before``."""
        old = before.activation_types
        return {
            name: dtype.name.lower()
            for name, dtype in self.activation_types.items()
            if name in self.integer_nodes and dtype.bitwidth > old.get(name, dtype).bitwidth
        }

    def points_of(self, group: str) -> tuple[QuantPoint, ...]:
        """The edges whose values are rounded to the grid of ``group``, also those converted afterwards."""
        return tuple(point for point in self.points if group in (point.group, point.converted_from))

    def has_range_of(self, group: Group) -> bool:
        """Whether this plan has a group with the same range as ``group``."""
        other = self.groups.get(group.name)
        if other is None or not (group.constant and other.constant):
            return other == group
        return other.spec == group.spec

    def with_params(self, params: Mapping[str, QuantParams]) -> QuantPlan:
        """Copy the plan with these parameters (by group name); scales are rounded to its float type."""
        rounded = {name: each.rounded(self.float_type) for name, each in params.items()}
        return replace(self, params=MappingProxyType(rounded))
