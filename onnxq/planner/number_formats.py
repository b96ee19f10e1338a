"""Look up the number formats that the user requests in those that the target takes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx_ir as ir

from onnxq.core.config import QuantConfig
from onnxq.core.errors import TargetError
from onnxq.core.overrides import Override
from onnxq.core.plan import FLOATING, QuantSpec
from onnxq.targets.target import Target


@dataclass(frozen=True)
class Formats:
    """The number formats of one quantization, without the axis.

    Attributes:
        activation: the format of activations.
        weight: the format of per-tensor and per-channel weights; None: the target takes the type only in
            blocks.
        blocked: the format of weights with one scale per block; None: no blocks are requested.
        others: the formats of weights and activations that overrides request for single nodes.
    """

    activation: QuantSpec
    weight: QuantSpec | None
    blocked: QuantSpec | None
    others: tuple[QuantSpec, ...] = ()

    @property
    def opset(self) -> int:
        """The lowest opset that has all these formats."""
        specs = (self.activation, self.weight, self.blocked, *self.others)
        return max(spec.opset for spec in specs if spec is not None)


def find_formats(target: Target, config: QuantConfig) -> Formats:
    """Find the formats that ``config`` requests, or the target's own where it requests none.

    Raises:
        TargetError: the target does not take a requested format, or a method has no meaning for it.
    """
    activation = _dtype(config.activation) or target.activation.dtype
    weight = _dtype(config.weight) or target.weight.dtype
    if activation not in target.activation_types:
        raise TargetError(
            f"target {target.name} does not take {_name(activation)} as activation type; "
            f"valid: {', '.join(sorted(map(_name, target.activation_types)))}"
        )
    _check_methods(activation, config)
    plain = target.weight_types.get(weight)
    size = target.block_size if config.block_size is None else config.block_size
    blocked = _blocked(target, weight, size) if size is not None else None
    if plain is None and blocked is None:
        raise TargetError(
            f"target {target.name} does not take {_name(weight)} as weight type; valid: {_valid(target)}"
        )
    find = (weight_format, activation_format)
    others = (found(target, override) for override in config.overrides for found in find)
    given = tuple(spec for spec in others if spec is not None)
    return Formats(replace(target.activation, dtype=activation), plain, blocked, given)


def float_type(target: Target, config: QuantConfig, given: ir.DataType) -> ir.DataType:
    """Return the type of what is not quantized: float32, float16 or bfloat16.

    Args:
        target: the target.
        config: the options.
        given: the type in which the given model computes.

    Raises:
        TargetError: the target has no kernels for it.
    """
    wanted = config.float_type or target.float_type
    name = NAMES[given] if wanted == "keep" else wanted
    if name not in target.float_types:
        raise TargetError(
            f"target {target.name} has no kernels for {name} (--float-type); "
            f"valid: {', '.join(sorted(target.float_types))}"
        )
    return FLOAT_TYPES[name]


FLOAT_TYPES = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
}


NAMES = {dtype: name for name, dtype in FLOAT_TYPES.items()}


def _check_methods(activation: ir.DataType, config: QuantConfig) -> None:
    """Refuse a calibration method that has no meaning for floating-point numbers.

    Raises:
        TargetError: one is requested.
    """
    methods = {config.method, *(override.method for override in config.overrides)}
    if activation in FLOATING and "entropy" in methods:
        raise TargetError(
            f"method entropy counts evenly wide buckets, and {_name(activation)} has none: choose auto, mse, "
            "percentile, minmax or moving-average"
        )


def weight_format(target: Target, override: Override) -> QuantSpec | None:
    """The number format, without the axis, that ``override`` requests for weights; None if it requests none.

    Raises:
        TargetError: the target does not take it.
    """
    dtype = _dtype(override.weight)
    if dtype is None:
        return None
    if dtype not in target.weight_types:
        raise TargetError(
            f"target {target.name} does not take {_name(dtype)} as weight type, which an override requests "
            f"for {override.pattern!r}; valid: {', '.join(sorted(map(_name, target.weight_types)))}"
        )
    return target.weight_types[dtype]


def activation_format(target: Target, override: Override) -> QuantSpec | None:
    """The number format that ``override`` requests for activations; None if it requests none.

    Raises:
        TargetError: the target does not take it.
    """
    dtype = _dtype(override.activation)
    if dtype is None:
        return None
    if dtype not in target.activation_types:
        valid = ", ".join(sorted(map(_name, target.activation_types)))
        raise TargetError(
            f"target {target.name} does not take {_name(dtype)} as activation type, which an override "
            f"requests for {override.pattern!r}; valid: {valid}"
        )
    return replace(target.activation, dtype=dtype)


def _blocked(target: Target, weight: ir.DataType, size: int) -> QuantSpec:
    blocks = target.blocks
    if blocks is None:
        raise TargetError(f"target {target.name} takes no weights with one scale per block (--block-size)")
    if weight not in blocks.types or size not in blocks.sizes:
        raise TargetError(
            f"target {target.name} does not take {_name(weight)} weights in blocks of {size}; "
            f"valid: {_valid(target)}"
        )
    return replace(blocks.types[weight], block_size=size)


def _valid(target: Target) -> str:
    """List the valid values of ``--weight`` and ``--block-size``."""
    whole = ", ".join(sorted(map(_name, target.weight_types)))
    if target.blocks is None:
        return whole
    sizes = ", ".join(map(str, sorted(target.blocks.sizes)))
    return f"{whole}; with --block-size {sizes}: {', '.join(sorted(map(_name, target.blocks.types)))}"


def _dtype(name: str | None) -> ir.DataType | None:
    return ir.DataType[name.upper()] if name else None


def _name(dtype: ir.DataType) -> str:
    return dtype.name.lower()
