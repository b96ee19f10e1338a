"""Tensors that do not hold what they declare are refused by name."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from calibrators.tensor_check import check_tensor

KINDS = [kind for kind in TensorProto.DataType.values() if kind != TensorProto.UNDEFINED]
TYPED = [
    *(TensorProto.FLOAT, TensorProto.INT8, TensorProto.BOOL, TensorProto.INT64, TensorProto.UINT64),
    *(TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.COMPLEX64, TensorProto.INT4),
]


@pytest.mark.parametrize("kind", KINDS, ids=TensorProto.DataType.Name)
@pytest.mark.parametrize("shape", [(), (3,), (2, 5), (0, 4)], ids=str)
def test_raw_data(kind: int, shape: tuple[int, ...]) -> None:
    array = np.zeros(shape, object if kind == TensorProto.STRING else helper.tensor_dtype_to_np_dtype(kind))
    if kind == TensorProto.STRING:
        array = np.full(shape, "a", object)
    tensor = numpy_helper.from_array(array, "w")
    tensor.data_type = kind
    check_tensor(tensor)
    tensor.dims.append(7 if array.size else 0)
    if array.size:
        with pytest.raises(ValueError, match=r"tensor 'w' of type \w+ and shape .* needs \d+ \w+, and has"):
            check_tensor(tensor)


@pytest.mark.parametrize("kind", TYPED, ids=TensorProto.DataType.Name)
def test_typed_fields(kind: int) -> None:
    tensor = helper.make_tensor("w", kind, [2, 3], [1] * 6)
    check_tensor(tensor)
    for field in ("float_data", "double_data", "int32_data", "int64_data", "uint64_data"):
        tensor.ClearField(field)
    with pytest.raises(ValueError, match="needs"):
        check_tensor(tensor)


@pytest.mark.parametrize("kind", [0, 99])
def test_no_type(kind: int) -> None:
    with pytest.raises(ValueError, match="tensor 'w' has no type that ONNX knows"):
        check_tensor(TensorProto(name="w", data_type=kind))


def test_sizes() -> None:
    for dims in ([-3], [2**62, 2**62]):
        tensor = onnx.TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, raw_data=b"12345678")
        with pytest.raises(ValueError, match=r"negative size|needs"):
            check_tensor(tensor)
