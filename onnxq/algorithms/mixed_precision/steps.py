"""The formats that a node can have, from narrow to wide: weights and activations of more bits, then float."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

import onnx_ir as ir

from onnxq.core.option_types import ActivationType, WeightType
from onnxq.core.plan import QuantSpec
from onnxq.targets.target import Target

FLOAT = ir.DataType.FLOAT

Part = Literal["weight", "activation"]
"""What of a node has a wider format, by the name of the option of an override that requests it."""


@dataclass(frozen=True, order=True)
class Precision:
    """A wider format of a node.

    Attributes:
        node: the name of the node.
        form: the type of ``part``; `FLOAT`: the node is not quantized at all.
        part: what has this type: its weights, or the activations that it reads and gives.
    """

    node: str
    form: ir.DataType
    part: Part = "weight"


Steps = frozenset[Precision]


def keep_float(nodes: Iterable[str]) -> Steps:
    """Return the steps that keep all of ``nodes`` in float."""
    return Steps(Precision(node, FLOAT) for node in nodes)


def widen_activations(nodes: Iterable[str], form: ir.DataType) -> Steps:
    """Return the steps that give the activations of all of ``nodes`` the type ``form``."""
    return Steps(Precision(node, form, "activation") for node in nodes)


def steps_to(nodes: Iterable[str], form: ir.DataType) -> Steps:
    """Return the steps to a rung above wider weights: activations of type ``form``, or `FLOAT`."""
    return keep_float(nodes) if form == FLOAT else widen_activations(nodes, form)


def float_nodes(steps: Iterable[Precision]) -> frozenset[str]:
    """Return the names of the nodes that ``steps`` keep in float."""
    return frozenset(step.node for step in steps if step.form == FLOAT)


def widest_precision(steps: Iterable[Precision]) -> Mapping[str, Mapping[Part, ir.DataType]]:
    """Map each node of ``steps`` that stays in integers to the widest format of each of its parts."""
    found: dict[str, dict[Part, ir.DataType]] = {}
    floats = float_nodes(steps := tuple(steps))
    for step in sorted(steps):
        if step.node not in floats:
            parts = found.setdefault(step.node, {})
            parts[step.part] = max(parts.get(step.part, step.form), step.form, key=lambda form: form.bitwidth)
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
    known = [dtype for dtype in types if dtype.name.lower() in get_args(WeightType)]
    return tuple(types[dtype] for dtype in _wider_types(known, spec, target.weight))


def wider_activations(spec: QuantSpec, target: Target) -> tuple[QuantSpec, ...]:
    """List the wider number formats of a target for activations in ``spec``, the narrowest first.

    There is one format for each bit width, as in `wider_formats`; none if ``--activation`` takes no wider
    type for the target.
    """
    known = [dtype for dtype in target.activation_types if dtype.name.lower() in get_args(ActivationType)]
    return tuple(
        replace(target.activation, dtype=dtype) for dtype in _wider_types(known, spec, target.activation)
    )


def _wider_types(types: Iterable[ir.DataType], spec: QuantSpec, usual: QuantSpec) -> list[ir.DataType]:
    """List those of ``types`` that are wider than ``spec``, one for each bit width, the narrowest first."""
    by_width: dict[int, ir.DataType] = {}
    for dtype in sorted(types, key=lambda dtype: (dtype != usual.dtype, _unlike(dtype, spec))):
        wider = dtype.bitwidth > spec.dtype.bitwidth
        if wider and dtype.is_floating_point() == spec.is_floating:
            by_width.setdefault(dtype.bitwidth, dtype)
    return [by_width[width] for width in sorted(by_width)]


def _unlike(dtype: ir.DataType, spec: QuantSpec) -> bool:
    return dtype.is_signed() != spec.dtype.is_signed()
