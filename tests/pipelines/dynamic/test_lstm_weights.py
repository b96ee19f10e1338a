"""An LSTM whose weights lack an axis, as in damaged files, is kept in float."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.pipelines.dynamic.lstm import lstm_obstacle


def test_weights_without_directions_are_not_quantized() -> None:
    arrays = [np.zeros((24, 4), np.float32), np.zeros((1, 24, 6), np.float32)]
    weights = [ir.Value(name=f"w{i}", const_value=ir.tensor(each)) for i, each in enumerate(arrays)]
    for value, array in zip(weights, arrays, strict=True):
        value.shape, value.type = ir.Shape(array.shape), ir.TensorType(ir.DataType.FLOAT)
    x = ir.Value(name="x", shape=ir.Shape([5, 1, 4]), type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.node("LSTM", [x, *weights], {"hidden_size": 6})
    ir.Graph([x], node.outputs, nodes=[node], initializers=weights, opset_imports={"": 17})
    assert lstm_obstacle(node) == "its weights do not have 3 axes"
