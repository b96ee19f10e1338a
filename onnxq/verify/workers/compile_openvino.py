"""Compile and run a model with OpenVINO's CPU plugin. Arguments: RESULT MODEL INPUTS.npz OUTPUTS.npz.

Writes ``{"version": ..., "error": ... or null, "kernels": [{"type", "primitive", "nodes"}]}`` to RESULT, and
the outputs for the inputs to OUTPUTS.npz.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openvino

FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32"}
"""Without it, processors with bfloat16 kernels use them, which hides the float kernels."""


def compiled(model: str, inputs: Mapping[str, Any], outputs: str) -> dict[str, Any]:
    """Compile the model, run it, and list its kernels in the order in which they run.

    Args:
        model: path of the ONNX file.
        inputs: arrays by input name.
        outputs: path of the file to write the outputs to.

    Returns:
        The content of RESULT.
    """
    answer: dict[str, Any] = {"version": openvino.__version__, "error": None, "kernels": []}
    try:
        runner = openvino.Core().compile_model(model, "CPU", FLOAT32)
        given = runner(dict(inputs))
    except RuntimeError as error:
        return answer | {"error": str(error)}
    np.savez(outputs, **{output.any_name: given[output] for output in runner.outputs})
    nodes = runner.get_runtime_model().get_ordered_ops()
    return answer | {"kernels": [kernel(node.get_rt_info()) for node in nodes]}


def kernel(info: Any) -> dict[str, Any]:
    """Describe one kernel by the plugin's runtime information."""
    kind, primitive, nodes = (
        info[key].astype(str) if key in info else ""
        for key in ("layerType", "primitiveType", "originalLayersNames")
    )
    return {"type": kind, "primitive": primitive, "nodes": [name for name in nodes.split(",") if name]}


if __name__ == "__main__":
    result, path, feeds, found = sys.argv[1:]
    with np.load(feeds) as arrays:
        content = compiled(path, dict(arrays), found)
    Path(result).write_text(json.dumps(content), "utf-8")
