"""What TensorRT makes of a Q/DQ model: parsed and built on the CPU too, run where there is a GPU."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from calibrators.samples import input_specs
from calibrators.session import open_session
from onnxq.numerics import sqnr
from onnxq.operators import WEIGHTED
from onnxq.verify.ask import ask, installed
from onnxq.verify.qdq import called
from onnxq.verify.subject import Subject
from onnxq.verify.traps import finding
from onnxq.verify.verdict import Finding, Verdict, judged, refused, unchecked

RUNTIME = "tensorrt"

MODULES = ("tensorrt_rtx", "tensorrt")
"""TensorRT-RTX, or the whole TensorRT: either will do."""

ALIKE = 20.0
"""dB: below, the GPU computes something else than the model says."""

_MATRICES = re.compile("correlation|conv|gemm|mha", re.IGNORECASE)
"""Types of engine layers that multiply matrices. Others that read integers only turn them into reals."""

_ADVICE: Mapping[str, str] = {
    "zero point": "Quantize symmetrically, to int8 with zero point 0.",
    "UINT8": "Quantize to int8.",
    "Int32": "Leave the bias float.",
    "positive": "A scale is a positive, finite number.",
    "QLinear": "Write QuantizeLinear and DequantizeLinear instead (Q/DQ format).",
}
"""What a refusal says -> what to do."""


def check(subject: Subject) -> Verdict:
    """Whether it is parsed and built, which quantized layers run in float, and what a GPU computes."""
    if installed(*MODULES) is None:
        return unchecked(RUNTIME, "TensorRT is not installed: pip install 'onnxq[tensorrt]'")
    with _files(subject) as (feeds, outputs):
        answer = ask("build_engine", [subject.path, feeds, outputs], subject.seconds)
        if answer.timed_out:
            return unchecked(RUNTIME, f"no engine was built: {answer.failure}")
        if answer.content is None:
            return refused(RUNTIME, f"no engine was built: {answer.failure}.", "See what legality says.")
        return _verdict(subject, answer.content, outputs)


@contextmanager
def _files(subject: Subject) -> Iterator[tuple[Path, Path]]:
    """The first sample in a file, and where outputs are to be written."""
    with tempfile.TemporaryDirectory(prefix="verify-", ignore_cleanup_errors=True) as folder:
        feeds = Path(folder) / "inputs.npz"
        np.savez(feeds, **_inputs(subject))
        yield feeds, Path(folder) / "outputs.npz"


def _inputs(subject: Subject) -> dict[str, Any]:
    """The first sample; without any, zeros, with 1 for every size that is not known."""
    if subject.samples:
        return dict(subject.samples[0].feeds)
    specs = input_specs(subject.model)
    shapes = {spec.name: [d if isinstance(d, int) else 1 for d in spec.shape or ()] for spec in specs}
    return {spec.name: np.zeros(shapes[spec.name], spec.dtype) for spec in specs}


def _verdict(subject: Subject, content: Any, outputs: Path) -> Verdict:
    if not content["built"]:
        return judged(RUNTIME, f"{content['version']} refuses the model", _refusals(content["errors"]))
    integers = _integer_nodes(content["layers"])
    floats = [node for node in _in_8_bits(subject) if called(node) not in integers]
    count, layers = len(_in_8_bits(subject)) - len(floats), len(content["layers"])
    ran, different = _ran(subject, content, outputs)
    return judged(
        RUNTIME,
        f"built by {content['version']}: {count} of {subject.weighted} operators with weights run in int8, "
        f"{layers} engine layers; {ran}",
        (*(finding(RUNTIME, node, "error") for node in floats), *different),
        {"integer layers": count, "weighted": subject.weighted, "engine layers": layers},
    )


def _refusals(errors: list[Any]) -> list[Finding]:
    found = [Finding(e["node"], "error", _brief(e["text"]), _advice(e["text"])) for e in errors]
    return found or [Finding("", "error", "no engine was built, and TensorRT does not say why.")]


def _in_8_bits(subject: Subject) -> list[ir.Node]:
    """The layers that are to run in int8: weights in blocks are for float activations."""
    return [node for node in subject.layers if not _in_blocks(node)]


def _in_blocks(node: ir.Node) -> bool:
    weight = node.inputs[WEIGHTED[node.op_type].weight]
    maker = weight.producer() if weight is not None else None
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
    """How close the GPU came to ONNX Runtime, in words, and whether that is too far."""
    if not content["ran"]:
        return f"not run: {content['why_not']}", []
    session = open_session(subject.path, optimize=False)
    names = [output.name for output in session.get_outputs()]
    expected = dict(zip(names, session.run(names, _inputs(subject)), strict=True))
    with np.load(outputs) as given:
        ratio = min(sqnr(expected[name], given[name]) for name in given.files)
    text = f"SQNR {ratio:.1f} dB between the GPU and ONNX Runtime"
    return text, [Finding("", "error", f"{text}, expected {ALIKE:.0f}.")] if ratio < ALIKE else []


def _brief(text: str) -> str:
    """A refusal without the names of TensorRT's own functions."""
    return text.split("Assertion failed: ")[-1].strip() or text


def _advice(text: str) -> str:
    return next((advice for words, advice in _ADVICE.items() if words in text), "")
