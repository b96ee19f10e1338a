"""Which inputs and outputs of a node may be in half precision, by the schema of its operator.

A schema gives each input and output a type variable or a fixed type. All that share a variable have one type.
So a node has a half-precision form if a variable of its float32 inputs or outputs allows that type; inputs
and outputs of fixed type, such as the scales of Resize, stay float32.
https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import onnx
import onnx_ir as ir
from onnxruntime.capi import onnxruntime_pybind11_state as _state

from onnxq.graph.nodes import STANDARD_DOMAIN, is_op

SPELLING = {
    ir.DataType.FLOAT: "tensor(float)",
    ir.DataType.FLOAT16: "tensor(float16)",
    ir.DataType.BFLOAT16: "tensor(bfloat16)",
}

CONTROL_FLOW = ("If", "Loop", "Scan")
"""Operators with bodies: their values are of the types that the bodies take and give."""

VARIADIC = "Variadic"

_READ_BITS = ("BitCast",)
"""Operators whose result depends on how numbers are stored."""

_COMPOUND = (ir.SequenceType, ir.OptionalType)
"""Types whose elements keep their type."""


@dataclass(frozen=True)
class HalfForm:
    """The half-precision form of a node.

    Attributes:
        inputs: positions of the inputs that are in half precision.
        outputs: positions of the outputs that are.
    """

    inputs: frozenset[int]
    outputs: frozenset[int]


def is_tensor_of(value: ir.Value | None, dtype: ir.DataType) -> bool:
    """Whether the value is a tensor with elements of a type."""
    return value is not None and isinstance(value.type, ir.TensorType) and value.dtype == dtype


def is_float32(value: ir.Value | None) -> bool:
    """Whether the value is a tensor in float32."""
    return is_tensor_of(value, ir.DataType.FLOAT)


def half_form(
    node: ir.Node,
    dtype: ir.DataType,
    opsets: Mapping[str, int],
    given: ir.DataType = ir.DataType.FLOAT,
) -> HalfForm | None:
    """Return what of the node's float32 inputs and outputs may be of a half-precision type.

    Args:
        node: the node.
        dtype: float16 or bfloat16; or float32, if ``given`` is double.
        opsets: the opset of each domain.
        given: the type that the inputs and outputs have.

    Returns:
        The positions; None if the operator, or one that no schema is known of, has no such form.
    """
    inputs = [i for i, value in enumerate(node.inputs) if is_tensor_of(value, given)]
    outputs = [i for i, value in enumerate(node.outputs) if is_tensor_of(value, given)]
    if is_op(node, *CONTROL_FLOW):
        return HalfForm(frozenset(inputs), frozenset(outputs))
    values = (*node.inputs, *node.outputs)
    compound = any(value is not None and isinstance(value.type, _COMPOUND) for value in values)
    if compound or is_op(node, *_READ_BITS) or _has_tables(node, given):
        return None
    form = _form(node.domain, node.op_type, opsets.get(node.domain, 1), SPELLING[dtype])
    if form is None:
        return None
    takes, gives = form
    found = HalfForm(
        frozenset(i for i in inputs if _at(takes, i)), frozenset(i for i in outputs if _at(gives, i))
    )
    return found if found.inputs or found.outputs else None


def _has_tables(node: ir.Node, dtype: ir.DataType) -> bool:
    """Whether tensors of a type are attributes of the node, as of tree ensembles; single numbers aside."""
    attributes = [each for each in node.attributes.values() if each.type == ir.AttributeType.TENSOR]
    return any(each.as_tensor().dtype == dtype and each.as_tensor().size > 1 for each in attributes)


_Flags = tuple[bool, ...]


def _at(flags: _Flags, index: int) -> bool:
    """Whether the parameter at ``index`` may be in half precision; the last one stands for all after it."""
    return bool(flags) and flags[min(index, len(flags) - 1)]


@cache
def _form(domain: str, op_type: str, opset: int, spelling: str) -> tuple[_Flags, _Flags] | None:
    """Return which formal inputs and outputs of an operator may have the type; None without a schema."""
    schema = _schema(domain, op_type, opset)
    if schema is None:
        return None
    able = {each.type_param_str for each in schema.type_constraints if spelling in each.allowed_type_strs} | {
        spelling
    }

    def flags(parameters: Sequence[Any]) -> _Flags:
        given = [_type_of(each) in able for each in parameters]
        variadic = bool(parameters) and str(parameters[-1].option).endswith(VARIADIC)
        return tuple(given if variadic else [*given, False])

    return flags(schema.inputs), flags(schema.outputs)


def _type_of(parameter: Any) -> str:
    return str(getattr(parameter, "type_str", None) or parameter.typeStr)


def _schema(domain: str, op_type: str, opset: int) -> Any | None:
    if domain == STANDARD_DOMAIN:
        if onnx.defs.has(op_type, opset):
            return onnx.defs.get_schema(op_type, opset)
        return None
    known = [schema for schema in _runtime_schemas(domain, op_type) if schema.since_version <= opset]
    return max(known, key=lambda schema: schema.since_version, default=None)


@cache
def _runtime_schemas(domain: str, op_type: str) -> tuple[Any, ...]:
    """The schemas that ONNX Runtime has of an operator of its own."""
    return tuple(each for each in _all_schemas() if (each.domain, each.name) == (domain, op_type))


@cache
def _all_schemas() -> tuple[Any, ...]:
    return tuple(_state.get_all_operator_schema())
