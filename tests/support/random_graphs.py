"""Random convolutional networks: any mixture of layers, with branches, fan-out and several outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx.checker
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

OPSET = 17

Shape = tuple[int, int, int, int]


@dataclass
class Builder:
    """A graph that grows; ``alive`` are the tensors so far, batch x channels x height x width."""

    rng: np.random.Generator
    alive: dict[str, Shape] = field(default_factory=dict)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    count: int = 0

    def name(self, prefix: str) -> str:
        self.count += 1
        return f"{prefix}{self.count}"

    def const(self, array) -> str:
        name = self.name("k")
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def weight(self, *shape: int) -> str:
        """Scaled so that activations neither grow nor fade."""
        fan = max(int(np.prod(shape[1:])), 1)
        return self.const((self.rng.standard_normal(shape) * np.sqrt(1.5 / fan)).astype(np.float32))

    def add(self, op: str, *inputs: str, shape: Shape, **attributes) -> str:
        """A node; its output is alive from now on if it is no empty tensor."""
        out = self.name("t")
        self.nodes.append(helper.make_node(op, list(inputs), [out], name=f"{op}_{out}", **attributes))
        self.alive[out] = shape
        return out

    def pick(self) -> tuple[str, Shape]:
        """A tensor, a late one more often than an early one."""
        names = list(self.alive)
        name = names[-1 - min(int(self.rng.geometric(0.5)) - 1, len(names) - 1)]
        return name, self.alive[name]

    def partner(self, name: str, axes: tuple[int, ...]) -> str | None:
        """Another tensor that agrees with this one on these axes."""
        shape = self.alive[name]
        fits = [n for n, s in self.alive.items() if n != name and all(s[a] == shape[a] for a in axes)]
        return str(self.rng.choice(fits)) if fits else None


def conv(b: Builder, x: str, s: Shape) -> None:
    out = int(b.rng.choice([4, 8, 16]))
    kernel = int(b.rng.choice([1, 3])) if min(s[2:]) >= 3 else 1
    pad, stride = kernel // 2, int(b.rng.choice([1, 2])) if min(s[2:]) >= 4 else 1
    group = int(b.rng.choice([1, 1, 2, s[1]]))
    if out % group or s[1] % group:
        group = 1
    inputs = [x, b.weight(out, s[1] // group, kernel, kernel)]
    if b.rng.random() < 0.7:
        inputs.append(b.weight(out))
    h, w = (-(-side // stride) for side in s[2:])
    y = b.add("Conv", *inputs, shape=(s[0], out, h, w), group=group, strides=[stride] * 2, pads=[pad] * 4)
    choice = b.rng.random()
    if choice < 0.4:
        unary("Relu")(b, y, b.alive[y])
    elif choice < 0.6:
        relu6(b, y, b.alive[y])


def conv_transpose(b: Builder, x: str, s: Shape) -> None:
    if s[2] <= 8:
        shape = (s[0], 4, 2 * s[2], 2 * s[3])
        b.add("ConvTranspose", x, b.weight(s[1], 4, 2, 2), b.weight(4), shape=shape, strides=[2, 2])


def unary(op: str, **attributes) -> Callable[[Builder, str, Shape], None]:
    def grow(b: Builder, x: str, s: Shape) -> None:
        b.add(op, x, shape=s, **attributes)

    return grow


def relu6(b: Builder, x: str, s: Shape) -> None:
    b.add("Clip", x, b.const(np.float32(0)), b.const(np.float32(b.rng.choice([1, 6]))), shape=s)


def clip(b: Builder, x: str, s: Shape) -> None:
    low = b.rng.choice([-1, 0.25])
    b.add("Clip", x, b.const(np.float32(low)), b.const(np.float32(low + 2)), shape=s)


def binary(op: str) -> Callable[[Builder, str, Shape], None]:
    def grow(b: Builder, x: str, s: Shape) -> None:
        other = b.partner(x, (0, 1, 2, 3)) or x
        b.add(op, *(str(v) for v in b.rng.permutation([x, other])), shape=s)

    return grow


def with_constant(op: str) -> Callable[[Builder, str, Shape], None]:
    def grow(b: Builder, x: str, s: Shape) -> None:
        shape = [(1, s[1], 1, 1), (), s[1:]][b.rng.integers(3)]
        b.add(op, x, b.const(b.rng.normal(1, 0.5, shape).astype(np.float32)), shape=s)

    return grow


def gate(b: Builder, x: str, s: Shape) -> None:
    squeezed = b.add("GlobalAveragePool", x, shape=(s[0], s[1], 1, 1))
    hidden = b.add("Conv", squeezed, b.weight(s[1], s[1], 1, 1), shape=(s[0], s[1], 1, 1))
    open_ = b.add(str(b.rng.choice(["Sigmoid", "HardSigmoid", "Tanh"])), hidden, shape=(s[0], s[1], 1, 1))
    b.add("Mul", x, open_, shape=s)


def silu(b: Builder, x: str, s: Shape) -> None:
    b.add("Mul", x, b.add(str(b.rng.choice(["Sigmoid", "HardSigmoid"])), x, shape=s), shape=s)


def concat(b: Builder, x: str, s: Shape) -> None:
    other = b.partner(x, (0, 2, 3)) or x
    channels = s[1] + b.alive[other][1]
    if channels <= 48:
        b.add("Concat", x, other, shape=(s[0], channels, *s[2:]), axis=1)


def pool(op: str) -> Callable[[Builder, str, Shape], None]:
    def grow(b: Builder, x: str, s: Shape) -> None:
        if min(s[2:]) < 3:
            return
        attributes = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]}
        if op == "AveragePool":
            attributes["count_include_pad"] = int(b.rng.integers(2))
        b.add(op, x, shape=(s[0], s[1], -(-s[2] // 2), -(-s[3] // 2)), **attributes)

    return grow


def upsample(b: Builder, x: str, s: Shape) -> None:
    if s[2] <= 8:
        mode = str(b.rng.choice(["nearest", "linear"]))
        scales = b.const(np.array([1, 1, 2, 2], np.float32))
        b.add("Resize", x, "", scales, shape=(s[0], s[1], 2 * s[2], 2 * s[3]), mode=mode)


def flip(b: Builder, x: str, s: Shape) -> None:
    b.add("Transpose", x, shape=(s[0], s[1], s[3], s[2]), perm=[0, 1, 3, 2])


def shuffle(b: Builder, x: str, s: Shape) -> None:
    if s[1] % 2:
        return
    split = b.const(np.array([s[0], 2, s[1] // 2, s[2], s[3]]))
    five, swapped = b.name("five"), b.name("swapped")
    b.nodes.append(helper.make_node("Reshape", [x, split], [five], name=five))
    b.nodes.append(helper.make_node("Transpose", [five], [swapped], name=swapped, perm=[0, 2, 1, 3, 4]))
    b.add("Reshape", swapped, b.const(np.array(s)), shape=s)


def split(b: Builder, x: str, s: Shape) -> None:
    if s[1] % 2 == 0:
        outs = [b.name("t"), b.name("t")]
        b.nodes.append(helper.make_node("Split", [x], outs, name=f"Split_{outs[0]}", axis=1))
        b.alive |= dict.fromkeys(outs, (s[0], s[1] // 2, s[2], s[3]))


def crop(b: Builder, x: str, s: Shape) -> None:
    if s[2] > 2:
        inputs = (b.const(np.array([v])) for v in (1, s[2], 2))
        b.add("Slice", x, *inputs, shape=(s[0], s[1], s[2] - 1, s[3]))


def batchnorm(b: Builder, x: str, s: Shape) -> None:
    parts = [b.const(b.rng.uniform(0.5, 1.5, s[1]).astype(np.float32)) for _ in range(4)]
    b.add("BatchNormalization", x, *parts, shape=s)


def matmul(b: Builder, x: str, s: Shape) -> None:
    y = b.add("MatMul", x, b.weight(s[3], 6), shape=(*s[:3], 6))
    if b.rng.random() < 0.5:
        b.add("Add", y, b.weight(6), shape=(*s[:3], 6))


def attend(b: Builder, x: str, s: Shape) -> None:
    transposed = b.add("Transpose", x, shape=(s[0], s[1], s[3], s[2]), perm=[0, 1, 3, 2])
    scores = b.add("MatMul", x, transposed, shape=(s[0], s[1], s[2], s[2]))
    b.add("Softmax", scores, shape=(s[0], s[1], s[2], s[2]), axis=-1)


def padded_conv(b: Builder, x: str, s: Shape) -> None:
    """Nothing else reads the padded tensor: ONNX Runtime pads a MaxPool after it with -inf instead of 0."""
    sides = b.const(np.array([0, 0, 1, 1, 0, 0, 1, 1]))
    wide = b.add("Pad", x, sides, shape=(s[0], s[1], s[2] + 2, s[3] + 2))
    shape = b.alive.pop(wide)
    b.add("Conv", wide, b.weight(4, s[1], 1, 1), shape=(s[0], 4, *shape[2:]))


LAYERS: Mapping[Callable[[Builder, str, Shape], None], int] = {
    conv: 20,
    matmul: 3,
    conv_transpose: 1,
    unary("Relu"): 3,
    relu6: 2,
    clip: 1,
    unary("LeakyRelu", alpha=0.1): 2,
    unary("Sigmoid"): 1,
    unary("Tanh"): 1,
    unary("HardSwish"): 1,
    unary("Identity"): 1,
    binary("Add"): 6,
    binary("Mul"): 2,
    binary("Sub"): 1,
    with_constant("Add"): 2,
    with_constant("Mul"): 2,
    gate: 2,
    silu: 2,
    concat: 5,
    pool("MaxPool"): 2,
    pool("AveragePool"): 2,
    upsample: 2,
    flip: 1,
    shuffle: 2,
    split: 2,
    crop: 1,
    batchnorm: 2,
    attend: 1,
    padded_conv: 1,
}
"""How often each is chosen."""


def random_model(seed: int, layers: int = 14) -> ir.Model:
    """A valid model with at least one convolution; the same for the same seed."""
    b = Builder(np.random.default_rng(seed))
    inputs = {"x": (2, 4, 8, 8)} if b.rng.random() < 0.7 else {"x": (2, 4, 8, 8), "z": (2, 8, 8, 8)}
    b.alive |= inputs
    conv(b, "x", inputs["x"])
    odds = np.array(list(LAYERS.values())) / sum(LAYERS.values())
    for index in b.rng.choice(len(LAYERS), layers, p=odds):
        list(LAYERS)[index](b, *b.pick())
    return ir.from_proto(_finish(b, inputs))


def _finish(b: Builder, inputs: Mapping[str, Shape]) -> onnx.ModelProto:
    """All tensors that nobody reads are outputs, and a few others."""
    read = {name for node in b.nodes for name in node.input}
    made = {name: shape for name, shape in b.alive.items() if name not in inputs}
    outputs = [name for name in made if name not in read or b.rng.random() < 0.1]
    tensor = helper.make_tensor_value_info
    graph = helper.make_graph(
        b.nodes,
        "random",
        [tensor(name, TensorProto.FLOAT, shape) for name, shape in inputs.items() if name in read],
        [tensor(name, TensorProto.FLOAT, made[name]) for name in outputs],
        b.weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model
