"""The content of a calibration table, independent of its file format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import ArrayLike, NDArray

from onnxq.core.numerics import SMALLEST_SCALE, UNBOUNDED, grid_of, params_from_range
from onnxq.core.plan import FLOATING, QuantParams, QuantSpec

LARGEST = float(np.finfo(np.float32).max)
"""The largest end of a range: runtimes keep ranges in float32."""

TYPES: Mapping[str, ir.DataType] = {
    f"{sign}int{bits}": ir.DataType[f"{sign}int{bits}".upper()]
    for bits in (4, 8, 16, 32)
    for sign in ("", "u")
} | {dtype.name.lower(): dtype for dtype in FLOATING}
"""The types by name; integers of 32 bits are for biases."""


INT8 = QuantSpec(ir.DataType.INT8, symmetric=True)
UINT8 = QuantSpec(ir.DataType.UINT8, symmetric=False)


def integer_type(bits: int, signed: bool) -> ir.DataType:
    """Look up the integer type of this width.

    Raises:
        ValueError: there is none.
    """
    name = f"{'' if signed else 'u'}int{bits}"
    if name not in TYPES:
        raise ValueError(f"integers of {bits} bits: expected 4, 8, 16 or 32")
    return TYPES[name]


def grid_spec(bits: int, qmin: int, qmax: int) -> QuantSpec:
    """Find the number format whose grid is ``qmin … qmax``; it is not marked as symmetric.

    Args:
        bits: the width of the integer type.
        qmin: the lowest level.
        qmax: the highest level.

    Raises:
        ValueError: there is none.
    """
    signed = qmin < 0
    unused, full = bits - int(signed) - max(qmax, 0).bit_length(), -qmax - 1 if signed else 0
    spec = QuantSpec(
        integer_type(bits, signed), symmetric=False, narrow_range=qmin != full, reduce_bits=unused
    )
    if unused < 0 or spec.limits != (qmin, qmax):
        raise ValueError(f"a grid of {qmin} to {qmax} in {bits} bits")
    return spec


def lowest(spec: QuantSpec) -> int:
    """The integer that counts as level 0, even if a narrow range does not use it."""
    return spec.limits[0] - int(spec.narrow_range)


@dataclass(frozen=True)
class Encoding:
    """The encoding of one tensor: its range and, if they are decided, its number format and parameters.

    Attributes:
        low: the lower end of the range, float64 of shape ``()`` or ``[C]``, finite and within float32. For a
            symmetric grid ``-scale * qmax``, for others the lowest value on the grid.
        high: the upper end of the range, of the same shape: the highest value on the grid.
        spec: the number format; None if it is not decided. Its ``axis`` may be None for ``[C]`` too, if the
            table does not tell.
        params: scale and zero point; None exactly if ``spec`` is.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    spec: QuantSpec | None = None
    params: QuantParams | None = None

    @staticmethod
    def of_range(low: ArrayLike, high: ArrayLike) -> Encoding:
        """Make an encoding of a range alone.

        Raises:
            ValueError: the range is not finite, or low > high.
        """
        ends = np.asarray(low, np.float64), np.asarray(high, np.float64)
        if not ends[0].size or ends[0].shape != ends[1].shape:
            raise ValueError("a range needs a lowest and a highest value, one of each or one per channel")
        if not all((np.abs(end) <= LARGEST).all() for end in ends) or (ends[0] > ends[1]).any():
            raise ValueError(f"[{ends[0]}, {ends[1]}] is not a range of float32 numbers")
        return Encoding(*ends)

    @staticmethod
    def of_params(spec: QuantSpec, params: QuantParams) -> Encoding:
        """Make an encoding of scale and zero point.

        Raises:
            ValueError: a scale is not positive and finite, or their shapes differ.
        """
        scale, zero = params.scale.astype(np.float64), params.zero_point.astype(np.float64)
        if not (np.isfinite(scale) & (scale > 0)).all():
            raise ValueError(f"a scale of {scale}: expected positive numbers")
        qmin, qmax = spec.limits
        if not scale.size or zero.shape != scale.shape:
            raise ValueError("scale and zero point must have the same shape, one value or one per channel")
        high = (qmax - zero) * scale
        low = -high if spec.symmetric else (qmin - zero) * scale
        ends = np.asarray(np.maximum(low, -LARGEST)), np.asarray(np.minimum(high, LARGEST))
        return Encoding(*ends, spec, params)

    @staticmethod
    def of_scale(scale: float) -> Encoding:
        """Make a symmetric int8 encoding; an empty range if the scale is zero or too small to divide by.

        Raises:
            ValueError: the scale is negative or not finite.
        """
        if 0 <= scale < SMALLEST_SCALE:
            return Encoding.of_range(0.0, 0.0)
        with np.errstate(over="ignore"):
            narrow = np.array(scale, np.float32)
        return Encoding.of_params(INT8, QuantParams(narrow, np.array(0, np.int8)))

    @property
    def per_channel(self) -> bool:
        """Whether each channel has its own range."""
        return self.low.ndim > 0

    @property
    def amax(self) -> NDArray[np.float64]:
        """The largest magnitude in the range, of shape ``()`` or ``[C]``."""
        return np.maximum(np.abs(self.low), np.abs(self.high))

    def whole(self) -> Encoding:
        """The encoding with one range for all channels."""
        return Encoding.of_range(self.low.min(), self.high.max()) if self.per_channel else self

    def exact(self, spec: QuantSpec) -> QuantParams | None:
        """The decided parameters in the number format ``spec``; None if they have another format.

        Signed and unsigned formats are equivalent here: the zero point is converted.
        """
        if self.spec is None or self.params is None:
            return None
        ours, theirs = self.spec, spec
        widths = [each.dtype.bitwidth - each.reduce_bits for each in (ours, theirs)]
        if widths[0] != widths[1] or ours.symmetric != theirs.symmetric:
            return None
        if self.per_channel and None not in (ours.axis, theirs.axis) and ours.axis != theirs.axis:
            return None
        zero_point = self.params.zero_point.astype(np.int64) - lowest(ours) + lowest(theirs)
        return QuantParams(self.params.scale, zero_point.astype(theirs.dtype.numpy()))

    def params_for(self, spec: QuantSpec, bounds: tuple[float, float] = UNBOUNDED) -> QuantParams:
        """The decided parameters if they have this number format, else those computed from the range."""
        decided = self.exact(spec)
        return decided if decided is not None else params_from_range(self.low, self.high, spec, bounds)

    def decided(self, default: QuantSpec) -> tuple[QuantSpec, QuantParams]:
        """The decided number format and parameters, else ``default`` and parameters from the range."""
        if self.spec is not None and self.params is not None:
            return self.spec, self.params
        return default, params_from_range(self.low, self.high, default)


def on_grid(
    spec: QuantSpec, scale: NDArray[np.float32], zero_point: NDArray[np.float64], *, symmetric: bool
) -> Encoding:
    """Make an encoding of parameters as a file has them.

    Args:
        spec: the number format; its ``symmetric`` is ignored.
        scale: the scale, ``()`` or ``[C]``.
        zero_point: the zero point, of the same shape.
        symmetric: whether the file says so; it counts only if the zero point is in the middle of the grid.

    Raises:
        ValueError: a scale is not positive and finite, or a zero point no integer of the grid.
    """
    middle = grid_of(spec).middle
    qmin, qmax = spec.limits
    if not ((zero_point == np.rint(zero_point)) & (zero_point >= qmin) & (zero_point <= qmax)).all():
        raise ValueError(f"a zero point of {zero_point}: expected integers from {qmin} to {qmax}")
    spec = replace(spec, symmetric=symmetric and bool((zero_point == middle).all()))
    return Encoding.of_params(spec, QuantParams(scale, zero_point.astype(spec.dtype.numpy())))


@dataclass(frozen=True)
class NcnnLayer:
    """A weighted layer, for runtimes whose tables name layers instead of tensors.

    Attributes:
        data: the encoding of its input.
        weight: the encoding of its folded weights.
        channels: the number of output channels.
        groups: the number of groups of a convolution; 1 for other operators.
        winograd: a 3 x 3 convolution of one group with stride and dilation 1, for which there are
            kernels of fewer bits.
    """

    data: Encoding
    weight: Encoding
    channels: int
    groups: int = 1
    winograd: bool = False


@dataclass(frozen=True)
class Table:
    """The content of a calibration table, in graph order.

    Attributes:
        activations: encodings by tensor name.
        weights: encodings by initializer name.
        layers: layers by node name.
        operators: names of the nodes that run in integers.
        absent: tensors that the user's float model does not have, or has with other values. They come from
            the cleaning of the model, so tables for other programs must not name them.
    """

    activations: Mapping[str, Encoding] = field(default_factory=dict)
    weights: Mapping[str, Encoding] = field(default_factory=dict)
    layers: Mapping[str, NcnnLayer] = field(default_factory=dict)
    operators: tuple[str, ...] = ()
    absent: frozenset[str] = frozenset()

    def for_others(self) -> Table:
        """The table without tensors that only onnxq's cleaned model has."""
        present = {name: e for name, e in self.activations.items() if name not in self.absent}
        weights = {name: e for name, e in self.weights.items() if name not in self.absent}
        return replace(self, activations=present, weights=weights, absent=frozenset())


def mixed(table: Table) -> dict[str, tuple[Encoding, QuantSpec]]:
    """List activations, then weights, for files that hold both together, with their default formats."""
    weights = sorted(table.weights.items(), key=lambda entry: entry[1].per_channel)
    entries = [(name, e, UINT8) for name, e in table.activations.items()] + [(n, e, INT8) for n, e in weights]
    return {name: (encoding, spec) for name, encoding, spec in entries}


def unmixed(known: Mapping[str, Encoding]) -> Table:
    """Make a table of such a file. Per-channel entries are weights; the others cannot be told apart."""
    return Table(
        {name: e for name, e in known.items() if not e.per_channel},
        {name: e for name, e in known.items() if e.per_channel},
    )
