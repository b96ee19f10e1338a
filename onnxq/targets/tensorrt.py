"""TensorRT 10 and later, and TensorRT 8 and 9.

TensorRT 10 and later, explicit quantization: signed, zero point 0, inputs of weighted operators.

4-bit weights are for MatMul and Gemm with float activations, in blocks along the summed axis, which they must
divide; there is no 4-bit convolution, and none beside quantized activations. The documentation names no
sizes of blocks; TensorRT-RTX 1.7 builds engines with those given here (no engine was run).

TensorRT 8 and 9: as 10, but weights are float in the file, with Q and DQ after them, and no 4 bits.
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from onnxq.targets.target import S4, S8, S8_NARROW, BiasStyle, Blocks, OpRule, Output, Role, Storage, Target

_INPUTS = OpRule(Role.ANCHOR, output=Output.FREE)


TENSORRT = Target(
    name="tensorrt",
    about="TensorRT 10, 11 and TensorRT-RTX, strongly typed, explicit quantization.",
    notes=(
        "What is not quantized is written in float16, because these engines compute in the types that the "
        "file names; --float-type float32 keeps it in float32. See docs/half-precision.md.",
        "Calibration caches (--table-format tensorrt) serve TensorRT up to 10 with a float model; from 11 on "
        "the Q/DQ model is the only way to 8 bits.",
        "TensorRT-RTX 1.7 built no ConvTranspose in 8 bits: --exclude op:ConvTranspose costs no speed there, "
        "and is closer to float.",
        "Not for ONNX Runtime's CPU provider, where it is slower than float: with a zero point of 0, a Relu "
        "or Clip between Conv and Q keeps the convolution in float. --target onnxruntime is for that.",
    ),
    runtimes=("tensorrt",),
    activation=S8,
    weight=S8_NARROW,
    bias=BiasStyle.FLOAT,
    bias_types=frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16}),
    rules={
        "Conv": _INPUTS,
        "ConvTranspose": OpRule(Role.ANCHOR, output=Output.FREE, per_channel=False),
        "Gemm": OpRule(Role.ANCHOR, output=Output.FREE, blocked={"transA": 0, "alpha": 1.0, "beta": 1.0}),
        "MatMul": OpRule(Role.ANCHOR, output=Output.FREE, dynamic_weight=True, blocked={}),
        "Add": OpRule(Role.RESIDUAL, output=Output.FREE, sums_with=frozenset({"Conv", "ConvTranspose"})),
    },
    float_type="float16",
    activation_types=frozenset({ir.DataType.INT8}),
    weight_types={ir.DataType.INT8: S8_NARROW},
    blocks=Blocks(types={ir.DataType.INT4: S4}, sizes=frozenset({16, 32, 64, 128, 256}), whole=True),
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


TENSORRT8 = replace(
    TENSORRT,
    name="tensorrt8",
    about="TensorRT 8 and 9, explicit quantization.",
    notes=(
        "The file is as large as the float model: weights are stored in float, on their grid. The engine's "
        "are of 8 bits.",
        *TENSORRT.notes[1:],
    ),
    blocks=None,
    storage=Storage.REALS,
    float_type="float32",
)


TENSORRT_INT4 = replace(
    TENSORRT,
    name="tensorrt-int4",
    about="TensorRT 10, 11 and TensorRT-RTX, weights of MatMul and Gemm in 4 bits, activations in float16.",
    notes=(
        "It makes files and traffic of weights small, for networks that multiply few rows by large matrices. "
        "Nothing is calibrated; data is for corrections and to measure accuracy.",
    ),
    weight=S4,
    weight_types={},
    block_size=128,
    rules={
        "Gemm": TENSORRT.rules["Gemm"],
        "MatMul": replace(TENSORRT.rules["MatMul"], dynamic_weight=False),
    },
)
