"""TensorRT 10 and later, explicit quantization: signed, zero point 0, inputs of weighted operators.

4-bit weights are for MatMul and Gemm with float activations, in blocks along the summed axis; there is no
4-bit convolution, and none beside quantized activations. The documentation names no sizes of blocks; 64
and 128, the usual ones, are assumed (no engine was built with them), and they must divide the axis.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxq.plan import QuantSpec
from onnxq.targets.target import BiasStyle, Blocks, OpRule, Output, Role, Target

_INPUTS = OpRule(Role.ANCHOR, output=Output.FREE)
_INT8 = QuantSpec(ir.DataType.INT8, symmetric=True, narrow_range=True)
_INT4 = QuantSpec(ir.DataType.INT4, symmetric=True)

TENSORRT = Target(
    name="tensorrt",
    activation=QuantSpec(ir.DataType.INT8, symmetric=True),
    weight=_INT8,
    bias=BiasStyle.FLOAT,
    rules={
        "Conv": _INPUTS,
        "ConvTranspose": OpRule(Role.ANCHOR, output=Output.FREE, per_channel=False),
        "Gemm": OpRule(Role.ANCHOR, output=Output.FREE, blocked={"transA": 0, "alpha": 1.0, "beta": 1.0}),
        "MatMul": OpRule(Role.ANCHOR, output=Output.FREE, dynamic_weight=True, blocked={}),
        "Add": OpRule(Role.RESIDUAL, output=Output.FREE, sums_with=frozenset({"Conv", "ConvTranspose"})),
    },
    activation_types=frozenset({ir.DataType.INT8}),
    weight_types={ir.DataType.INT8: _INT8},
    blocks=Blocks(types={ir.DataType.INT4: _INT4}, sizes=frozenset({64, 128}), whole=True),
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
