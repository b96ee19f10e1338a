"""Check that stored tensors hold what they declare: a type, sizes, and as much data as these need."""

from __future__ import annotations

import math

import onnx
import onnx_ir as ir

TYPES = frozenset(onnx.TensorProto.DataType.values()) - {onnx.TensorProto.UNDEFINED}

TYPED_FIELDS = ("float_data", "double_data", "int32_data", "int64_data", "uint64_data", "string_data")
"""The fields that may hold the elements instead of ``raw_data``."""

COMPLEX = (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128)
"""Types with two entries of a typed field for each element; the others have one."""


def check_tensor(tensor: onnx.TensorProto) -> None:
    """Check the type, the sizes and the length of the data of a tensor, but not data in other files.

    Raises:
        ValueError: one of them is wrong; the message names the tensor.
    """
    if tensor.data_type not in TYPES:
        raise ValueError(f"tensor {tensor.name!r} has no type that ONNX knows ({tensor.data_type})")
    if any(size < 0 for size in tensor.dims):
        raise ValueError(f"tensor {tensor.name!r} has a negative size: {list(tensor.dims)}")
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return
    kind, count = ir.DataType(tensor.data_type), math.prod(tensor.dims)
    unit, found, needed = _length(tensor, kind, count)
    if found != needed:
        raise ValueError(
            f"tensor {tensor.name!r} of type {kind.name.lower()} and shape {list(tensor.dims)} needs "
            f"{needed} {unit}, and has {found}"
        )


def _length(tensor: onnx.TensorProto, kind: ir.DataType, count: int) -> tuple[str, int, int]:
    """Measure the data: the unit, how many there are, and how many ``count`` elements need."""
    if tensor.HasField("raw_data") and kind != ir.DataType.STRING:
        return "bytes", len(tensor.raw_data), math.ceil(count * kind.bitwidth / 8)
    found = sum(len(getattr(tensor, field)) for field in TYPED_FIELDS)
    if kind != ir.DataType.STRING and kind.bitwidth < 8:  # tools pack them in different ways
        return "elements", found and count, count
    return "elements", found, count * (2 if kind in COMPLEX else 1)
