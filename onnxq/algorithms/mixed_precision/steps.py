"""The forms that a node may have, from narrow to wide: weights of more bits, and in the end float."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import get_args

import onnx_ir as ir

from onnxq.core.config import WeightType
from onnxq.core.plan import QuantSpec
from onnxq.targets.target import Target

FLOAT = ir.DataType.FLOAT


@dataclass(frozen=True, order=True)
class Precision:
    """One step up a node's ladder.

    Attributes:
        node: its name.
        form: the type that its weights get; `FLOAT`: it is not quantized at all.
    """

    node: str
    form: ir.DataType


Steps = frozenset[Precision]


def keep_float(nodes: Iterable[str]) -> Steps:
    """All of ``nodes`` in float."""
    return Steps(Precision(node, FLOAT) for node in nodes)


def widest_precision(steps: Iterable[Precision]) -> Mapping[str, ir.DataType]:
    """Where on its ladder each node of ``steps`` stands: a wider form goes beyond a narrower one."""
    found: dict[str, ir.DataType] = {}
    for step in sorted(steps):
        found[step.node] = max(found.get(step.node, step.form), step.form, key=lambda form: form.bitwidth)
    return found


def wider_formats(spec: QuantSpec, target: Target) -> tuple[QuantSpec, ...]:
    """Number formats, without the axis, that weights in ``spec`` may get instead: one a width, narrow first.

    Weights in blocks stay in blocks. Of several types of one width it is the target's usual one, or else one
    that is signed as ``spec`` is.
    """
    types = target.weight_types
    if spec.block_size is not None:
        types = target.blocks.types if target.blocks is not None else {}
    rungs: dict[int, QuantSpec] = {}
    for dtype in sorted(types, key=lambda dtype: (dtype != target.weight.dtype, _unlike(dtype, spec))):
        if dtype.bitwidth > spec.dtype.bitwidth and dtype.name.lower() in get_args(WeightType):
            rungs.setdefault(dtype.bitwidth, types[dtype])
    return tuple(rungs[width] for width in sorted(rungs))


def _unlike(dtype: ir.DataType, spec: QuantSpec) -> bool:
    return dtype.is_signed() != spec.dtype.is_signed()
