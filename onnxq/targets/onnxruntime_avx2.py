"""ONNX Runtime on x86 without VNNI: AVX2 and the first AVX-512.

There u8 x s8 is summed up in pairs to 16 bits, which saturate: 255 * 127 * 2 > 32767. With weights of 7 bits
they cannot. Unsigned weights (``--weight uint8``) go another way, which does not saturate and is slower.
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from onnxq.targets.formats import S8_OF_7_BITS
from onnxq.targets.onnxruntime import ONNXRUNTIME

ONNXRUNTIME_AVX2 = replace(
    ONNXRUNTIME,
    name="onnxruntime-avx2",
    about="ONNX Runtime's CPU provider on x86 without VNNI, where sums of u8 times s8 saturate at 16 bits.",
    notes=("Weights have 7 bits, -64 to 63, so that nothing saturates.", *ONNXRUNTIME.notes),
    weight=S8_OF_7_BITS,
    weight_types={**ONNXRUNTIME.weight_types, ir.DataType.INT8: S8_OF_7_BITS},
)
