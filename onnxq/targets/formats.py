"""The number formats that several targets have."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from onnxq.plan import QuantSpec

U8 = QuantSpec(ir.DataType.UINT8, symmetric=False)
U16 = QuantSpec(ir.DataType.UINT16, symmetric=False)
S8 = QuantSpec(ir.DataType.INT8, symmetric=True)
S8_NARROW = replace(S8, narrow_range=True)
S8_OF_7_BITS = replace(S8, reduce_bits=1)
S8_POWER_OF_TWO = replace(S8, power_of_two=True)
S4 = QuantSpec(ir.DataType.INT4, symmetric=True)
U4 = QuantSpec(ir.DataType.UINT4, symmetric=False)
