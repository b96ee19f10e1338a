"""What is quantized, how, and why the rest is not: the values that planner and insertion exchange.

A decision belongs to an *edge* (consumer, input index), never to a node: the same tensor may reach
one consumer in int8 and another in float.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

GRAPH_OUTPUT = ""
"""The ``consumer`` of an edge that leaves the graph."""

OPSET = 13
"""Where QuantizeLinear and DequantizeLinear got their per-channel ``axis``."""

OPSET_OF_BLOCKS = 21
"""Where they got 4 and 16 bits, and ``block_size``."""

_FIRST_TYPES = frozenset({ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT32})


@dataclass(frozen=True)
class QuantSpec:
    """A number format.

    Attributes:
        dtype: the type that integers are stored in.
        symmetric: the zero point is fixed: 0 for signed types, the middle for unsigned ones.
        axis: the per-channel axis of the tensor, or None for one scale a tensor. With a block size,
            the axis that is cut into blocks.
        narrow_range: leave out the lowest integer (-128), so that the grid is symmetric.
        reduce_bits: bits left unused at the top (1 gives 7-bit weights, which cannot saturate
            the 16-bit sums of AVX2 kernels).
        power_of_two: scales are powers of two, for hardware that shifts instead of multiplying.
        block_size: so many neighbours along ``axis`` share a scale, and nobody else: every other index
            has scales of its own. The last block may be shorter. None: not cut into blocks.
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
        """The lowest opset whose QuantizeLinear and DequantizeLinear know the format."""
        return OPSET if self.dtype in _FIRST_TYPES and self.block_size is None else OPSET_OF_BLOCKS

    @property
    def limits(self) -> tuple[int, int]:
        """The lowest and highest integer of the grid."""
        bits = self.dtype.bitwidth - self.reduce_bits
        if self.dtype.is_signed():
            return -(2 ** (bits - 1)) + int(self.narrow_range), 2 ** (bits - 1) - 1
        return int(self.narrow_range), 2**bits - 1


@dataclass(frozen=True)
class QuantParams:
    """``real = (q - zero_point) * scale``; both arrays have shape ``()`` or ``[C]``.

    In blocks, both have the shape of the tensor, with ``ceil(K / block_size)`` for the K of its axis.
    ``scale`` is float32, ``zero_point`` has the integer type of the grid.
    """

    scale: NDArray[np.float32]
    zero_point: NDArray[np.generic]


@dataclass(frozen=True)
class QuantPoint:
    """One quantized edge: ``consumer``'s input ``input_index`` reads ``tensor`` in integers.

    ``consumer`` is a node name, or `GRAPH_OUTPUT` with the output's position as ``input_index``.
    Points of one ``group`` share their parameters.

    ``replicated_scale`` is (axis, size) where the DequantizeLinear repeats the one scale for each of ``size``
    channels: the same numbers, in a form that keeps the runtime from quantizing a float consumer.
    """

    tensor: str
    consumer: str
    input_index: int
    spec: QuantSpec
    group: str
    replicated_scale: tuple[int, int] | None = None


@dataclass(frozen=True)
class BiasPoint:
    """An int32 bias: its scale is input scale x weight scale, its zero point 0 (nothing to calibrate)."""

    tensor: str
    consumer: str
    input_index: int
    input_group: str
    weight_group: str


@dataclass(frozen=True)
class Group:
    """Tensors that share one set of parameters.

    Attributes:
        name: the tensor whose values all the others hold (or a number format is added, to be unique).
        spec: their number format.
        tensors: all of them, in graph order.
        observe: those whose statistics, merged, give the range. Empty for constants, whose values
            give it, and where it is fixed. A tensor that only passes on the data of another one is
            not observed.
        bounds: the range cannot usefully exceed these (low, high).
        fixed: the range must be exactly this, whatever was observed.
        constant: an initializer (weights, or a constant operand).
        unpacked: the type that the stored integers, less their zero points, are cast to before they are
            dequantized; None: not.
        averaged: over how many of its elements the network behind it averages; rounding errors cancel
            there, clipping errors do not.
        stored_as_float: the constant is stored in float, on its grid, with a QuantizeLinear behind it.
        method: how its range is chosen, where another method is asked for than for the rest; of weights
            ``absmax``: the scale that just covers the largest. None: as everywhere.
    """

    name: str
    spec: QuantSpec
    tensors: tuple[str, ...]
    observed_tensors: tuple[str, ...]
    bounds: tuple[float, float] = (-np.inf, np.inf)
    fixed: tuple[float, float] | None = None
    constant: bool = False
    cast_to: ir.DataType | None = None
    averaging_window: int = 1
    stored_as_float: bool = False
    method: str | None = None


@dataclass(frozen=True)
class FloatNode:
    """A node that stays float, and why."""

    op_type: str
    reason: str


@dataclass(frozen=True)
class QuantPlan:
    """The whole decision, immutable.

    Attributes:
        target: the name of the target it was made for.
        points: every quantized edge, weights included, in graph order.
        biases: the int32 biases.
        groups: by name.
        nodes: name -> op type of every node that is to run in integers.
        floats: every other node that computes reals and stays float, by name.
        carried: name -> op type of the nodes that run in the type of their neighbours, because the runtime
            moves Q and DQ across them.
        stored: names of the nodes that stay float and whose weights are stored in fewer bits all the same.
        sums: names of the Adds that stay float and are written as Sum (see `norm_sums`).
        filled: name -> of what their input channels should be a multiple (see `pad_input_channels`).
        params: group name -> parameters; filled by `with_params`.
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
    channel_padding: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def observed(self) -> tuple[str, ...]:
        """The tensors whose statistics calibration must collect, each once."""
        return tuple(dict.fromkeys(t for g in self.groups.values() for t in g.observed_tensors))

    def has_range_of(self, group: Group) -> bool:
        """Whether there is a group with just the range of ``group``."""
        other = self.groups.get(group.name)
        if other is None or not (group.constant and other.constant):
            return other == group
        return other.spec == group.spec

    def with_params(self, params: Mapping[str, QuantParams]) -> QuantPlan:
        """The same plan with these parameters (a mapping from group name)."""
        return replace(self, params=MappingProxyType(dict(params)))
