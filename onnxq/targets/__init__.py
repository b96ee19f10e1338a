"""Deployment targets: one table a file, all of them in `TARGETS`; a user's own in a YAML file."""

from __future__ import annotations

from collections.abc import Mapping

from onnxq.targets.academic import ACADEMIC
from onnxq.targets.onnxruntime import ONNXRUNTIME, ONNXRUNTIME_ARM, ONNXRUNTIME_AVX2
from onnxq.targets.openvino import OPENVINO
from onnxq.targets.ppl_w8a16 import PPL_W8A16
from onnxq.targets.qualcomm import QNN, SNPE
from onnxq.targets.target import Target
from onnxq.targets.tensorrt import TENSORRT, TENSORRT8, TENSORRT_FP8, TENSORRT_INT4
from onnxq.targets.tvm import TVM
from onnxq.targets.vitis import VITIS_XINT8

_ALL = (
    *(ONNXRUNTIME, ONNXRUNTIME_AVX2, ONNXRUNTIME_ARM, TENSORRT, TENSORRT_FP8, TENSORRT_INT4, TENSORRT8),
    *(OPENVINO, QNN),
    *(VITIS_XINT8, SNPE, PPL_W8A16, TVM, *ACADEMIC),
)

TARGETS: Mapping[str, Target] = {target.name: target for target in _ALL}
