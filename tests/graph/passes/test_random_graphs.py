"""Graphs put together at random from what the passes look for: cleaning never changes the outputs."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx
import onnx.checker
import onnx_ir as ir
from graphs import assert_same_outputs, parse
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.graph.passes import simplify

CHANNELS = 4


@dataclass
class Builder:
    """The text of a graph of images with four channels, node by node."""

    draw: st.DrawFn
    nodes: list[str] = field(default_factory=list)
    tensors: list[str] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=lambda: {"x": 9})

    def weight(self, kind: str, name: str = "w") -> str:
        name = f"{name}{len(self.tensors)}"
        self.tensors.append(f"{kind} {name}")
        return name

    def add(self, operator: str, *inputs: str, size: int) -> None:
        name = f"t{len(self.nodes)}"
        self.nodes.append(f"{name} = {operator} ({', '.join(inputs)})")
        self.sizes[name] = size

    def source(self) -> str:
        """The newest tensor most of the time."""
        names = list(self.sizes)
        return names[-1] if self.draw(st.integers(0, 4)) else self.draw(st.sampled_from(names))


def conv(b: Builder) -> None:
    x = b.source()
    kernel, pad, group = (
        b.draw(st.sampled_from([1, 3])),
        b.draw(st.integers(0, 1)),
        b.draw(st.sampled_from([1, 2, 4])),
    )
    size = b.sizes[x] + 2 * pad - kernel + 1
    if size < 1:
        return
    inputs = [x, b.weight(f"float[{CHANNELS},{CHANNELS // group},{kernel},{kernel}]")]
    if b.draw(st.booleans()):
        inputs.append(b.weight(f"float[{CHANNELS}]"))
    b.add(f"Conv <group={group}, pads=[{pad},{pad},{pad},{pad}]>", *inputs, size=size)


def conv_transpose(b: Builder) -> None:
    x = b.source()
    group = b.draw(st.sampled_from([1, 2]))
    w = b.weight(f"float[{CHANNELS},{CHANNELS // group},2,2]")
    b.add(f"ConvTranspose <group={group}>", x, w, size=b.sizes[x] + 1)


def batchnorm(b: Builder) -> None:
    x = b.source()
    statistics = [b.weight(f"float[{CHANNELS}]", name) for name in ("s", "b", "m", "var")]
    b.add("BatchNormalization", x, *statistics, size=b.sizes[x])


def arithmetic(b: Builder) -> None:
    x = b.source()
    shape = b.draw(
        st.sampled_from(["", "[1]", f"[{CHANNELS},1,1]", f"[1,{CHANNELS},1,1]", f"[{b.sizes[x]}]"])
    )
    operator = b.draw(st.sampled_from(["Add", "Sub", "Mul", "Div"]))
    operands = [x, b.weight(f"float{shape}", "var")]
    if operator != "Div" and b.draw(st.booleans()):
        operands.reverse()
    b.add(operator, *operands, size=b.sizes[x])


def two(b: Builder) -> None:
    x = b.source()
    others = [name for name, size in b.sizes.items() if size == b.sizes[x]]
    b.add(b.draw(st.sampled_from(["Add", "Sum"])), x, b.draw(st.sampled_from(others)), size=b.sizes[x])


def simple(b: Builder) -> None:
    x = b.source()
    b.add(
        b.draw(st.sampled_from(["Relu", "Sigmoid", "Neg", "Identity", "Dropout", "Tanh"])), x, size=b.sizes[x]
    )


def pad(b: Builder) -> None:
    x = b.source()
    before, after = b.draw(st.integers(0, 2)), b.draw(st.integers(0, 2))
    pads = b.weight("int64[8]", "p") + f" = {{0,0,{before},{before},0,0,{after},{after}}}"
    b.tensors[-1] = f"int64[8] {pads}"
    b.add("Pad", x, pads.split()[0], size=b.sizes[x] + before + after)


def pool(b: Builder) -> None:
    x = b.source()
    kernel, own = b.draw(st.integers(2, 3)), b.draw(st.integers(0, 1))
    size = b.sizes[x] + 2 * own - kernel + 1
    if size < 1:
        return
    operator = b.draw(st.sampled_from(["MaxPool <", "AveragePool <", "AveragePool <count_include_pad=1, "]))
    attributes = f"kernel_shape=[{kernel},{kernel}], pads=[{own},{own},{own},{own}]>"
    b.add(operator + attributes, x, size=size)


STEPS = (conv, conv, conv_transpose, batchnorm, batchnorm, arithmetic, arithmetic, two, simple, pad, pool)


@st.composite
def models(draw: st.DrawFn) -> ir.Model:
    b = Builder(draw)
    for _ in range(draw(st.integers(1, 9))):
        draw(st.sampled_from(STEPS))(b)
    if not b.nodes:
        simple(b)
    names = [name for name in b.sizes if name != "x"]
    outputs = dict.fromkeys([names[-1], *draw(st.lists(st.sampled_from(names), max_size=2))])
    results = ", ".join(f"float[N,{CHANNELS},{b.sizes[o]},{b.sizes[o]}] {o}" for o in outputs)
    tensors = f"<{', '.join(b.tensors)}>" if b.tensors else ""
    return parse(f"g (float[N,{CHANNELS},9,9] x) => ({results}) {tensors} {{ {' '.join(b.nodes)} }}")


@settings(max_examples=80)
@given(models())
def test_cleaning_changes_no_output(before):
    after = simplify(before)
    onnx.checker.check_model(ir.to_proto(after))
    assert_same_outputs(before, after, tolerance=1e-5)
    again = simplify(after)
    assert [n.op_type for n in again.graph] == [n.op_type for n in after.graph]
