"""Compare quantization-aware training of ResNet-20 and MobileNetV2 on CIFAR-10 with calibration alone.

Prints a table for each given section (all of them by default) and exits with 1 if a goal is missed.
"""

from __future__ import annotations

import copy
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from mobilenet_v2 import MobileNetV2, fit
from torch import Tensor, nn

import bench
import cases
import evaldata
import zoo
from bench import Figure, Floats, Place, Sections, at_least, at_most, exactly
from onnxq.core.numerics import sqnr
from onnxq.targets.lookup import get_target
from onnxq.torch import QatResult, convert_qat, freeze_batch_norms, freeze_ranges, prepare_qat

BATCH = 128
CALIBRATION = 256
FLOAT = 83.9
"""Top-1 accuracy of the float model on the 2,000 test pictures, in percent."""


@dataclass(frozen=True)
class Course:
    """A training schedule: number of epochs, and a learning rate that falls along a cosine."""

    epochs: float
    rate: float
    frozen: float = 0.5
    """The share of the steps after which ranges and the statistics of batch normalizations are frozen."""


W8A8 = Course(epochs=1, rate=1e-3)
W4A4 = Course(epochs=1, rate=1e-2)
TENSORRT = Course(epochs=0.1, rate=1e-3)
MOBILENET_W8A8 = Course(epochs=0.5, rate=1e-3)
MOBILENET_W4A4 = Course(epochs=1, rate=1e-2)
MOBILENET_EPOCHS = 7
"""The training of the float MobileNetV2, in epochs of 10,000 pictures."""


def w8a8(place: Place) -> list[Figure]:
    """8 bits for ONNX Runtime: accuracy after calibration only, and after training."""
    case, plain = cases.CASES["resnet20"](place.shared, place.work / "data"), place.work / "ptq.onnx"
    bench.quantize(case, plain)
    _, labels = evaldata.cifar(place.shared, "test-2k")
    ptq = bench.outputs(plain, case.evaluation())
    float_outputs = bench.outputs(case.model, case.evaluation())
    trained = Trained(place, "onnxruntime", W8A8)
    return [
        Figure("top-1 accuracy of the float model, %", bench.accuracy(float_outputs, labels)),
        at_least("top-1 accuracy, calibrated, %", bench.accuracy(ptq, labels), 83.5),
        at_least("top-1 accuracy, trained, %", trained.accuracy, FLOAT),
        *trained.figures(),
    ]


def w4a4(place: Place) -> list[Figure]:
    """4 bits (8 in the first and the last layer), learned scales."""
    trained = Trained(place, "academic-w4a4", W4A4)
    return [
        Figure("top-1 accuracy, calibrated, %", trained.before),
        at_least("top-1 accuracy, trained, %", trained.accuracy, FLOAT - 1.5),
        *trained.figures(),
    ]


def tensorrt(place: Place) -> list[Figure]:
    """A short training for TensorRT, to check that its builder runs all layers in int8."""
    trained = Trained(place, "tensorrt", TENSORRT)
    counts = next(verdict.counts for verdict in trained.result.verdicts if verdict.runtime == "tensorrt")
    return [
        exactly("convolutions and Gemms that run in int8, of 22", counts.get("integer layers", 0), 22),
        Figure("top-1 accuracy, %", trained.accuracy),
        *trained.figures(),
    ]


def mobilenetv2(place: Place) -> list[Figure]:
    """MobileNetV2, trained here in float: 8 bits, and 4 bits with learned scales (LSQ)."""
    started = time.perf_counter()
    torch.manual_seed(0)
    teacher = zoo._resnet20_module(place.shared / "cifar10")
    images, _ = map(torch.from_numpy, evaldata.cifar(place.shared, "train-10k"))
    network = MobileNetV2(width=0.5)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # the stub of torch lacks it
    fit(network, teacher, batches(images), round(MOBILENET_EPOCHS * len(images) / BATCH))
    minutes = (time.perf_counter() - started) / 60
    eight = Trained(place, "onnxruntime", MOBILENET_W8A8, network)
    four = Trained(place, "academic-w4a4", MOBILENET_W4A4, network)
    return [
        Figure("top-1 accuracy of the float model, %", four.reference),
        Figure("its training, minutes", minutes, form="{:.1f}"),
        Figure("8 bits, calibrated, %", eight.before),
        at_least("8 bits, trained, %", eight.accuracy, four.reference - 0.5),
        *eight.figures("8 bits: ", alike=97),
        Figure("4 bits, calibrated, %", four.before),
        at_least("4 bits, trained with learned scales, %", four.accuracy, four.before + 1),
        *four.figures("4 bits: "),
    ]


class Trained:
    """A network that was prepared for a target, trained and converted."""

    def __init__(self, place: Place, target: str, course: Course, teacher: nn.Module | None = None) -> None:
        started = time.perf_counter()
        torch.manual_seed(0)
        teacher = teacher or zoo._resnet20_module(place.shared / "cifar10")
        images, _ = map(torch.from_numpy, evaldata.cifar(place.shared, "train-10k"))
        module = prepare_qat(teacher, images[:2], target=target, data=torch.split(images[:CALIBRATION], 1))
        tests, self._labels = evaldata.cifar(place.shared, "test-2k")
        self._batches = np.split(tests, 20)
        self.reference = bench.accuracy(self._outputs(teacher), self._labels)
        self.before = bench.accuracy(self._outputs(module), self._labels)
        train(module, teacher, images, course)
        path = place.work / f"{target}.onnx"
        self.result: QatResult = convert_qat(module, path)
        self._module = self._outputs(module)
        own = (
            "onnxruntime" in get_target(target).runtimes
        )  # for others, ONNX Runtime's integer kernels do not count
        self._file = bench.outputs(path, [{"x": batch} for batch in self._batches], optimize=own)
        self._minutes = (time.perf_counter() - started) / 60
        self._epochs = course.epochs

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy of the file, in percent."""
        return bench.accuracy(self._file, self._labels)

    def figures(self, form: str = "", alike: float = 99.5) -> list[Figure]:
        """List how well the file agrees with the module.

        Args:
            form: the beginning of the names.
            alike: the least share of equal classes, in percent.
        """
        return [
            at_least(
                f"{form}same class, file and module, %", bench.agreement(self._module, self._file), alike
            ),
            at_least(f"{form}SQNR, file against module, dB", sqnr(self._module, self._file), 30),
            at_most(f"{form}epochs of 10,000 pictures", self._epochs, 5),
            Figure(f"{form}total time, minutes", self._minutes, form="{:.1f}"),
        ]

    def _outputs(self, module: nn.Module) -> Floats:
        module.eval()
        with torch.no_grad():
            return np.concatenate([module(torch.from_numpy(batch)).numpy() for batch in self._batches])


def train(module: nn.Module, teacher: nn.Module, images: Tensor, course: Course) -> None:
    """Train ``module`` on the outputs of ``teacher``; scales get no weight decay.

    Args:
        module: the prepared module.
        teacher: the float module.
        images: training pictures, ``[N, 3, 32, 32]``.
        course: the training schedule.
    """
    scales = [p for name, p in module.named_parameters() if name.endswith(".scale")]
    others = [p for name, p in module.named_parameters() if not name.endswith(".scale")]
    groups = [{"params": others, "weight_decay": 1e-4}, {"params": scales, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(
        [g for g in groups if g["params"]], lr=course.rate, momentum=0.9, nesterov=True
    )
    total = round(course.epochs * len(images) / BATCH)
    teacher = copy.deepcopy(teacher).eval()
    module.train()
    for step, batch in zip(range(total), batches(images), strict=False):
        if step == int(course.frozen * total):
            freeze_ranges(module)
            freeze_batch_norms(module)
        for group in optimizer.param_groups:
            group["lr"] = course.rate * 0.5 * (1 + math.cos(math.pi * step / total))
        loss = difference(module, teacher, batch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        print(f"step {step + 1} of {total}: loss {loss.item():.4f}", file=sys.stderr, flush=True)


def difference(module: nn.Module, teacher: nn.Module, batch: Tensor) -> Tensor:
    """Compute the Kullback-Leibler divergence between the outputs of both modules.

    Args:
        module: the prepared module.
        teacher: the float module.
        batch: pictures, ``[N, 3, 32, 32]``.
    """
    with torch.no_grad():
        wanted = teacher(batch).log_softmax(1)
    return nn.functional.kl_div(module(batch).log_softmax(1), wanted, reduction="batchmean", log_target=True)


def batches(images: Tensor) -> Iterator[Tensor]:
    """Yield batches without end: shuffled, mirrored, and shifted by up to 4 pixels."""
    while True:
        for chosen in torch.split(torch.randperm(len(images)), BATCH):
            if len(chosen) == BATCH:
                yield shifted(images[chosen])


def shifted(batch: Tensor) -> Tensor:
    """Mirror each picture at random, and shift it within a border of 4 pixels."""
    mirrored = torch.where(torch.rand(len(batch), 1, 1, 1) < 0.5, batch.flip(3), batch)
    padded = nn.functional.pad(mirrored, (4, 4, 4, 4))
    places = torch.randint(0, 9, (len(batch), 2)).tolist()
    side = batch.shape[-1]
    return torch.stack(
        [image[:, y : y + side, x : x + side] for image, (y, x) in zip(padded, places, strict=True)]
    )


SECTIONS: Sections = {"w8a8": w8a8, "w4a4": w4a4, "tensorrt": tensorrt, "mobilenetv2": mobilenetv2}


if __name__ == "__main__":
    sys.exit(bench.run(__doc__, SECTIONS))
