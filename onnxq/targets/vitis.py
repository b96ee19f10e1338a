"""AMD's Vitis AI, XINT8: scales are powers of two, for hardware that shifts instead of multiplying.

Signed 8 bits everywhere, biases included, one scale per tensor. No such device was at hand: the table follows
MQBench's backend Vitis.
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from onnxq.targets.qualcomm import EVERYTHING, QNN
from onnxq.targets.target import S8_POWER_OF_TWO, BiasStyle

_NONE_OF = frozenset(
    {"BatchNormalization", "LayerNormalization", "InstanceNormalization", "Where", "Gelu", "Exp", "Log"}
)

VITIS_XINT8 = replace(
    QNN,
    name="vitis-xint8",
    about="AMD Vitis AI, XINT8: signed 8 bits with scales that are powers of two, one per tensor.",
    notes=(
        "A scale is the least power of two with which the range that calibration chose still fits.",
        "Biases have 8 bits and a scale of their own, so correcting them gains little.",
    ),
    activation=S8_POWER_OF_TWO,
    weight=S8_POWER_OF_TWO,
    bias=BiasStyle.OWN,
    rules={
        name: replace(rule, output_range=None) for name, rule in EVERYTHING.items() if name not in _NONE_OF
    },
    activation_types=frozenset({ir.DataType.INT8}),
    weight_types={ir.DataType.INT8: S8_POWER_OF_TWO},
    per_channel_types=frozenset(),
)
