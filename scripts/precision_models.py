"""Models for the precision benchmark: small networks that float16 breaks, and a detector in float16."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.parser
from numpy.typing import NDArray
from onnx import numpy_helper

if TYPE_CHECKING:
    import torch

Array = NDArray[Any]
Random = np.random.Generator
Feeds = dict[str, Array]

WEIGHTS = np.random.default_rng(7)


@dataclass(frozen=True)
class HardNetwork:
    """A network on which a careless conversion to float16 fails.

    Attributes:
        danger: what is hard in it.
        text: its graph, in the syntax of `onnx.parser`; names that nothing computes are weights.
        feeds: makes the inputs of one run; the danger is real on them.
        weights: the weights by name.
    """

    danger: str
    text: str
    feeds: Callable[[Random], Feeds]
    weights: Mapping[str, Array] = field(default_factory=dict)

    def save(self, path: Path) -> Path:
        """Write the model, and return its path."""
        model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 18]>\ng {self.text}')
        model.graph.initializer.extend(
            numpy_helper.from_array(array, name) for name, array in self.weights.items()
        )
        for index, node in enumerate(model.graph.node):  # peers make names of these
            node.name = f"{node.op_type}_{index}"
        onnx.checker.check_model(model)
        onnx.save(model, path)
        return path


def _normal(*shape: int, scale: float = 1.0) -> Array:
    return WEIGHTS.normal(0, scale, shape).astype(np.float32)


def _rows(random: Random) -> Feeds:
    return {"x": random.normal(size=(16, 64)).astype(np.float32)}


def _small_rows(random: Random) -> Feeds:
    """Rows of sizes from 1e-5 to 1, and one of zeros."""
    sizes = np.geomspace(1e-5, 1, 16)
    sizes[3] = 0
    return {"x": (random.normal(size=(16, 64)) * sizes[:, None]).astype(np.float32)}


def _either_branch(random: Random) -> Feeds:
    return {**_rows(random), "cond": random.random(1) < 0.5}


def _small_channels(random: Random) -> Feeds:
    """Channels whose deviations are those of the BatchNorm."""
    spread = np.sqrt(_VARIANCES)[None, :, None, None]
    return {"x": (random.normal(size=(1, 16, 12, 12)) * spread).astype(np.float32)}


def _masked(random: Random) -> Feeds:
    length = int(random.integers(4, 32))
    tokens = random.normal(size=(2, 32, 64)).astype(np.float32)
    return {"x": tokens, "mask": np.tile(np.arange(32) < length, (2, 1)).astype(np.int64)}


def _positions(random: Random) -> Feeds:
    start = int(random.integers(0, 4000))
    tokens = random.normal(size=(1, 64, 64)).astype(np.float32)
    return {"x": tokens, "position": np.arange(start, start + 64, dtype=np.int64)[None]}


def _long_rows(random: Random) -> Feeds:
    return {"x": np.abs(random.normal(0, 10, (4, 16384))).astype(np.float32)}


_VARIANCES = np.geomspace(1e-10, 1e-2, 16).astype(np.float32)

HARD: Mapping[str, HardNetwork] = {
    "large": HardNetwork(
        "activations reach 1e5",
        "(float[N,64] x) => (float[N,32] y) { h = MatMul(x, w) a = Relu(h) y = MatMul(a, v) }",
        _rows,
        {"w": _normal(64, 64, scale=4e3), "v": _normal(64, 32, scale=1e-3)},
    ),
    "epsilon": HardNetwork(
        "epsilon 1e-7 below small and zero variances",
        """(float[N,64] x) => (float[N,32] y) {
            q = Mul(x, x) m = ReduceMean <keepdims = 1> (q, last) e = Add(m, eps)
            s = Sqrt(e) d = Div(x, s) y = MatMul(d, w)
        }""",
        _small_rows,
        {"w": _normal(64, 32), "eps": np.array([1e-7], np.float32), "last": np.array([-1])},
    ),
    "powers": HardNetwork(
        "Exp of a power reaches 2e5",
        """(float[N,64] x) => (float[N,32] y) {
            p = Pow(x, three) s = Mul(p, scale) e = Exp(s) f = Add(e, one) g = Log(f) y = MatMul(g, w)
        }""",
        lambda random: {"x": random.uniform(-3, 3, (16, 64)).astype(np.float32)},
        {"w": _normal(64, 32), "three": np.float32(3), "scale": np.float32(0.45), "one": np.float32(1)},
    ),
    "if": HardNetwork(
        "large activations in a branch of If",
        """(float[16,64] x, bool[1] cond) => (float[16,32] y) {
            h = MatMul(x, u)
            y = If (cond) <
                then_branch = one () => (float[16,32] a) { b = MatMul(h, w) c = Relu(b) a = MatMul(c, v) },
                else_branch = other () => (float[16,32] d) { d = MatMul(h, t) }
            >
        }""",
        _either_branch,
        {
            "u": _normal(64, 64, scale=0.1),
            "w": _normal(64, 64, scale=4e3),
            "v": _normal(64, 32, scale=1e-3),
            "t": _normal(64, 32),
        },
    ),
    "loop": HardNetwork(
        "a state that a Loop carries doubles past 65504",
        """(float[N,64] x) => (float[N,32] y) {
            h = MatMul(x, u)
            s = Loop (times, yes, h) <
                body = step (int64 i, bool go, float[N,64] before) => (bool on, float[N,64] after) {
                    on = Identity(go) after = Add(before, before)
                }
            >
            n = Mul(s, down) y = MatMul(n, w)
        }""",
        _rows,
        {
            "u": _normal(64, 64),
            "w": _normal(64, 32),
            "times": np.array(14),
            "yes": np.array(True),
            "down": np.float32(2**-14),
        },
    ),
    "stored-half": HardNetwork(
        "weights in float16 behind Cast, of a model in float32",
        """(float[N,64] x) => (float[N,32] y) {
            a = Cast <to = 1> (w) h = MatMul(x, a) r = Relu(h) b = Cast <to = 1> (v) y = MatMul(r, b)
        }""",
        _rows,
        {"w": _normal(64, 64).astype(np.float16), "v": _normal(64, 32).astype(np.float16)},
    ),
    "batchnorm": HardNetwork(
        "a BatchNorm of the input, epsilon 1e-12, variances from 1e-10",
        """(float[1,16,12,12] x) => (float[1,8,12,12] y) {
            b = BatchNormalization <epsilon = 1e-12> (x, gamma, beta, mean, var) r = Relu(b) y = Conv(r, w)
        }""",
        _small_channels,
        {
            "gamma": np.ones(16, np.float32),
            "beta": _normal(16),
            "mean": np.zeros(16, np.float32),
            "var": _VARIANCES,
            "w": _normal(8, 16, 1, 1),
        },
    ),
    "mask": HardNetwork(
        "an attention mask of -3.4e38",
        """(float[2,32,64] x, int64[2,32] mask) => (float[2,32,64] y) {
            m = Cast <to = 1> (mask) f = Sub(one, m) g = Mul(f, lowest) k = Unsqueeze(g, middle)
            t = Transpose <perm = [0, 2, 1]> (x) p = MatMul(x, t) s = Mul(p, scale) a = Add(s, k)
            q = Softmax <axis = -1> (a) y = MatMul(q, x)
        }""",
        _masked,
        {
            "one": np.float32(1),
            "lowest": np.finfo(np.float32).min,
            "middle": np.array([1]),
            "scale": np.float32(0.125),
        },
    ),
    "rotary": HardNetwork(
        "angles of positions up to 4063",
        """(float[1,64,64] x, int64[1,64] position) => (float[1,64,64] y) {
            p = Cast <to = 1> (position) u = Unsqueeze(p, last) a = MatMul(u, frequency)
            c = Cos(a) s = Sin(a) h, t = Split <axis = -1, num_outputs = 2> (x)
            hc = Mul(h, c) ts = Mul(t, s) hs = Mul(h, s) tc = Mul(t, c)
            one = Sub(hc, ts) two = Add(hs, tc) y = Concat <axis = -1> (one, two)
        }""",
        _positions,
        {"frequency": (10000.0 ** (-np.arange(32) / 32))[None].astype(np.float32), "last": np.array([-1])},
    ),
    "sum": HardNetwork(
        "a sum of 16,384 numbers reaches 1.3e5",
        """(float[N,16384] x) => (float[N,16] y) {
            s = ReduceSum <keepdims = 1> (x, last) m = Mul(s, share) y = MatMul(m, w)
        }""",
        _long_rows,
        {"w": _normal(1, 16), "share": np.float32(1 / 16384), "last": np.array([-1])},
    ),
}


def detectors(folder: Path) -> tuple[Path, Path]:
    """Export a small detector with random weights in float32 and in float16: ``x`` [1,3,128,128].

    It has two scales, SiLU, Upsample and Concat, and decodes boxes with a grid, as those of the YOLO family.

    Returns:
        The two files.
    """
    import torch

    torch.manual_seed(0)
    module = _detector().eval()
    with torch.no_grad():  # else activations fade, and boxes are those of the grid
        for parameter in (each for each in module.parameters() if each.ndim > 1):
            torch.nn.init.kaiming_normal_(parameter).mul_(1.2)
    paths = folder / "detector.onnx", folder / "detector-half.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path, dtype in zip(paths, (torch.float32, torch.float16), strict=True):
            torch.onnx.export(
                module.to(dtype),
                (torch.zeros(1, 3, 128, 128, dtype=dtype),),
                path,
                dynamo=True,
                external_data=False,
                input_names=["input"],
                output_names=["boxes", "scores"],
                verbose=False,
            )
    return paths


def _detector() -> torch.nn.Module:
    import torch
    from torch import Tensor, nn

    def conv(given: int, made: int, stride: int = 1) -> nn.Module:
        return nn.Sequential(nn.Conv2d(given, made, 3, stride, 1), nn.BatchNorm2d(made), nn.SiLU())

    class Head(nn.Module):
        """Boxes and scores of one scale."""

        def __init__(self, channels: int, side: int) -> None:
            super().__init__()
            self.before, self.last, self.stride = conv(channels, 64), nn.Conv2d(64, 12, 1), 128 // side
            steps = torch.arange(side, dtype=torch.float32)
            grid = torch.stack(torch.meshgrid(steps, steps, indexing="xy")).reshape(1, 2, -1)
            self.register_buffer("grid", grid)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            found = self.last(self.before(x)).flatten(2).sigmoid()
            centre = (found[:, :2] * 2 - 0.5 + self.grid) * self.stride
            size = (found[:, 2:4] * 2) ** 2 * self.stride
            return torch.cat((centre - size / 2, centre + size / 2), 1), found[:, 4:]

    class Detector(nn.Module):
        """Two scales, the finer of which also sees the coarser."""

        def __init__(self) -> None:
            super().__init__()
            self.fine = nn.Sequential(conv(3, 16, 2), conv(16, 32, 2), conv(32, 64, 2), conv(64, 64))
            self.coarse = nn.Sequential(conv(64, 128, 2), conv(128, 128))
            self.up = nn.Upsample(scale_factor=2, mode="nearest")
            self.heads = nn.ModuleList([Head(192, 16), Head(128, 8)])

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            fine = self.fine(x)
            coarse = self.coarse(fine)
            both = torch.cat((self.up(coarse), fine), 1)
            boxes, scores = zip(self.heads[0](both), self.heads[1](coarse), strict=True)
            return torch.cat(boxes, 2), torch.cat(scores, 2)

    return Detector()
