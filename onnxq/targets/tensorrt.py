"""TensorRT 10 and later, explicit quantization: signed, zero point 0, inputs of weighted operators."""

from __future__ import annotations

import onnx_ir as ir

from onnxq.plan import QuantSpec
from onnxq.targets.target import BiasStyle, OpRule, Output, Role, Target

_INPUTS = OpRule(Role.ANCHOR, output=Output.FREE)

TENSORRT = Target(
    name="tensorrt",
    activation=QuantSpec(ir.DataType.INT8, symmetric=True),
    weight=QuantSpec(ir.DataType.INT8, symmetric=True, narrow_range=True),
    bias=BiasStyle.FLOAT,
    rules={
        "Conv": _INPUTS,
        "ConvTranspose": OpRule(Role.ANCHOR, output=Output.FREE, per_channel=False),
        "Gemm": _INPUTS,
        "MatMul": OpRule(Role.ANCHOR, output=Output.FREE, dynamic_weight=True),
        "Add": OpRule(Role.RESIDUAL, output=Output.FREE),
    },
    activation_types=frozenset({ir.DataType.INT8}),
    weight_types=frozenset({ir.DataType.INT8}),
    transparent=frozenset(
        (
            "MaxPool",
            "Concat",
            "Reshape",
            "Transpose",
            "Flatten",
            "Squeeze",
            "Unsqueeze",
            "Slice",
            "Split",
            "Expand",
        )
    ),
)
