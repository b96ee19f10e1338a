"""Us beside `onnxruntime.quantization`: the same models, pictures and sentences, in one run.

Prints a table for every section named (all of them if none is) and exits 1 when a goal is missed.
"""

from __future__ import annotations

import argparse
import collections
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import bench
import evaldata
import zoo
from bench import Feeds, Figure, Floats, at_least, at_most
from calibrators.samples import Sample
from measure import measured
from onnxq.model import load, write
from onnxq.numerics import sqnr
from onnxq.passes import simplify
from onnxq.race import race

SENTENCES = 200
"""How many the sentence encoder is calibrated on, spread over the set so that all lengths are among them."""


@dataclass(frozen=True)
class Place:
    """Where the data is, where to work, and how the peer is to calibrate."""

    shared: Path
    work: Path
    peer_method: str


def lite0(place: Place) -> list[Figure]:
    """EfficientNet-Lite0, 100 pictures to calibrate, 400 to judge: the default command against min-max."""
    model, ours, peer = zoo.lite0(), place.work / "lite0.onnx", place.work / "lite0-peer.onnx"
    pictures = place.shared / "imagenet-sample" / "calibration"
    run = bench.quantize(model, ours, "--data", str(pictures), "--preprocess", evaldata.IMAGENET_PREPROCESS)
    peer_run = bench.quantize_peer(model, peer, pictures, "--method", place.peer_method)
    images = list(evaldata.imagenet(place.shared, "evaluation"))
    labels = np.array([label for _, label in images], np.int64)
    reference, int8, int8_peer = (
        bench.outputs(path, ({"input": image} for image, _ in images)) for path in (model, ours, peer)
    )
    speeds = [
        race(model, path, Sample("", {"input": images[0][0]}), seconds=5).ratio for path in (ours, peer)
    ]
    sizes = [path.stat().st_size / model.stat().st_size for path in (ours, peer)]
    return [
        at_least("SQNR of the logits, dB", sqnr(reference, int8), 19.5, sqnr(reference, int8_peer)),
        at_least(
            "agreement with float, %",
            bench.agreement(reference, int8),
            98.2,
            bench.agreement(reference, int8_peer),
        ),
        *accuracies(labels, reference, int8, int8_peer),
        at_least("speed, times float, one thread", speeds[0], 1.8, speeds[1]),
        at_most("file size, of float", sizes[0], 0.28, sizes[1], "{:.3f}"),
        at_most("whole command, s", run.seconds, 8.0, peer_run.seconds, "{:.1f}"),
        at_most("peak memory, MB", run.megabytes, 700, peer_run.megabytes, "{:.0f}"),
        kernel_figure(ours, peer),
    ]


def exports(place: Place) -> list[Figure]:
    """The three exports of EfficientNet-Lite0 must become the same graph, which computes the same."""
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
    """ResNet-20 on CIFAR-10: 200 training pictures to calibrate, the 2,000 of the test set to judge."""
    model, ours, peer = (
        zoo.resnet20(place.shared),
        place.work / "resnet.onnx",
        place.work / "resnet-peer.onnx",
    )
    training, _ = evaldata.cifar(place.shared, "train-10k")
    images, labels = evaldata.cifar(place.shared, "test-2k")
    np.save(place.work / "cifar.npy", training[:200])
    folder = batches(place.work / "cifar", ({"input": image[None]} for image in training[:200]))
    bench.quantize(model, ours, "--data", str(place.work / "cifar.npy"))
    bench.quantize_peer(model, peer, folder, "--method", place.peer_method)
    parts = [{"input": images[start : start + 100]} for start in range(0, len(images), 100)]
    reference, int8, int8_peer = (bench.outputs(path, parts) for path in (model, ours, peer))
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
    """The sentence encoder on STS-B: 200 training sentences to calibrate, the test set to judge."""
    model, ours, peer = zoo.minilm(), place.work / "minilm.onnx", place.work / "minilm-peer.onnx"
    first, second, _ = evaldata.stsb(place.shared, "train")
    step = len(first) // (SENTENCES // 2)
    sentences = [*first[::step][: SENTENCES // 2], *second[::step][: SENTENCES // 2]]
    folder = batches(place.work / "sentences", evaldata.tokenized(sentences))
    run = bench.quantize(model, ours, "--data", str(folder))
    peer_run = bench.quantize_peer(
        model, peer, folder, "--method", place.peer_method, "--skip-symbolic-shapes"
    )
    first, second, scores = evaldata.stsb(place.shared, "test")
    feeds = list(evaldata.tokenized([*first, *second], batch_size=8))
    embeddings = [bench.outputs(path, feeds) for path in (model, ours, peer)]
    reference, int8, int8_peer = embeddings
    ranks = [evaldata.spearman(x[: len(first)], x[len(first) :], scores) for x in embeddings]
    sizes = [path.stat().st_size / model.stat().st_size for path in (ours, peer)]
    sample = Sample("", next(evaldata.tokenized(first[:1])))
    speeds = [race(model, path, sample, seconds=5).ratio for path in (ours, peer)]
    return [
        Figure("Spearman of the float model", ranks[0]),
        at_least("Spearman", ranks[1], 81.5, ranks[2]),
        Figure("SQNR of the embeddings, dB", sqnr(reference, int8), peer=sqnr(reference, int8_peer)),
        Figure("speed, times float, one thread", speeds[0], peer=speeds[1]),
        Figure("file size, of float", sizes[0], peer=sizes[1], form="{:.3f}"),
        Figure("whole command, s", run.seconds, peer=peer_run.seconds, form="{:.1f}"),
        Figure("peak memory, MB", run.megabytes, peer=peer_run.megabytes, form="{:.0f}"),
        kernel_figure(ours, peer),
    ]


def help_text(_: Place) -> list[Figure]:
    """How fast the command line answers when there is nothing to do."""
    command = [sys.executable, "-m", "onnxq.quantize", "--help"]
    seconds = min(measured(command).seconds for _ in range(5))
    traced = measured([sys.executable, "-X", "importtime", *command[1:]]).output
    names = {line.split("|")[-1].strip() for line in traced.splitlines() if line.startswith("import time:")}
    heavy = names & {"torch", "onnxruntime", "onnx", "onnx_ir"}
    return [
        at_most("python -m onnxq.quantize --help, s", seconds, 0.5),
        exactly("big libraries imported for it", len(heavy), 0),
    ]


SECTIONS: dict[str, Callable[[Place], list[Figure]]] = {
    "help": help_text,
    "exports": exports,
    "lite0": lite0,
    "resnet20": resnet20,
    "minilm": minilm,
}


def exactly(name: str, ours: int, wanted: int) -> Figure:
    """A count that must be right."""
    return Figure(name, ours, lambda value: value == wanted, str(wanted), form="{:.0f}")


def accuracies(labels: Any, reference: Floats, ours: Floats, peer: Floats) -> Iterator[Figure]:
    """Top-1 of the float model, ours and the peer."""
    yield Figure("top-1 accuracy of the float model, %", bench.accuracy(reference, labels))
    yield Figure("top-1 accuracy, %", bench.accuracy(ours, labels), peer=bench.accuracy(peer, labels))


def kernel_figure(ours: Path, peer: Path) -> Figure:
    """How many Conv, Gemm and MatMul were quantized in the file and yet run in float."""
    planned, integer, left_float = bench.kernels(ours)
    peer_planned, peer_integer, _ = bench.kernels(peer)
    name = f"quantized Conv, Gemm, MatMul that run in float ({integer} in integers, {left_float} in float)"
    return Figure(name, planned - integer, lambda lost: lost == 0, "0", peer_planned - peer_integer, "{:.0f}")


def batches(folder: Path, feeds: Iterator[Feeds]) -> Path:
    """A folder with one ``.npz`` a batch."""
    folder.mkdir()
    for index, arrays in enumerate(feeds):
        named: dict[str, Any] = dict(arrays)
        np.savez(folder / f"{index:04}.npz", **named)
    return folder


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of: {', '.join(SECTIONS)} (all)")
    default = os.environ.get("ONNXQ_SHARED") or Path(__file__).resolve().parents[2] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=Path(default), help="the evaluation data (%(default)s)")
    parser.add_argument("--keep", type=Path, help="keep the quantized models in this folder")
    parser.add_argument("--peer-method", choices=("minmax", "entropy", "percentile"), default="minmax")
    parsed = parser.parse_args(given)
    unknown = [name for name in parsed.sections if name not in SECTIONS]
    if unknown:
        parser.error(f"no section {unknown[0]!r}; there are {', '.join(SECTIONS)}")
    if not parsed.data.is_dir():
        parser.error(f"no evaluation data in {parsed.data}: name its folder with --data")
    return parsed


def main() -> int:
    """Run the sections asked for."""
    given = arguments()
    met = True
    with tempfile.TemporaryDirectory() as folder:
        for name in given.sections or SECTIONS:
            work = Path(given.keep or folder) / name
            work.mkdir(parents=True)
            section = SECTIONS[name]
            figures = section(Place(given.data, work, given.peer_method))
            met &= bench.report(f"{name}: {(section.__doc__ or '').splitlines()[0]}", figures)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
