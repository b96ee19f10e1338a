"""Deployment targets: one table a file, all of them in `TARGETS`."""

from __future__ import annotations

from collections.abc import Mapping

from onnxq.errors import TargetError
from onnxq.targets.onnxruntime import ONNXRUNTIME
from onnxq.targets.target import Target
from onnxq.targets.tensorrt import TENSORRT

TARGETS: Mapping[str, Target] = {target.name: target for target in (ONNXRUNTIME, TENSORRT)}


def get_target(name: str) -> Target:
    """The target called ``name``.

    Raises:
        TargetError: there is none; the message lists the valid names.
    """
    if name not in TARGETS:
        raise TargetError(f"unknown target {name!r}; valid targets: {', '.join(TARGETS)}")
    return TARGETS[name]
