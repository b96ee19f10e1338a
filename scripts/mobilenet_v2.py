"""A MobileNetV2 for pictures of 32 x 32 pixels, and its training on CIFAR-10, for the benchmark of training.

Sandler et al. 2018, https://arxiv.org/abs/1801.04381. Two of the five strides are 1, because the pictures are
small.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator

import torch
from torch import Tensor, nn

ROWS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 1),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Factor of the hidden channels, output channels, number of blocks, stride of the first one."""

CLASSES = 10


class Block(nn.Module):
    """An inverted residual: 1x1 to more channels, 3x3 depthwise, 1x1 to fewer channels without activation."""

    def __init__(self, channels: int, out: int, stride: int, factor: int) -> None:
        super().__init__()
        hidden = channels * factor
        self.residual = stride == 1 and channels == out
        self.body = nn.Sequential(
            *(convolution(channels, hidden, 1) if factor > 1 else ()),
            *convolution(hidden, hidden, 3, stride, groups=hidden),
            *convolution(hidden, out, 1)[:2],
        )

    def forward(self, x: Tensor) -> Tensor:
        """Add the input, if the shapes are equal."""
        y: Tensor = self.body(x)
        return x + y if self.residual else y


class MobileNetV2(nn.Module):
    """The network; ``width`` multiplies all numbers of channels."""

    def __init__(self, width: float) -> None:
        super().__init__()
        channels, last = _scaled(32, width), _scaled(1280, width)
        layers: list[nn.Module] = list(convolution(3, channels, 3, stride=2))
        for factor, out, count, stride in ROWS:
            for index in range(count):
                layers.append(Block(channels, _scaled(out, width), stride if index == 0 else 1, factor))
                channels = _scaled(out, width)
        self.features = nn.Sequential(*layers, *convolution(channels, last, 1))
        self.classifier = nn.Linear(last, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Scores ``[N, 10]`` of pictures ``[N, 3, 32, 32]``."""
        scores: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return scores


def convolution(
    channels: int, out: int, size: int, stride: int = 1, groups: int = 1
) -> tuple[nn.Module, ...]:
    """A convolution, its normalization, and ReLU6."""
    conv = nn.Conv2d(channels, out, size, stride, size // 2, groups=groups, bias=False)
    return conv, nn.BatchNorm2d(out), nn.ReLU6()


def _scaled(channels: int, width: float) -> int:
    """Round to a multiple of 8, as the paper does."""
    return max(8, int(channels * width + 4) // 8 * 8)


def fit(module: nn.Module, teacher: nn.Module, batches: Iterator[Tensor], steps: int) -> None:
    """Train a float ``module`` on the softened outputs of ``teacher`` (Hinton et al. 2015).

    Args:
        module: the network.
        teacher: a trained network, in eval mode.
        batches: pictures, without end.
        steps: the number of steps.
    """
    heat, rate, warm = 3.0, 0.1, 50
    optimizer = torch.optim.SGD(module.parameters(), lr=rate, momentum=0.9, nesterov=True, weight_decay=5e-4)
    module.train()
    for step, batch in zip(range(steps), batches, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * step / steps))
        with torch.no_grad():
            wanted = (teacher(batch) / heat).log_softmax(1)
        given = (module(batch) / heat).log_softmax(1)
        loss = nn.functional.kl_div(given, wanted, reduction="batchmean", log_target=True) * heat**2
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        print(f"float step {step + 1} of {steps}: loss {loss.item():.3f}", file=sys.stderr, flush=True)
    module.eval()
