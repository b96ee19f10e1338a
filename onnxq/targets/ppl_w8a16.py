"""MQBench's PPLW8A16: weights of 8 bits, activations of 16, everything quantized, one scale per tensor."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from onnxq.targets.qualcomm import QNN
from onnxq.targets.target import U8, U16

PPL_W8A16 = replace(
    QNN,
    name="ppl-w8a16",
    about="MQBench's backend PPLW8A16: 8-bit weights, 16-bit activations, unsigned, one scale per tensor.",
    notes=("16 bits need opset 21. Its ranges leave as --table-format mqbench-ppl.",),
    activation=U16,
    weight=U8,
    activation_types=frozenset({ir.DataType.UINT16}),
    weight_types={ir.DataType.UINT8: U8},
    per_channel_types=frozenset(),
)
