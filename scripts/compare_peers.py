"""Compare onnxq with `onnxruntime.quantization` on the same models, pictures and sentences.

Prints a table for each given section (all of them by default) and exits with 1 if a goal is missed.
"""

from __future__ import annotations

import collections
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import bench
import cases
import evaldata
import zoo
from bench import Figure, Floats, Place, Sections, at_least, at_most, exactly
from calibrators.data.samples import Sample
from cases import Case
from measure import measured
from onnxq.core.numerics import sqnr
from onnxq.graph.files import load, write
from onnxq.graph.passes import simplify
from onnxq.verify.latency import race


def lite0(place: Place) -> list[Figure]:
    """EfficientNet-Lite0, 100 pictures to calibrate, 400 to evaluate: the default command against min-max."""
    case, ours, peer = _both(place, "lite0")
    images = list(evaldata.imagenet(place.shared, "evaluation"))
    labels = np.array([label for _, label in images], np.int64)
    run, peer_run = bench.quantize(case, ours), bench.quantize_peer(case, peer)
    reference, int8, int8_peer = (bench.outputs(p, case.evaluation()) for p in (case.model, ours, peer))
    sample = Sample("", {"input": images[0][0]})
    speeds = [race((case.model, path), sample, seconds=5).ratio for path in (ours, peer)]
    sizes = [path.stat().st_size / case.model.stat().st_size for path in (ours, peer)]
    return [
        at_least("SQNR of the logits, dB", sqnr(reference, int8), 25.0, sqnr(reference, int8_peer)),
        at_least(
            "agreement with float, %",
            bench.agreement(reference, int8),
            98.2,
            bench.agreement(reference, int8_peer),
        ),
        *accuracies(labels, reference, int8, int8_peer),
        at_least("speed, times float, one thread", speeds[0], 1.8, speeds[1]),
        at_most("file size, of float", sizes[0], 0.28, sizes[1], "{:.3f}"),
        at_most("whole command, s", run.seconds, 15.0, peer_run.seconds, "{:.1f}"),
        at_most("peak memory, MB", run.megabytes, 1000, peer_run.megabytes, "{:.0f}"),
        kernel_figure(ours, peer),
    ]


def _both(place: Place, name: str) -> tuple[Case, Path, Path]:
    """Get the case of that name, and the paths for the two int8 models."""
    case = cases.CASES[name](place.shared, place.work)
    return case, place.work / f"{name}.onnx", place.work / f"{name}-peer.onnx"


def exports(place: Place) -> list[Figure]:
    """The three exports of EfficientNet-Lite0: all must become the same graph, with the same outputs."""
    images = [{"input": image} for image, _ in evaldata.imagenet(place.shared, "calibration")][:8]
    counts, figures = [], []
    for variant in zoo.LITE0_EXPORTS:
        model, clean = zoo.lite0(variant), place.work / f"clean-{variant}.onnx"
        write(simplify(load(model)), clean)
        count = collections.Counter(node.op_type for node in load(clean).graph)
        counts.append(count)
        print(f"{variant}: {dict(count.most_common())}")
        before, after = bench.outputs(model, images), bench.outputs(clean, images)
        difference = float(np.abs(before - after).max() / np.abs(before).max())
        figures.append(at_most(f"{variant}: greatest relative change", difference, 1e-5, form="{:.1e}"))
    same = sum(count == counts[0] for count in counts)
    first = counts[0]
    left = max(count["BatchNormalization"] + count["Pad"] for count in counts)
    return [
        *figures,
        at_least("exports with equal operator counts", same, len(counts), form="{:.0f}"),
        exactly("Conv nodes", first["Conv"], 49),
        exactly("BatchNormalization and Pad nodes left", left, 0),
    ]


def resnet20(place: Place) -> list[Figure]:
    """ResNet-20 on CIFAR-10: 200 training pictures to calibrate, the 2,000 of the test set to evaluate."""
    case, ours, peer = _both(place, "resnet20")
    bench.quantize(case, ours)
    bench.quantize_peer(case, peer)
    _, labels = evaldata.cifar(place.shared, "test-2k")
    reference, int8, int8_peer = (bench.outputs(p, case.evaluation()) for p in (case.model, ours, peer))
    lost, lost_peer = (
        bench.accuracy(reference, labels) - bench.accuracy(x, labels) for x in (int8, int8_peer)
    )
    return [
        Figure("SQNR of the logits, dB", sqnr(reference, int8), peer=sqnr(reference, int8_peer)),
        *accuracies(labels, reference, int8, int8_peer),
        at_most("accuracy lost, points", lost, 0.5, lost_peer),
        kernel_figure(ours, peer),
    ]


def minilm(place: Place) -> list[Figure]:
    """The sentence encoder on STS-B: 200 training sentences to calibrate, the test set to evaluate."""
    case, ours, peer = _both(place, "minilm")
    run, peer_run = bench.quantize(case, ours), bench.quantize_peer(case, peer)
    first, _, scores = evaldata.stsb(place.shared, "test")
    embeddings = [bench.outputs(path, case.evaluation()) for path in (case.model, ours, peer)]
    reference, int8, int8_peer = embeddings
    ranks = [evaldata.spearman(x[: len(first)], x[len(first) :], scores) for x in embeddings]
    sizes = [path.stat().st_size / case.model.stat().st_size for path in (ours, peer)]
    sample = Sample("", next(evaldata.tokenized(first[:1])))
    speeds = [race((case.model, path), sample, seconds=5).ratio for path in (ours, peer)]
    return [
        Figure("Spearman of the float model", ranks[0]),
        at_least("Spearman", ranks[1], 81.9, ranks[2]),
        Figure("SQNR of the embeddings, dB", sqnr(reference, int8), peer=sqnr(reference, int8_peer)),
        Figure("speed, times float, one thread", speeds[0], peer=speeds[1]),
        Figure("file size, of float", sizes[0], peer=sizes[1], form="{:.3f}"),
        Figure("whole command, s", run.seconds, peer=peer_run.seconds, form="{:.1f}"),
        Figure("peak memory, MB", run.megabytes, peer=peer_run.megabytes, form="{:.0f}"),
        kernel_figure(ours, peer),
    ]


def help_text(_: Place) -> list[Figure]:
    """The time that ``--help`` of the command line takes."""
    command = [sys.executable, "-m", "onnxq.quantize", "--help"]
    seconds = min(measured(command).seconds for _ in range(5))
    traced = measured([sys.executable, "-X", "importtime", *command[1:]]).output
    names = {line.split("|")[-1].strip() for line in traced.splitlines() if line.startswith("import time:")}
    heavy = names & {"torch", "onnxruntime", "onnx", "onnx_ir"}
    return [
        at_most("python -m onnxq.quantize --help, s", seconds, 0.5),
        exactly("large libraries imported for it", len(heavy), 0),
    ]


def accuracies(labels: Any, reference: Floats, ours: Floats, peer: Floats) -> Iterator[Figure]:
    """Yield the top-1 accuracy of the float model, ours and the peer's.

    Args:
        labels: the labels, ``[N]``.
        reference: outputs of the float model, ``[N, classes]``.
        ours: outputs of our model.
        peer: outputs of the peer's model.
    """
    yield Figure("top-1 accuracy of the float model, %", bench.accuracy(reference, labels))
    yield Figure("top-1 accuracy, %", bench.accuracy(ours, labels), peer=bench.accuracy(peer, labels))


def kernel_figure(ours: Path, peer: Path) -> Figure:
    """Count Conv, Gemm and MatMul nodes that are quantized in the file but run in float."""
    planned, integer, left_float = bench.kernels(ours)
    peer_planned, peer_integer, _ = bench.kernels(peer)
    name = f"quantized Conv, Gemm, MatMul that run in float ({integer} in integers, {left_float} in float)"
    return Figure(name, planned - integer, lambda lost: lost == 0, "0", peer_planned - peer_integer, "{:.0f}")


SECTIONS: Sections = {
    "help": help_text,
    "exports": exports,
    "lite0": lite0,
    "resnet20": resnet20,
    "minilm": minilm,
}

if __name__ == "__main__":
    sys.exit(bench.run(__doc__, SECTIONS))
