"""TVM's QNN dialect, as MQBench's backend ONNX_QNN: convolutions, pools and sums, unsigned."""

from __future__ import annotations

from dataclasses import replace

from onnxq.targets.qualcomm import EVERYTHING, SNPE

_QUANTIZED = ("Conv", "Add", "Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool")

TVM = replace(
    SNPE,
    name="tvm",
    about="TVM's QNN dialect (MQBench's backend ONNX_QNN): 8 bits, unsigned, one scale per tensor.",
    notes=("Matrices of weights (Gemm, MatMul) stay float.",),
    rules={name: EVERYTHING[name] for name in _QUANTIZED},
    quantize_outputs=False,
)
