"""ONNX Runtime on x86 with VNNI or AMX, on x86 without them, and on Arm.

ONNX Runtime on x86 with VNNI or AMX: unsigned activations times signed weights.

Only operators with an integer kernel stand here, and only where that kernel is the faster one. A MatMul
of two activations is not: u8 x u8 takes as long as float. A depthwise convolution in integers takes as
long as one in float, so it is worth it only between integers. A grouped one with 2, 4, 8 channels a
group takes 8, 4, 1.5 times as long as in float (3 x 3, one thread): its groups are computed one by one.
One with a single input and a single output channel takes 4 to 5 times as long as in float (3 x 3, 1 x 64, 1 x
256): it goes the way of depthwise ones, which compute many channels at a time, and here there is one. It is
worth it only where the integers before it would have to be converted.

Pad, SpaceToDepth and Clip have kernels for uint8, but Q/DQ around them are not fused: they stand between Q
and DQ. A HardSwish so written is a Clip and a product: 62 us for 200,000 elements, against 157 us from DQ to
Q (one thread, AVX2), and a depthwise convolution between two of them keeps its memory layout in integers.

No kernel takes 4-bit weights beside quantized activations: DequantizeLinear of int4 leaves the operator in
float, and a Q/DQ pair to int8 after it runs anew each time. A Cast to int8 before DequantizeLinear is
folded when the model is loaded: the file holds 4 bits a weight, and the kernel runs in integers. Unsigned
ones become int8 too, whose kernels take any zero point. But where the channels of a depthwise convolution
have different ones, they are computed one by one, which takes some twenty times as long as in float.

MatMul, and Gemm unless transB, with per-block scales become MatMulNBits. It takes float activations, which
it rounds to 8 bits by itself, block by block; blocks of powers of two, the last of which may be shorter.
With Q/DQ right before or after, also across a Relu or a Reshape, the operator runs in float instead, and so
it does if another node reads the same weights or scales, if a Relu or Clip that has one reader follows it, or
if it becomes a Gemm with a computed addend. An Add of the bias, or of zeros, prevents the latter two.

ONNX Runtime on x86 without VNNI: AVX2 and the first AVX-512.

There u8 x s8 is summed up in pairs to 16 bits, which saturate: 255 * 127 * 2 > 32767. With weights of 7 bits
they cannot. Unsigned weights (``--weight uint8``) go another way, which does not saturate and is slower.

ONNX Runtime on Arm: sdot, udot and smmla take signed and unsigned activations alike.

The fusions are those of x86. Which type of activations is faster depends on the core: measure both. Depthwise
convolutions have kernels of their own there, but no figures were taken on Arm, so the rules of x86 stand.
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from onnxq.targets.target import (
    AVERAGE_POOL,
    S4,
    S8_NARROW,
    S8_OF_7_BITS,
    U4,
    U8,
    BiasStyle,
    Blocks,
    FloatInputs,
    OpRule,
    Output,
    Role,
    Target,
)

_LINK = OpRule(Role.LINK)


_BINARY = OpRule(Role.LINK, float_inputs=FloatInputs.BROADCAST)


_SAME = OpRule(Role.LINK, same_params=True)


_MOVED = replace(_SAME, float_inputs=FloatInputs.MOVED)


_ON_INTEGERS = replace(_MOVED, on_integers=True)


ONNXRUNTIME = Target(
    name="onnxruntime",
    about="ONNX Runtime's CPU provider on x86 with VNNI or AMX, which multiply u8 by s8.",
    notes=(
        "Q is placed after a weighted operator only where the kernel needs it, and always after the Relu "
        "or Clip that fuses with it.",
        "A 4-bit weight in blocks gives MatMulNBits, among floats; without blocks it is unpacked to 8 bits "
        "when the model is loaded.",
        "A float Add right before LayerNormalization is written as Sum: fused, the two would be slower.",
    ),
    runtimes=("onnxruntime",),
    activation=U8,
    weight=S8_NARROW,
    shifted_weights=True,
    bias=BiasStyle.INT32,
    rules={
        "Conv": OpRule(Role.ANCHOR, depthwise=Role.LINK, group_channels=16, channels=4),
        "MatMul": OpRule(
            Role.ANCHOR,
            output=Output.ALL_OR_NONE,
            fused_in_float=frozenset({"Relu", "Clip", "Add"}),
            bias_add=True,
            blocked={},
        ),
        "Gemm": OpRule(
            Role.ANCHOR,
            output=Output.ALL_OR_NONE,
            fused_in_float=frozenset({"Relu", "Clip"}),
            attributes={"alpha": 1.0, "beta": 1.0},
            blocked={"transA": 0, "transB": 0},
        ),
        "Add": _BINARY,
        "Mul": _BINARY,
        "Concat": OpRule(Role.LINK, inputs_follow=True, float_inputs=FloatInputs.ANY),
        "AveragePool": replace(AVERAGE_POOL, role=Role.LINK),
        "GlobalAveragePool": _LINK,
        "LeakyRelu": _LINK,
        "HardSwish": OpRule(Role.LINK, on_integers=True),
        "BatchNormalization": OpRule(Role.LINK, on_integers=True),
        "Sigmoid": _LINK,
        # Its kernel is made for a scale of 1/256; with a smaller one, large values wrap around to 0.
        "Softmax": OpRule(Role.LINK, output_range=(0.0, 1.0)),
        "MaxPool": _SAME,
        "ReduceMax": _SAME,
        "ReduceMin": _SAME,
        "Resize": replace(_MOVED, attributes={"mode": "nearest"}),
        "Reshape": _MOVED,
        "Transpose": _MOVED,
        "Flatten": _MOVED,
        "Squeeze": _MOVED,
        "Unsqueeze": _MOVED,
        "Slice": _MOVED,
        "Gather": _MOVED,
        "Expand": _MOVED,
        "Tile": _MOVED,
        "DepthToSpace": _MOVED,
        "Split": _MOVED,
        "Pad": _ON_INTEGERS,
        "SpaceToDepth": _ON_INTEGERS,
    },
    activation_types=frozenset({ir.DataType.UINT8, ir.DataType.INT8}),
    weight_types={
        ir.DataType.INT8: S8_NARROW,
        ir.DataType.UINT8: replace(S8_NARROW, dtype=ir.DataType.UINT8),
        # With 16 levels one of them is worth more than symmetry.
        ir.DataType.INT4: S4,
        ir.DataType.UINT4: U4,
    },
    blocks=Blocks(
        types={
            ir.DataType.INT8: S8_NARROW,
            ir.DataType.UINT8: U8,
            ir.DataType.INT4: S4,
            ir.DataType.UINT4: U4,
        },
        sizes=frozenset({16, 32, 64, 128, 256}),
        among_floats=True,
        unshared=True,
        format="matmulnbits",
        accuracy_level=4,
    ),
    weight_cast={ir.DataType.INT4: ir.DataType.INT8, ir.DataType.UINT4: ir.DataType.INT8},
    keep_float_weights=frozenset({"Conv", "ConvTranspose", "Gemm"}),
    unfuse_layernorm_add=True,
    join_float_readers=True,
    integer_tables=True,
    float_types=frozenset(("float32", "float16")),
)


ONNXRUNTIME_AVX2 = replace(
    ONNXRUNTIME,
    name="onnxruntime-avx2",
    about="ONNX Runtime's CPU provider on x86 without VNNI, where sums of u8 times s8 saturate at 16 bits.",
    notes=("Weights have 7 bits, -64 to 63, so that nothing saturates.", *ONNXRUNTIME.notes),
    weight=S8_OF_7_BITS,
    weight_types={**ONNXRUNTIME.weight_types, ir.DataType.INT8: S8_OF_7_BITS},
)


ONNXRUNTIME_ARM = replace(
    ONNXRUNTIME,
    name="onnxruntime-arm",
    about="ONNX Runtime's CPU provider on 64-bit Arm (sdot, udot, smmla).",
    notes=(
        "Measure --activation int8 too: which type is faster depends on the core. Nothing was timed on Arm.",
        *ONNXRUNTIME.notes,
    ),
)
