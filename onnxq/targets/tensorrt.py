"""TensorRT 10 and later in 8-bit integers and in FP8, and TensorRT 8 and 9.

TensorRT 10 and later, explicit quantization: signed, zero point 0, inputs of weighted operators.

4-bit weights are for MatMul and Gemm with float activations, in blocks along the summed axis, which they must
divide; there is no 4-bit convolution, and none beside quantized activations. The documentation names no
sizes of blocks; TensorRT-RTX 1.7 builds engines with those given here (no engine was run).

TensorRT 8 and 9: as 10, but weights are float in the file, with Q and DQ after them, and no 4 bits.

FP8 (E4M3), for GPUs from compute capability 8.9 (Ada, Hopper, Blackwell) on. Tried on engines of TensorRT-RTX
1.7, built for SM89 and SM120, with a float32 and a float16 remainder:

- Conv in one to three axes, Gemm, and MatMul with weights or two activations compute in FP8. ConvTranspose
  does not, and neither do kernels of more than 32 elements: weights and data are dequantized before them.
- Input channels are filled up to a multiple of 4, in each group: depthwise convolutions move four times the
  data. NVIDIA's ModelOpt (``find_nodes_from_convs_to_exclude``) leaves Convs with at most 16 input channels
  per group or output channels in float16, and products of less than 16 rows or columns.
- An Add after a Conv is computed in float, by a kernel of its own, whether its other input is FP8 or float.
- MaxPool computes in float: Q/DQ around it stay.
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from onnxq.targets.target import (
    E4M3,
    S4,
    S8,
    S8_NARROW,
    BiasStyle,
    Blocks,
    OpRule,
    Output,
    Role,
    Storage,
    Target,
)

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
    capabilities=("SM86",),
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


TENSORRT_FP8 = replace(
    TENSORRT,
    name="tensorrt-fp8",
    about="TensorRT 10, 11 and TensorRT-RTX in FP8 (E4M3), for Ada, Hopper, Blackwell and later GPUs.",
    notes=(
        "Scales are searched on the E4M3 grid, for activations and for each channel of weights.",
        "Not for ONNX Runtime's CPU provider, which computes it right, but in float and slowly.",
    ),
    capabilities=("SM89", "SM120"),
    activation=E4M3,
    weight=E4M3,
    rules={
        "Conv": replace(_INPUTS, least_channels=17, kernel_elements=32),
        "Gemm": replace(_INPUTS, least_channels=16),
        "MatMul": replace(_INPUTS, least_channels=16, dynamic_weight=True),
    },
    activation_types=frozenset({E4M3.dtype}),
    weight_types={E4M3.dtype: E4M3},
    blocks=None,
    transparent=TENSORRT.transparent - {"MaxPool"},
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
