"""OpenVINO on the CPU: unsigned activations with any zero point, inputs of weighted operators.

Tried with OpenVINO 2026.4 (``primitiveType`` of the compiled model): u8 x s8 and s8 x s8 convolutions of 1
to 3 dimensions, grouped and depthwise ones, Gemm either way and MatMul run in integers whatever the zero
point. A ConvTranspose does so only with zero point 0 and one group, a product of two activations only with
zero point 0 and a signed second operand: both get signed 8 bits. A sum that fuses into a convolution reads
the other branch in integers; with Q/DQ on both it runs alone, in float.

MatMul with weights in whole blocks behind DequantizeLinear runs on the integers (FullyConnected in u4, i4,
u8, i8): a matrix of 2048 x 4096 in uint4 takes 0.8 ms for one row, in float 1.9 ms. Stacks of matrices and
Gemm with transB are unpacked. Rows of a table in int8 are looked up as integers.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxq.targets.target import S4, S8, S8_NARROW, U4, U8, BiasStyle, Blocks, OpRule, Output, Role, Target

_INPUTS = OpRule(Role.ANCHOR, output=Output.FREE)

OPENVINO = Target(
    name="openvino",
    about="OpenVINO on the CPU, which reads the Q/DQ model directly.",
    notes=(
        "ConvTranspose and products of two activations get signed activations with zero point 0: their "
        "kernels take no others.",
    ),
    runtimes=("openvino",),
    float_type="keep",
    activation=U8,
    weight=S8_NARROW,
    bias=BiasStyle.FLOAT,
    rules={
        "Conv": _INPUTS,
        "ConvTranspose": OpRule(Role.ANCHOR, output=Output.FREE, inputs=S8, single_group=True),
        "Gemm": OpRule(Role.ANCHOR, output=Output.FREE, attributes={"alpha": 1.0, "beta": 1.0, "transA": 0}),
        "MatMul": OpRule(Role.ANCHOR, output=Output.FREE, dynamic_weight=True, dynamic_inputs=S8, blocked={}),
        "Add": OpRule(Role.RESIDUAL, output=Output.FREE, sums_with=frozenset({"Conv"})),
    },
    activation_types=frozenset({ir.DataType.UINT8, ir.DataType.INT8}),
    weight_types={ir.DataType.INT8: S8_NARROW},
    transparent=frozenset(
        (
            *("MaxPool", "Concat", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze"),
            *("Slice", "Split", "Expand", "DepthToSpace"),
        )
    ),
    no_shared_params=frozenset({"Concat"}),
    blocks=Blocks(
        types={
            ir.DataType.UINT4: U4,
            ir.DataType.INT4: S4,
            ir.DataType.UINT8: U8,
            ir.DataType.INT8: S8_NARROW,
        },
        sizes=frozenset({16, 32, 64, 128, 256}),
        whole=True,
    ),
    integer_tables=True,
)
