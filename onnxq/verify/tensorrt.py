"""Check with TensorRT which nodes of a Q/DQ model run in int8 or FP8.

The engine is built with or without a GPU, and run if there is one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
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
"""Types of engine layers that multiply matrices. Other layers with 8-bit inputs only dequantize them."""

_FUSED = "gemm_mha"
"""Part of the name of a generated kernel that computes a whole attention."""

_EIGHT_BITS = (["Int8"], ["FP8"])
"""The types of numbers that all inputs of a layer have if it computes in 8 bits."""

CAPABILITIES = ("SM86",)
"""The compute capabilities to build for if the target names none."""

_ADVICE: Mapping[str, str] = {
    "zero point": "Quantize symmetrically, to int8 with zero point 0.",
    "UINT8": "Quantize to int8.",
    "Int32": "Keep the bias in float.",
    "positive": "A scale is a positive, finite number.",
    "QLinear": "Write QuantizeLinear and DequantizeLinear instead (Q/DQ format).",
}
"""Words in an error message of TensorRT -> advice for the user."""


def check(subject: Subject) -> Verdict:
    """Check that TensorRT builds the model, which quantized layers run in float, and what a GPU computes.

    Without a GPU, an engine is built for each compute capability of the target, and a layer counts if it is
    quantized in all of them.
    """
    if installed(*MODULES) is None:
        return unchecked(RUNTIME, "TensorRT is not installed: pip install 'onnxq[tensorrt]'")
    built: list[Any] = []
    with files(subject) as (feeds, outputs):
        for capability in subject.target.capabilities or CAPABILITIES:
            arguments = [subject.path, feeds, outputs, capability]
            answer = run_in_process("build_engine", arguments, subject.seconds)
            if answer.timed_out:
                return unchecked(RUNTIME, f"no engine was built: {answer.failure}")
            if answer.content is None:
                return refused(
                    RUNTIME, f"no engine was built: {answer.failure}.", "See the legality findings."
                )
            if not answer.content["built"]:
                return _refusal(answer.content)
            built.append(answer.content)
            if answer.content["ran"]:  # every engine is for the GPU that is there
                break
        return _verdict(subject, built, outputs)


def _refusal(content: Any) -> Verdict:
    text = f"{content['version']} refuses the model{_for([content])}"
    return make_verdict(RUNTIME, text, _refusals(content["errors"]))


def _for(built: Sequence[Any]) -> str:
    """For which GPUs these engines are, if for others than the one that is there."""
    names = [content["capability"] for content in built if content["capability"]]
    return f" for {' and '.join(names)}" if names else ""


def _verdict(subject: Subject, built: Sequence[Any], outputs: Path) -> Verdict:
    narrow = set.intersection(*(_in_8_bits(content["layers"]) for content in built))
    wanted = _wanted(subject)
    floats = [node for node in wanted if called(node) not in narrow]
    count, layers = len(wanted) - len(floats), max(len(content["layers"]) for content in built)
    ran, different = _ran(subject, built[-1], outputs)
    return make_verdict(
        RUNTIME,
        f"built by {built[0]['version']}{_for(built)}: {count} of {subject.weighted} operators with weights "
        f"run in {_form(subject)}, {layers} engine layers; {ran}",
        (*(finding(RUNTIME, node, "error") for node in floats), *different),
        {"integer layers": count, "weighted": subject.weighted, "engine layers": layers},
    )


def _form(subject: Subject) -> str:
    return "FP8" if subject.target.activation.is_floating else "int8"


def _refusals(errors: list[Any]) -> list[Finding]:
    found = [Finding(e["node"], "error", _brief(e["text"]), _advice(e["text"])) for e in errors]
    return found or [Finding("", "error", "no engine was built, and TensorRT gives no reason.")]


def _wanted(subject: Subject) -> list[ir.Node]:
    """The layers that should run in 8 bits: all but those with weights in blocks, which read float data."""
    return [node for node in subject.layers if not _in_blocks(node)]


def _in_blocks(node: ir.Node) -> bool:
    weight = node.inputs[WEIGHTED[node.op_type].weight]
    maker = producer_of(weight)
    return maker is not None and "block_size" in maker.attributes


def multiplies(layer: Any) -> bool:
    """Whether a layer of an engine multiplies matrices."""
    return bool(_MATRICES.search(layer["type"])) or _FUSED in layer["kernel"]


def _in_8_bits(layers: list[Any]) -> set[str]:
    """The ONNX nodes whose products the engine computes in int8 or FP8."""
    return {
        name
        for layer in layers
        if layer["reads"] in _EIGHT_BITS and multiplies(layer)
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
