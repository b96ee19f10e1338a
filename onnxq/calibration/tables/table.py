"""What a calibration table says, whatever file it stands in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import ArrayLike, NDArray

from onnxq.core.numerics import SMALLEST_SCALE, UNBOUNDED, grid_of, params_from_range
from onnxq.core.plan import QuantParams, QuantSpec

LARGEST = float(np.finfo(np.float32).max)
"""No runtime keeps ranges in more than float32."""

TYPES: Mapping[str, ir.DataType] = {
    f"{sign}int{bits}": ir.DataType[f"{sign}int{bits}".upper()]
    for bits in (4, 8, 16, 32)
    for sign in ("", "u")
}
"""The integer types by name; those of 32 bits are for biases."""


INT8 = QuantSpec(ir.DataType.INT8, symmetric=True)
UINT8 = QuantSpec(ir.DataType.UINT8, symmetric=False)


def integer_type(bits: int, signed: bool) -> ir.DataType:
    """The integer type of this width; ValueError if there is none."""
    name = f"{'' if signed else 'u'}int{bits}"
    if name not in TYPES:
        raise ValueError(f"integers of {bits} bits: expected 4, 8, 16 or 32")
    return TYPES[name]


def grid_spec(bits: int, qmin: int, qmax: int) -> QuantSpec:
    """The number format of this width, symmetric or not, whose grid is ``qmin … qmax``.

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
    """The integer that counts as level 0, also where a narrow range does not use it."""
    return spec.limits[0] - int(spec.narrow_range)


@dataclass(frozen=True)
class Encoding:
    """How one tensor becomes integers: its range and, where that is decided, the exact integers.

    Attributes:
        low, high: the range, float64 of shape ``()`` or ``[C]``, finite and within float32. Of a
            symmetric grid ``±scale * qmax``, of another one all that it holds.
        spec: the number format. Its ``axis`` is None for ``[C]`` too if the table does not tell.
        params: scale and zero point; there exactly if ``spec`` is.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    spec: QuantSpec | None = None
    params: QuantParams | None = None

    @staticmethod
    def of_range(low: ArrayLike, high: ArrayLike) -> Encoding:
        """Of a range alone.

        Raises:
            ValueError: it is not finite, or ends before it begins.
        """
        ends = np.asarray(low, np.float64), np.asarray(high, np.float64)
        if not ends[0].size or ends[0].shape != ends[1].shape:
            raise ValueError("a range has a lowest and a highest value, for each channel or for all")
        if not all((np.abs(end) <= LARGEST).all() for end in ends) or (ends[0] > ends[1]).any():
            raise ValueError(f"[{ends[0]}, {ends[1]}] is not a range of float32 numbers")
        return Encoding(*ends)

    @staticmethod
    def of_params(spec: QuantSpec, params: QuantParams) -> Encoding:
        """Of scale and zero point.

        Raises:
            ValueError: a scale is not positive and finite, or their shapes differ.
        """
        scale, zero = params.scale.astype(np.float64), params.zero_point.astype(np.float64)
        if not (np.isfinite(scale) & (scale > 0)).all():
            raise ValueError(f"a scale of {scale}: expected positive numbers")
        qmin, qmax = spec.limits
        if not scale.size or zero.shape != scale.shape:
            raise ValueError("a scale and a zero point belong together, for each channel or for all")
        high = (qmax - zero) * scale
        low = -high if spec.symmetric else (qmin - zero) * scale
        ends = np.asarray(np.maximum(low, -LARGEST)), np.asarray(np.minimum(high, LARGEST))
        return Encoding(*ends, spec, params)

    @staticmethod
    def of_scale(scale: float) -> Encoding:
        """Signed 8 bits around zero; an empty range for a scale that is zero, or too small to divide by.

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
        """Whether each channel has a range of its own."""
        return self.low.ndim > 0

    @property
    def amax(self) -> NDArray[np.float64]:
        """The largest magnitude in the range, shape ``()`` or ``[C]``."""
        return np.maximum(np.abs(self.low), np.abs(self.high))

    def whole(self) -> Encoding:
        """One range for all channels."""
        return Encoding.of_range(self.low.min(), self.high.max()) if self.per_channel else self

    def exact(self, spec: QuantSpec) -> QuantParams | None:
        """The decided parameters, as ``spec`` writes them; None if they are not of its number format.

        Signed or not is only a way to write: the zero point counts from the lowest integer.
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
        """The decided parameters if they are in this format, else those that the range gives in it."""
        decided = self.exact(spec)
        return decided if decided is not None else params_from_range(self.low, self.high, spec, bounds)

    def decided(self, default: QuantSpec) -> tuple[QuantSpec, QuantParams]:
        """Number format and parameters; those that the range gives in ``default`` if nothing is decided."""
        if self.spec is not None and self.params is not None:
            return self.spec, self.params
        return default, params_from_range(self.low, self.high, default)


def on_grid(
    spec: QuantSpec, scale: NDArray[np.float32], zero_point: NDArray[np.float64], *, symmetric: bool
) -> Encoding:
    """Of numbers as a file has them; symmetric only if the zero point is in the middle, too.

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
        data: of what it reads.
        weight: of its weights, the folded ones.
        channels: output channels.
        groups: of a grouped convolution; 1 otherwise.
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
    """Ranges by tensor name, in graph order.

    Attributes:
        activations: by tensor.
        weights: by initializer.
        layers: by node name.
        operators: names of the nodes that are to run in integers.
        absent: tensors that the float model does not have under that name, or with other values:
            they come from its cleaning, so that no table for another program may name them.
    """

    activations: Mapping[str, Encoding] = field(default_factory=dict)
    weights: Mapping[str, Encoding] = field(default_factory=dict)
    layers: Mapping[str, NcnnLayer] = field(default_factory=dict)
    operators: tuple[str, ...] = ()
    absent: frozenset[str] = frozenset()

    def for_others(self) -> Table:
        """Without what only our own cleaned model has."""
        present = {name: e for name, e in self.activations.items() if name not in self.absent}
        weights = {name: e for name, e in self.weights.items() if name not in self.absent}
        return replace(self, activations=present, weights=weights, absent=frozenset())


def mixed(table: Table) -> dict[str, tuple[Encoding, QuantSpec]]:
    """Activations, then weights, for files that list them together: and the format of what is open."""
    weights = sorted(table.weights.items(), key=lambda entry: entry[1].per_channel)
    entries = [(name, e, UINT8) for name, e in table.activations.items()] + [(n, e, INT8) for n, e in weights]
    return {name: (encoding, spec) for name, encoding, spec in entries}


def unmixed(known: Mapping[str, Encoding]) -> Table:
    """What such a file lists: weights are what has a scale a channel, the others cannot be told apart."""
    return Table(
        {name: e for name, e in known.items() if not e.per_channel},
        {name: e for name, e in known.items() if e.per_channel},
    )
