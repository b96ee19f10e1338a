"""Check with OpenVINO's CPU plugin which nodes of a Q/DQ model run as integer kernels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxq.graph.qdq.read_qdq import called
from onnxq.verify.float_fallback import finding
from onnxq.verify.process import installed, run_in_process
from onnxq.verify.reference import files, output_agreement
from onnxq.verify.subject import Subject
from onnxq.verify.verdict import Verdict, make_verdict, refused, unchecked

RUNTIME = "openvino"

MODULE = "openvino"

INTEGER = "_i8"
"""The ending of the names of integer kernels, in any case. (``runtimePrecision`` is only the output type.)"""

NOT_COMPUTING = frozenset({"Reorder", "Convert", "FakeQuantize", "Const", "Input", "Output"})


def check(subject: Subject) -> Verdict:
    """Check that OpenVINO compiles the model, which layers run in float, and what it computes."""
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
    return make_verdict(
        RUNTIME,
        f"compiled by {content['version'].split('-')[0]}: {count} of {subject.weighted} operators with "
        f"weights run in int8, {computed}",
        (*(finding(RUNTIME, node, "error") for node in floats), *different),
        {"integer layers": count, "layers": len(subject.layers), "weighted": subject.weighted},
    )


def _integer_nodes(kernels: Iterable[Any]) -> Iterator[str]:
    """Yield the names of the nodes that integer kernels come from, also without OpenVINO's suffixes."""
    for kernel in kernels:
        if kernel["primitive"].lower().endswith(INTEGER) and kernel["type"] not in NOT_COMPUTING:
            for name in kernel["nodes"]:
                yield from (name, name.removesuffix("_original"), name.rpartition("/")[0])


def _names(node: ir.Node) -> set[str]:
    """The names that OpenVINO may give a node: its own name, or that of an output."""
    return {called(node), *(value.name for value in node.outputs if value.name)}
