"""Networks that are slower in int8, with random weights, because only their shapes matter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Block = tuple[int, int, int, int]
"""Inner channels, output channels, size of the depthwise kernel, stride."""

DEPTHWISE: Sequence[Block] = (
    *((16, 32, 5, 1), (32, 64, 5, 2), (64, 64, 5, 1), (64, 128, 5, 2)),
    (128, 128, 5, 1),
)

MOBILE: Sequence[Block] = (
    *((16, 16, 3, 2), (72, 24, 3, 2), (88, 24, 3, 1), (96, 40, 5, 2)),
    *((240, 40, 5, 1), (120, 48, 5, 1), (144, 48, 5, 1)),
)


class Network:
    """Builds a picture classifier layer by layer; ``tensor`` and ``channels`` refer to the last layer."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.tensor, self.channels = "x", 3
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(0)

    def add(self, op_type: str, *others: str, **attributes: Any) -> str:
        """Add a node that reads the last tensor, and return the name of its output."""
        name = f"{op_type}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(op_type, [self.tensor, *others], [name], name=name, **attributes))
        self.tensor = name
        return name

    def conv(self, channels: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> str:
        """Add a convolution with a bias, and return the name of its output.

        Args:
            channels: number of output channels.
            kernel: kernel size.
            stride: stride.
            groups: number of groups.
        """
        shape = (channels, self.channels // groups, kernel, kernel)
        weight = self._weight(shape, float(np.prod(shape[1:])))
        bias = self._weight((channels,), 100.0)
        self.channels = channels
        window = {"kernel_shape": [kernel] * 2, "pads": [kernel // 2] * 4, "strides": [stride] * 2}
        return self.add("Conv", weight, bias, group=groups, **window)

    def save(self, path: Path) -> Path:
        """Add a classifier of ten classes, and write the model."""
        self.add("GlobalAveragePool")
        self.add("Flatten")
        weight = self._weight((self.channels, 10), float(self.channels))
        output = self.add("Gemm", weight, self._weight((10,), 100.0))
        graph = helper.make_graph(
            self._nodes,
            path.stem,
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, self.size, self.size])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", 10])],
            self._weights,
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
        return path

    def _weight(self, shape: tuple[int, ...], summed: float) -> str:
        name = f"weight_{len(self._weights)}"
        values = self._random.normal(size=shape) * np.sqrt(2 / summed)
        self._weights.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name


def depthwise(path: Path) -> Path:
    """Make a network of alternating depthwise 5 x 5 and pointwise convolutions. ``x`` [N,3,64,64]."""
    net = Network(64)
    net.conv(DEPTHWISE[0][0], 3, 2)
    net.add("Relu")
    for inside, given, kernel, stride in DEPTHWISE:
        net.conv(inside, kernel, stride, groups=inside)
        net.add("Relu")
        net.conv(given)
        net.add("Relu")
    return net.save(path)


def mobile(path: Path) -> Path:
    """Make a network like MobileNetV3: inverted residuals, squeeze-excite, HardSwish. ``x`` [N,3,96,96]."""
    net = Network(96)
    net.conv(16, 3, 2)
    net.add("HardSwish")
    for block in MOBILE:
        _inverted_residual(net, block)
    net.conv(288)
    net.add("HardSwish")
    return net.save(path)


def chain(path: Path, blocks: int) -> Path:
    """Write a chain of residual blocks, of three nodes each: only their number matters."""
    net = Network(size=8)
    net.conv(8)
    for _ in range(blocks):
        before = net.tensor
        net.conv(8, 3)
        net.add("Relu")
        net.add("Add", before)
    return net.save(path)


def _inverted_residual(net: Network, block: Block) -> None:
    inside, given, kernel, stride = block
    skip, channels = net.tensor, net.channels
    net.conv(inside)
    net.add("HardSwish")
    net.conv(inside, kernel, stride, groups=inside)
    features = net.add("HardSwish")
    net.add("GlobalAveragePool")
    net.conv(inside // 4)
    net.add("Relu")
    net.conv(inside)
    net.add("HardSigmoid", alpha=1 / 6)
    net.add("Mul", features)
    net.conv(given)
    if stride == 1 and channels == given:
        net.add("Add", skip)
