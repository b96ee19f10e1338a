"""Qualcomm's QNN and SNPE.

Qualcomm's QNN on the HTP: everything is quantized, what enters and leaves the graph too.

The operators are those that ONNX Runtime's QNN provider hands to the HTP in integers. An operator that stays
float runs on the CPU. No engine of QNN was at hand: the table follows the documentation.

Activations of 8 and 16 bits in one model: the provider takes an operator whose inputs and outputs have one
type, and fuses the DQ -> Q between two types into a Convert (microsoft/onnxruntime, pull requests 19511,
19925, 20028 and 22205).

Qualcomm's SNPE, as MQBench's backend of that name: unsigned everywhere, one scale per tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import onnx_ir as ir

from onnxq.targets.target import AVERAGE_POOL, S8_NARROW, U8, BiasStyle, OpRule, Role, Target

_ALL = OpRule(Role.ANCHOR)


_SAME = OpRule(Role.ANCHOR, same_params=True)


_NORMALIZATION = OpRule(Role.ANCHOR, bias=2)


_COMPUTING = (
    *("Add", "Sub", "Mul", "Div", "Min", "Max", "Pow", "Where", "Concat"),
    *("Relu", "Clip", "LeakyRelu", "PRelu", "Elu", "Gelu", "HardSwish", "HardSigmoid"),
    *("Abs", "Neg", "Exp", "Log", "Sqrt", "Sin", "Cos", "Floor", "Ceil", "Round", "Sign"),
    *("GlobalAveragePool", "LogSoftmax", "Pad", "Resize"),
    *("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd"),
)


_MOVING = (
    *("MaxPool", "GlobalMaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice"),
    *("Gather", "GatherElements", "Expand", "Tile", "Split", "DepthToSpace", "SpaceToDepth"),
)


EVERYTHING: Mapping[str, OpRule] = {
    "Conv": _ALL,
    "ConvTranspose": _ALL,
    "Gemm": OpRule(Role.ANCHOR, per_channel=False, attributes={"alpha": 1.0, "beta": 1.0, "transA": 0}),
    "MatMul": OpRule(Role.ANCHOR, per_channel=False, dynamic_weight=True),
    **dict.fromkeys(_COMPUTING, _ALL),
    "AveragePool": AVERAGE_POOL,
    # Sigmoid and Tanh of 16 bits run with these scales only; for 8 bits they are the natural ones.
    "Sigmoid": OpRule(Role.ANCHOR, output_range=(0.0, 1.0)),
    "Softmax": OpRule(Role.ANCHOR, output_range=(0.0, 1.0)),
    "Tanh": OpRule(Role.ANCHOR, output_range=(-1.0, 1.0)),
    **dict.fromkeys(_MOVING, _SAME),
    **dict.fromkeys(("BatchNormalization", "LayerNormalization", "InstanceNormalization"), _NORMALIZATION),
}
"""For runtimes that take nothing but integers."""


QNN = Target(
    name="qnn",
    about="Qualcomm QNN on the Hexagon Tensor Processor.",
    notes=(
        "What enters and leaves the graph is quantized too. --activation uint16 gives 16-bit activations, "
        "for accuracy.",
        "Between nodes with 8-bit and 16-bit activations a DequantizeLinear and a QuantizeLinear convert the "
        "tensor, which ONNX Runtime's QNN provider makes one Convert.",
        "Signed weights of Conv and ConvTranspose have per-channel scales, all others per-tensor scales.",
    ),
    activation=U8,
    weight=S8_NARROW,
    bias=BiasStyle.INT32,
    float_type="keep",
    rules=EVERYTHING,
    activation_types=frozenset({ir.DataType.UINT8, ir.DataType.UINT16}),
    weight_types={ir.DataType.INT8: S8_NARROW, ir.DataType.UINT8: U8},
    per_channel_types=frozenset({ir.DataType.INT8}),
    quantize_outputs=True,
)


SNPE = replace(
    QNN,
    name="snpe",
    about="Qualcomm SNPE: 8 bits, unsigned, one scale per tensor.",
    notes=(
        "SNPE reads the float model and an encodings file (--table FILE --table-format snpe); the Q/DQ model "
        "shows what it will compute.",
    ),
    weight=U8,
    activation_types=frozenset({ir.DataType.UINT8}),
    weight_types={ir.DataType.UINT8: U8},
    per_channel_types=frozenset(),
)
