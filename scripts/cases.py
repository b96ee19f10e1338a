"""The models that the benchmarks quantize and evaluate, with their calibration and evaluation data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import evaldata
import zoo

Feeds = Mapping[str, NDArray[Any]]

SENTENCES = 200
"""Number of sentences to calibrate the sentence encoder on, spread over the set to cover all lengths."""


@dataclass(frozen=True)
class Case:
    """A model and its data.

    Attributes:
        model: the float model.
        data: calibration data: a folder that both onnxq and the peer read.
        evaluation: returns the batches to evaluate on; none of them is in the calibration data.
        options: further options of onnxq's command line, to read the data.
        peer_options: further options of the peer.
    """

    model: Path
    data: Path
    evaluation: Callable[[], Iterable[Feeds]]
    options: tuple[str, ...] = ()
    peer_options: tuple[str, ...] = ()


def lite0(shared: Path, work: Path) -> Case:
    """EfficientNet-Lite0: 100 ImageNet pictures to calibrate, 400 to evaluate."""
    return Case(
        zoo.lite0(),
        shared / "imagenet-sample" / "calibration",
        lambda: ({"input": image} for image, _ in evaldata.imagenet(shared, "evaluation")),
        options=("--preprocess", evaldata.IMAGENET_PREPROCESS),
    )


def resnet20(shared: Path, work: Path) -> Case:
    """ResNet-20 on CIFAR-10: 200 training pictures to calibrate, the 2,000 of the test set to evaluate."""
    training, _ = evaldata.cifar(shared, "train-10k")
    images, _ = evaldata.cifar(shared, "test-2k")
    return Case(
        zoo.resnet20(shared),
        batches(work / "cifar", ({"input": image[None]} for image in training[:200])),
        lambda: ({"input": images[start : start + 100]} for start in range(0, len(images), 100)),
    )


def minilm(shared: Path, work: Path) -> Case:
    """The sentence encoder on STS-B: 200 training sentences to calibrate, the test set to evaluate."""
    first, second, _ = evaldata.stsb(shared, "train")
    step = len(first) // (SENTENCES // 2)
    sentences = [*first[::step][: SENTENCES // 2], *second[::step][: SENTENCES // 2]]
    one, two, _ = evaldata.stsb(shared, "test")
    return Case(
        zoo.minilm(),
        batches(work / "sentences", evaldata.tokenized(sentences)),
        lambda: evaldata.tokenized([*one, *two], batch_size=8),
        peer_options=("--skip-symbolic-shapes",),
    )


CASES: Mapping[str, Callable[[Path, Path], Case]] = {"lite0": lite0, "resnet20": resnet20, "minilm": minilm}


def batches(folder: Path, feeds: Iterable[Feeds]) -> Path:
    """Write one ``.npz`` per batch to a new folder, and return it."""
    folder.mkdir(parents=True)
    for index, arrays in enumerate(feeds):
        named: dict[str, Any] = dict(arrays)
        np.savez(folder / f"{index:04}.npz", **named)
    return folder
