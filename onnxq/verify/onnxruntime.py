"""Check with ONNX Runtime which nodes of a Q/DQ model run as integer kernels, and what they compute.

Its graph optimizer replaces the DQ -> operator -> Q patterns that it knows by integer kernels. The node keeps
its name. Other patterns run in float between Q/DQ, without a message.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibrators.collect import run_batch
from calibrators.data.samples import Sample
from calibrators.errors import CalibrationError
from calibrators.onnx_files import read_proto
from calibrators.session import open_session
from onnxq.graph.nodes import input_at
from onnxq.graph.operators import WEIGHTED as OPERATORS
from onnxq.graph.qdq.read_qdq import called
from onnxq.verify.accuracy import outcome
from onnxq.verify.float_fallback import finding
from onnxq.verify.outputs.output_kinds import float_kinds
from onnxq.verify.subject import Subject
from onnxq.verify.verdict import Finding, Verdict, make_verdict, refused

RUNTIME = "onnxruntime"

WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})

WEIGHTED_KERNELS = frozenset({"QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "MatMulNBits"})
"""The operator types of the integer kernels of weighted operators."""

FLOAT_KERNELS = frozenset(
    {"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid", "Softmax"}
)
"""Float kernels of operators without weights whose integer kernels have other operator types. (Operators that
only pass values on, such as Reshape and MaxPool, have one operator type for all data types.)"""

ALIKE = 20.0
"""SQNR in dB; below, optimizations change the outputs by more than rounding does."""

ROUNDED = 30.0
"""SQNR in dB; below, biases that ONNX Runtime rounds are reported. With 8 bits they cause less noise."""

COMPARED = 8
"""The number of samples to compare outputs on."""


@dataclass(frozen=True)
class Fused:
    """The main graph after fusion.

    Attributes:
        kernels: node name -> operator type.
        between_reals: names of the nodes that read a DequantizeLinear: they run in float.
        read: all tensors that nodes read.
    """

    kernels: Mapping[str, str]
    between_reals: frozenset[str]
    read: frozenset[str]


def fused(path: str | os.PathLike[str]) -> Fused:
    """Read the main graph after ONNX Runtime's fusion.

    Raises:
        CalibrationError: ONNX Runtime refuses the model.
    """
    with tempfile.TemporaryDirectory(prefix="verify-", ignore_cleanup_errors=True) as folder:
        file = Path(folder) / "fused.onnx"
        open_session(path, threads=1, save_fused=file)
        nodes = read_proto(file).graph.node
    reals = {name for node in nodes if node.op_type == "DequantizeLinear" for name in node.output}
    return Fused(
        {node.name: node.op_type for node in nodes},
        frozenset(node.name for node in nodes if reals & set(node.input)),
        frozenset(name for node in nodes for name in node.input),
    )


def kernels(path: str | os.PathLike[str]) -> Mapping[str, str]:
    """Map the nodes of the main graph after fusion to their operator types.

    Raises:
        CalibrationError: ONNX Runtime refuses the model.
    """
    return fused(path).kernels


def unfused(path: str | os.PathLike[str], planned: Mapping[str, str]) -> tuple[str, ...]:
    """Find the nodes of ``planned`` (name -> operator type) that run as float kernels after all.

    Raises:
        CalibrationError: ONNX Runtime refuses the model.
    """
    return _floats(fused(path), planned)


def _floats(found: Fused, planned: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(name for name, op_type in planned.items() if not _is_integer(name, op_type, found))


def _is_integer(name: str, op_type: str, found: Fused) -> bool:
    """Whether a planned operator became an integer kernel.

    An operator with weights must be found as one: if its node is gone, it was fused with a float operator.
    Other nodes may be gone for good reasons (a Flatten becomes a Reshape), so only float kernels count.
    """
    kernel = _kernel(name, found.kernels)
    if op_type in WEIGHTED:
        return kernel in WEIGHTED_KERNELS
    return kernel not in FLOAT_KERNELS and name not in found.between_reals


def _kernel(name: str, found: Mapping[str, str]) -> str | None:
    """The operator type that a node became. A node fused with its bias is named "NODE/FUSION"."""
    renamed = (op_type for other, op_type in found.items() if other.startswith(f"{name}/"))
    return found.get(name) or next(renamed, None)


# --- The whole check --------------------------------------------------------------------------


def check(subject: Subject) -> Verdict:
    """Check that the model loads, which quantized nodes run in float, and whether fusion changes outputs."""
    try:
        found = fused(subject.path)
        ratio, compared = _alike(subject)
    except CalibrationError as error:
        return refused(RUNTIME, str(error))
    floats = _floats(found, {called(node): node.op_type for node in (*subject.layers, *subject.links)})
    layers = [node for node in subject.layers if called(node) not in floats]
    return make_verdict(
        RUNTIME,
        f"{len(layers)} of {len(subject.layers)} quantized operators with weights run in integers, "
        f"{_likeness(ratio, compared)}",
        (*_left_float(subject, floats), *_changed(ratio), *_rounded(subject, found, ratio)),
        {"integer layers": len(layers), "layers": len(subject.layers), "weighted": subject.weighted},
    )


def _left_float(subject: Subject, floats: Iterable[str]) -> Iterator[Finding]:
    """Report weighted float nodes as errors, and others, which only cost some time, as warnings."""
    names = set(floats)
    yield from (finding(RUNTIME, node, "error") for node in subject.layers if called(node) in names)
    yield from (finding(RUNTIME, node, "warning") for node in subject.links if called(node) in names)


def _alike(subject: Subject) -> tuple[float, int]:
    """SQNR in dB of the optimized model against the plain one (worst output), and the number of samples."""
    samples = list(subject.samples)[:COMPARED]
    if not samples:
        return math.nan, 0
    kinds = float_kinds(subject.model)
    plain, fast = (_outputs(subject, list(kinds), samples, optimize) for optimize in (False, True))
    return outcome(kinds, zip(plain, fast, strict=True), len(samples)).sqnr, len(samples)


def _outputs(
    subject: Subject, names: Sequence[str], samples: Iterable[Sample], optimize: bool
) -> list[list[NDArray[np.generic]]]:
    """Compute the outputs of the model called ``names`` for each sample."""
    session = open_session(subject.path, threads=subject.threads, optimize=optimize)
    return [run_batch(session, names, sample) for sample in samples]


def _likeness(ratio: float, compared: int) -> str:
    if math.isnan(ratio):
        return "outputs not compared"
    alike = "equal" if ratio == math.inf else f"alike to {ratio:.1f} dB"
    return f"outputs with and without its optimizations are {alike} ({compared} samples)"


def _changed(ratio: float) -> Iterator[Finding]:
    if ratio < ALIKE:
        yield Finding(
            "",
            "error",
            f"optimizations change the outputs: SQNR {ratio:.1f} dB between both, expected {ALIKE:.0f}.",
            "See the legality findings: weights with scales along a wrong axis are fused as if it were the "
            "right one. On CPUs without VNNI, sums of 16 bits saturate: use target onnxruntime-avx2.",
        )


def _rounded(subject: Subject, found: Fused, ratio: float) -> Iterator[Finding]:
    """Report float biases that the optimizer WeightBiasQuantization stored in int32, if outputs differ."""
    if not ratio < ROUNDED:
        return
    for node in subject.layers:
        operator = OPERATORS[node.op_type]
        bias = None if operator.bias is None else input_at(node, operator.bias)
        if bias is not None and bias.is_initializer() and bias.name not in found.read:
            yield Finding(
                called(node),
                "warning",
                "its float bias is rounded to int32 with input scale x weight scale by ONNX Runtime's "
                "optimizations, which is coarse for few bits.",
                "Repeat the scale of its input for each channel, as the academic targets do, or load the "
                "model without WeightBiasQuantization.",
            )
