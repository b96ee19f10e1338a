"""The formats that a node can have, from narrow to wide: weights of more bits, and finally float."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import get_args

import onnx_ir as ir

from onnxq.core.option_types import WeightType
from onnxq.core.plan import QuantSpec
from onnxq.targets.target import Target

FLOAT = ir.DataType.FLOAT


@dataclass(frozen=True, order=True)
class Precision:
    """A wider format of a node.

    Attributes:
        node: the name of the node.
        form: the type of its weights; `FLOAT`: the node is not quantized at all.
    """

    node: str
    form: ir.DataType


Steps = frozenset[Precision]


def keep_float(nodes: Iterable[str]) -> Steps:
    """Return the steps that keep all of ``nodes`` in float."""
    return Steps(Precision(node, FLOAT) for node in nodes)


def widest_precision(steps: Iterable[Precision]) -> Mapping[str, ir.DataType]:
    """Map each node of ``steps`` to the widest of its formats."""
    found: dict[str, ir.DataType] = {}
    for step in sorted(steps):
        found[step.node] = max(found.get(step.node, step.form), step.form, key=lambda form: form.bitwidth)
    return found


def wider_formats(spec: QuantSpec, target: Target) -> tuple[QuantSpec, ...]:
    """List the wider number formats of a target for weights in ``spec``, the narrowest first, without axis.

    There is one format for each bit width: the target's default type, or else preferably a type that has the
    signedness of ``spec``. Block-wise quantized weights stay block-wise quantized, and floating-point numbers
    floating-point numbers.
    """
    types = target.weight_types
    if spec.block_size is not None:
        types = target.blocks.types if target.blocks is not None else {}
    by_width: dict[int, QuantSpec] = {}
    for dtype in sorted(types, key=lambda dtype: (dtype != target.weight.dtype, _unlike(dtype, spec))):
        wider = dtype.bitwidth > spec.dtype.bitwidth and types[dtype].is_floating == spec.is_floating
        if wider and dtype.name.lower() in get_args(WeightType):
            by_width.setdefault(dtype.bitwidth, types[dtype])
    return tuple(by_width[width] for width in sorted(by_width))


def _unlike(dtype: ir.DataType, spec: QuantSpec) -> bool:
    return dtype.is_signed() != spec.dtype.is_signed()
