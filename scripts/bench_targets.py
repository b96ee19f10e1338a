"""Check how real runtimes run models quantized for them: how much runs in integers, and how accurately.

Prints a table for each given section (all of them by default) and exits with 1 if a goal is missed. A runtime
that is not installed misses all goals.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial

import bench
import cases
from bench import Figure, Place, Sections, at_most, exactly
from calibrators.data.samples import Sample
from onnxq.core.config import QuantConfig
from onnxq.graph.operators import WEIGHTED
from onnxq.pipelines.prepare import prepare
from onnxq.pipelines.verify import verify_file
from onnxq.verify.latency import race
from onnxq.verify.verdict import Verdict

SECONDS = 3.0

FEW = ("--samples", "20", "--correct", "none", "--floor", "0")
"""Ranges do not change what runtimes fuse, so a few samples suffice."""

LITE0_LAYERS = 100
"""The number of layers with NVIDIA's own tool, which leaves the last Gemm in float. In int8, TensorRT-RTX 1.7
makes two layers of each operator with weights: the product, and a layer for the scales, the bias, the limits
and sums after it, and the next Q. With the Q of the input that is 2 x 50 + 1, one too many. Without a bias
and with per-tensor weights, the last product needs no second layer. Nothing else (Relu for Clip, neither of
them, a convolution instead of the Gemm, other compute capabilities) made any difference."""


def lite0_onnxruntime(place: Place) -> list[Figure]:
    """EfficientNet-Lite0 for ONNX Runtime on x86."""
    return list(_in_integers(*_verified(place, "lite0", "onnxruntime")))


def lite0_tensorrt(place: Place) -> list[Figure]:
    """EfficientNet-Lite0 for TensorRT: parsed and built, on the CPU too."""
    planned, verdicts = _verified(place, "lite0", "tensorrt")
    _, like_peer = _verified(place, "lite0", "tensorrt", "--exclude", "op:Gemm")
    layers = partial(at_most, limit=LITE0_LAYERS, form="{:.0f}")
    return [
        *_in_integers(planned, verdicts),
        layers("engine layers in total", _engine_layers(verdicts)),
        layers("   with the Gemm in float", _engine_layers(like_peer)),
        Figure("on ONNX Runtime's CPU, times as fast as float", _speed_elsewhere(place, "lite0")),
    ]


def lite0_openvino(place: Place) -> list[Figure]:
    """EfficientNet-Lite0 for OpenVINO: kernels whose primitiveType ends with _i8."""
    return list(_in_integers(*_verified(place, "lite0", "openvino")))


def minilm_tensorrt(place: Place) -> list[Figure]:
    """The sentence encoder for TensorRT: linear layers, and both products of attention."""
    return list(_in_integers(*_verified(place, "minilm", "tensorrt")))


def minilm_openvino(place: Place) -> list[Figure]:
    """The sentence encoder for OpenVINO: linear layers, and both products of attention."""
    return list(_in_integers(*_verified(place, "minilm", "openvino")))


SECTIONS: Sections = {
    "lite0-onnxruntime": lite0_onnxruntime,
    "lite0-tensorrt": lite0_tensorrt,
    "lite0-openvino": lite0_openvino,
    "minilm-tensorrt": minilm_tensorrt,
    "minilm-openvino": minilm_openvino,
}


def _engine_layers(verdicts: tuple[Verdict, ...]) -> int:
    return verdicts[-1].counts.get("engine layers", 10 * LITE0_LAYERS)


def _speed_elsewhere(place: Place, name: str) -> float:
    """Measure on ONNX Runtime, with one thread, the speed of a model made for another runtime."""
    case = cases.CASES[name](place.shared, place.work / "data")
    sample = Sample("", next(iter(case.evaluation())))
    return race((case.model, place.work / "ours.onnx"), sample, threads=1, seconds=SECONDS).ratio


def _verified(place: Place, name: str, target: str, *options: str) -> tuple[int, tuple[Verdict, ...]]:
    """Quantize and verify a model; return the number of planned operators with weights, and the verdicts."""
    case = cases.CASES[name](place.shared, place.work / "data")
    ours = place.work / ("other.onnx" if options else "ours.onnx")
    bench.quantize(case, ours, "--target", target, *FEW, *options)
    plan = prepare(case.model, QuantConfig(target=target))[1]
    verdicts = verify_file(ours, QuantConfig(target=target, data=case.data, preprocess=_preprocess(case)))
    for verdict in verdicts:
        print(f"{verdict.runtime}: {verdict.status}: {verdict.summary}")
    return sum(op_type in WEIGHTED for op_type in plan.integer_nodes.values()), verdicts


def _preprocess(case: cases.Case) -> str | None:
    given = dict(zip(case.options[::2], case.options[1::2], strict=True))
    return given.get("--preprocess")


def _in_integers(planned: int, verdicts: tuple[Verdict, ...]) -> Iterator[Figure]:
    legality, runtime = verdicts
    count = partial(Figure, form="{:.0f}")
    yield exactly("broken rules of the target", len(legality.errors), 0)
    yield exactly("accepted by the runtime (1: yes)", int("weighted" in runtime.counts), 1)
    yield count("operators with weights", legality.counts["weighted"])
    yield exactly(
        "of these in integers (goal: all planned)", runtime.counts.get("integer layers", 0), planned
    )


if __name__ == "__main__":
    sys.exit(bench.run(__doc__, SECTIONS))
