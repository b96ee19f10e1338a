"""A recurrent layer whose weights lack an axis, as in damaged files, is kept in float."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.pipelines.dynamic.dispatch import rewrite_of
from onnxq.pipelines.dynamic.lstm import lstm_obstacle
from onnxq.pipelines.dynamic.scheme import WeightForm


def _recurrent(op_type: str, gates: int) -> ir.Node:
    arrays = [np.zeros((6 * gates, 4), np.float32), np.zeros((1, 6 * gates, 6), np.float32)]
    weights = [ir.Value(name=f"w{i}", const_value=ir.tensor(each)) for i, each in enumerate(arrays)]
    for value, array in zip(weights, arrays, strict=True):
        value.shape, value.type = ir.Shape(array.shape), ir.TensorType(ir.DataType.FLOAT)
    x = ir.Value(name="x", shape=ir.Shape([5, 1, 4]), type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.node(op_type, [x, *weights], {"hidden_size": 6})
    ir.Graph([x], node.outputs, nodes=[node], initializers=weights, opset_imports={"": 17})
    return node


def test_weights_without_directions_are_not_quantized() -> None:
    assert lstm_obstacle(_recurrent("LSTM", 4)) == "its weights do not have 3 axes"


@pytest.mark.parametrize(
    ("form", "op_type", "gates"),
    [
        (WeightForm.INTEGERS, "GRU", 3),
        (WeightForm.WEIGHT_ONLY, "LSTM", 4),
        (WeightForm.WEIGHT_ONLY, "GRU", 3),
        (WeightForm.WEIGHT_ONLY, "RNN", 1),
    ],
)
def test_neither_are_they_stored_in_integers(form: WeightForm, op_type: str, gates: int) -> None:
    node = _recurrent(op_type, gates)
    operator = rewrite_of(node, form)
    assert operator is not None
    assert operator.obstacle(node) == "its weights do not have 3 axes"
