"""RESULT MODEL: what OpenVINO's CPU plugin compiles a model to.

Writes ``{"version": ..., "error": ... or null, "kernels": [{"type", "primitive", "nodes"}]}``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import openvino

FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32"}
"""Else processors that can compute in bfloat16 do, and hide what is float."""


def compiled(model: str) -> dict[str, Any]:
    """The kernels, in the order in which they run."""
    answer: dict[str, Any] = {"version": openvino.__version__, "error": None, "kernels": []}
    try:
        runtime = openvino.Core().compile_model(model, "CPU", FLOAT32).get_runtime_model()
    except RuntimeError as error:
        return answer | {"error": str(error)}
    return answer | {"kernels": [kernel(node.get_rt_info()) for node in runtime.get_ordered_ops()]}


def kernel(info: Any) -> dict[str, Any]:
    """What the plugin tells of one kernel."""
    kind, primitive, nodes = (
        info[key].astype(str) if key in info else ""
        for key in ("layerType", "primitiveType", "originalLayersNames")
    )
    return {"type": kind, "primitive": primitive, "nodes": [name for name in nodes.split(",") if name]}


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(compiled(sys.argv[2])), "utf-8")
