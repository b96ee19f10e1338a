"""Deployment targets: one table a file, all of them in `TARGETS`; a user's own in a YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from onnxq.errors import TargetError
from onnxq.targets.academic import ACADEMIC, academic_named
from onnxq.targets.onnxruntime import ONNXRUNTIME
from onnxq.targets.onnxruntime_arm import ONNXRUNTIME_ARM
from onnxq.targets.onnxruntime_avx2 import ONNXRUNTIME_AVX2
from onnxq.targets.openvino import OPENVINO
from onnxq.targets.ppl_w8a16 import PPL_W8A16
from onnxq.targets.qnn import QNN
from onnxq.targets.snpe import SNPE
from onnxq.targets.target import Target
from onnxq.targets.tensorrt import TENSORRT
from onnxq.targets.tensorrt8 import TENSORRT8
from onnxq.targets.tvm import TVM
from onnxq.targets.vitis import VITIS_XINT8
from onnxq.targets.yaml_file import SUFFIXES, read_target

_ALL = (
    *(ONNXRUNTIME, ONNXRUNTIME_AVX2, ONNXRUNTIME_ARM, TENSORRT, TENSORRT8, OPENVINO, QNN),
    *(VITIS_XINT8, SNPE, PPL_W8A16, TVM, *ACADEMIC),
)

TARGETS: Mapping[str, Target] = {target.name: target for target in _ALL}


def get_target(name: str) -> Target:
    """The target called ``name``, or the one that the YAML file of this name describes.

    ``academic-w3a5`` and the like are there for all numbers of bits from 2 to 8.

    Raises:
        TargetError: there is none, and the message lists the valid names; or the file is wrong.
    """
    if name.endswith(SUFFIXES):
        path = Path(name)
        return _from_file(path, path.stat().st_mtime_ns if path.is_file() else 0)
    found = TARGETS.get(name) or academic_named(name)
    if found is None:
        raise TargetError(f"unknown target {name!r}; valid targets: {', '.join(TARGETS)}, or a .yaml file")
    return found


@cache
def _from_file(path: Path, changed: int) -> Target:
    """Asked for again and again in one run: the file is read anew only when it changed."""
    return read_target(path, TARGETS)
