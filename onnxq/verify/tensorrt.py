"""Check with TensorRT which nodes of a Q/DQ model run in int8.

The engine is built with or without a GPU, and run if there is one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxq.graph.operators import WEIGHTED
from onnxq.graph.qdq.read_qdq import called
from onnxq.graph.walks import producer_of
from onnxq.verify.float_fallback import finding
from onnxq.verify.process import installed, run_in_process
from onnxq.verify.reference import files, output_agreement
from onnxq.verify.subject import Subject
from onnxq.verify.verdict import Finding, Verdict, make_verdict, refused, unchecked

RUNTIME = "tensorrt"

MODULES = ("tensorrt_rtx", "tensorrt")
"""The modules of TensorRT-RTX and of TensorRT; either one is enough."""

_MATRICES = re.compile("correlation|conv|gemm|mha", re.IGNORECASE)
"""Types of engine layers that multiply matrices. Other layers with integer inputs only dequantize them."""

_ADVICE: Mapping[str, str] = {
    "zero point": "Quantize symmetrically, to int8 with zero point 0.",
    "UINT8": "Quantize to int8.",
    "Int32": "Keep the bias in float.",
    "positive": "A scale is a positive, finite number.",
    "QLinear": "Write QuantizeLinear and DequantizeLinear instead (Q/DQ format).",
}
"""Words in an error message of TensorRT -> advice for the user."""


def check(subject: Subject) -> Verdict:
    """Check that TensorRT builds the model, which quantized layers run in float, and what a GPU computes."""
    if installed(*MODULES) is None:
        return unchecked(RUNTIME, "TensorRT is not installed: pip install 'onnxq[tensorrt]'")
    with files(subject) as (feeds, outputs):
        answer = run_in_process("build_engine", [subject.path, feeds, outputs], subject.seconds)
        if answer.timed_out:
            return unchecked(RUNTIME, f"no engine was built: {answer.failure}")
        if answer.content is None:
            return refused(RUNTIME, f"no engine was built: {answer.failure}.", "See the legality findings.")
        return _verdict(subject, answer.content, outputs)


def _verdict(subject: Subject, content: Any, outputs: Path) -> Verdict:
    if not content["built"]:
        return make_verdict(RUNTIME, f"{content['version']} refuses the model", _refusals(content["errors"]))
    integers = _integer_nodes(content["layers"])
    floats = [node for node in _in_8_bits(subject) if called(node) not in integers]
    count, layers = len(_in_8_bits(subject)) - len(floats), len(content["layers"])
    ran, different = _ran(subject, content, outputs)
    return make_verdict(
        RUNTIME,
        f"built by {content['version']}: {count} of {subject.weighted} operators with weights run in int8, "
        f"{layers} engine layers; {ran}",
        (*(finding(RUNTIME, node, "error") for node in floats), *different),
        {"integer layers": count, "weighted": subject.weighted, "engine layers": layers},
    )


def _refusals(errors: list[Any]) -> list[Finding]:
    found = [Finding(e["node"], "error", _brief(e["text"]), _advice(e["text"])) for e in errors]
    return found or [Finding("", "error", "no engine was built, and TensorRT gives no reason.")]


def _in_8_bits(subject: Subject) -> list[ir.Node]:
    """The layers that should run in int8: all but those with weights in blocks, which read float data."""
    return [node for node in subject.layers if not _in_blocks(node)]


def _in_blocks(node: ir.Node) -> bool:
    weight = node.inputs[WEIGHTED[node.op_type].weight]
    maker = producer_of(weight)
    return maker is not None and "block_size" in maker.attributes


def _integer_nodes(layers: list[Any]) -> set[str]:
    """The ONNX nodes whose products the engine computes in int8."""
    return {
        name
        for layer in layers
        if layer["integer"] and _MATRICES.search(layer["type"])
        for name in layer["nodes"]
    }


def _ran(subject: Subject, content: Any, outputs: Path) -> tuple[str, list[Finding]]:
    """Compare the GPU's outputs with ONNX Runtime's, as a text and an error if they differ too much."""
    if not content["ran"]:
        return f"not run: {content['why_not']}", []
    return output_agreement(subject, outputs, "the GPU")


def _brief(text: str) -> str:
    """An error message on one line, without TensorRT's function names and complaints about the driver."""
    lines = [line for line in text.split("Assertion failed: ")[-1].splitlines() if "Cuda Runtime" not in line]
    return " ".join(" ".join(lines).split()) or "TensorRT gives no reason."


def _advice(text: str) -> str:
    return next((advice for words, advice in _ADVICE.items() if words in text), "")
