"""MQBench's backend Academic: as papers on few bits measure it, no hardware in mind.

The inputs of weighted operators have a few bits, but those of the first and of the last such operator 8. They
are stored in 8-bit types with narrower limits, so that any runtime computes them.
"""

from __future__ import annotations

import re
from dataclasses import replace

import onnx_ir as ir

from onnxq.targets.target import S8, U8, BiasStyle, Ends, OpRule, Output, Role, Target

_NAME = re.compile(r"academic-w([2-8])a([2-8])")

_INPUTS = OpRule(Role.ANCHOR, output=Output.FREE)


def academic(weight_bits: int, activation_bits: int) -> Target:
    """The table for so many bits, 2 to 8."""
    weight = replace(S8, reduce_bits=8 - weight_bits)
    activation = replace(U8, reduce_bits=8 - activation_bits)
    return Target(
        name=f"academic-w{weight_bits}a{activation_bits}",
        about=(
            f"As papers measure it (MQBench's backend Academic): weights of {weight_bits} bits, activations "
            f"of {activation_bits}, 8 at both ends."
        ),
        notes=("Other bits: a file with this base and other reduce_bits, as below.",),
        activation=activation,
        weight=weight,
        bias=BiasStyle.FLOAT,
        rules={
            "Conv": _INPUTS,
            "ConvTranspose": _INPUTS,
            "Gemm": _INPUTS,
            "MatMul": _INPUTS,
        },
        activation_types=frozenset({ir.DataType.UINT8}),
        weight_types={ir.DataType.INT8: weight},
        keep_float_weights=frozenset({"Conv", "ConvTranspose", "Gemm"}),
        first_last_formats=Ends(activation=U8, weight=S8),
    )


def academic_named(name: str) -> Target | None:
    """The table of this name, ``academic-w3a5``; None if it is no such name."""
    bits = _NAME.fullmatch(name)
    return academic(int(bits[1]), int(bits[2])) if bits else None


ACADEMIC = tuple(academic(*bits) for bits in ((4, 8), (4, 4), (2, 4)))
