"""What OpenVINO's CPU plugin makes of a Q/DQ model: which kernels it chooses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxq.graph.read_qdq import called
from onnxq.verify.float_fallback import finding
from onnxq.verify.process import installed, run_in_process
from onnxq.verify.reference import files, output_agreement
from onnxq.verify.subject import Subject
from onnxq.verify.verdict import Verdict, judged, refused, unchecked

RUNTIME = "openvino"

MODULE = "openvino"

INTEGER = "_i8"
"""How the names of integer kernels end, in either case. (Their ``runtimePrecision`` says what they give.)"""

NOT_COMPUTING = frozenset({"Reorder", "Convert", "FakeQuantize", "Const", "Input", "Output"})


def check(subject: Subject) -> Verdict:
    """Whether it is compiled, and which quantized layers run in float."""
    if installed(MODULE) is None:
        return unchecked(RUNTIME, "OpenVINO is not installed: pip install 'onnxq[openvino]'")
    with files(subject) as (feeds, outputs):
        answer = run_in_process("compile_openvino", [subject.path, feeds, outputs], subject.seconds)
        if answer.timed_out:
            return unchecked(RUNTIME, f"the model was not compiled: {answer.failure}")
        if answer.content is None:
            return refused(RUNTIME, f"the model was not compiled: {answer.failure}.")
        if answer.content["error"]:
            return refused(RUNTIME, " ".join(answer.content["error"].split()))
        return _verdict(subject, answer.content, outputs)


def _verdict(subject: Subject, content: Any, outputs: Path) -> Verdict:
    integers = set(_integer_nodes(content["kernels"]))
    floats = [node for node in subject.layers if not integers.intersection(_names(node))]
    count = len(subject.layers) - len(floats)
    computed, different = output_agreement(subject, outputs, "OpenVINO")
    return judged(
        RUNTIME,
        f"compiled by {content['version'].split('-')[0]}: {count} of {subject.weighted} operators with "
        f"weights run in int8, {computed}",
        (*(finding(RUNTIME, node, "error") for node in floats), *different),
        {"integer layers": count, "layers": len(subject.layers), "weighted": subject.weighted},
    )


def _integer_nodes(kernels: Iterable[Any]) -> Iterator[str]:
    """The names that integer kernels give as their origin, and those before a suffix of OpenVINO's."""
    for kernel in kernels:
        if kernel["primitive"].lower().endswith(INTEGER) and kernel["type"] not in NOT_COMPUTING:
            for name in kernel["nodes"]:
                yield from (name, name.removesuffix("_original"), name.rpartition("/")[0])


def _names(node: ir.Node) -> set[str]:
    """What OpenVINO may call a node: by its name, or by that of its output."""
    return {called(node), *(value.name for value in node.outputs if value.name)}
