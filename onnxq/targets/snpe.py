"""Qualcomm's SNPE, as MQBench's backend of that name: unsigned everywhere, one scale a tensor."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from onnxq.targets.formats import U8
from onnxq.targets.qnn import QNN

SNPE = replace(
    QNN,
    name="snpe",
    about="Qualcomm SNPE: 8 bits, unsigned, one scale a tensor.",
    notes=(
        "SNPE reads the float model and an encodings file (--table FILE --table-format snpe); the Q/DQ model "
        "shows what it will compute.",
    ),
    weight=U8,
    activation_types=frozenset({ir.DataType.UINT8}),
    weight_types={ir.DataType.UINT8: U8},
    per_channel_types=frozenset(),
)
