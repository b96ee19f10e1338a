"""Channels of zeros in front of convolutions: where, and that nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
from flow import optimized, quantize, quantize_and_check
from graphs import assert_same_outputs, op_counts, parse

import onnxq
from onnxq.graph.files import load, write
from onnxq.graph.nodes import all_nodes, constant_value
from onnxq.graph.ort_rewrites import adds_before_layernorm, unfuse_layernorm_adds
from onnxq.graph.passes.shapes import InferShapesPass
from onnxq.graph.qdq.insert_qdq import as_written, insert_qdq


def stem(channels: int = 3, outputs: int = 16, group: int = 1, size: str = "14, 14", other: str = ""):
    """A convolution that reads the input, and after it what makes it worth its integers."""
    return parse(
        f"""g (float[N, {channels}, {size}] x) => (float[N, 10] y{", float[N, A, B, C] z" if other else ""})
        <float[{outputs}, {channels // group}, 3, 3] w, float[{outputs}] b, float[10, {outputs}] v, float[10] d>
        {{ c = Conv<pads=[1, 1, 1, 1], group={group}>(x, w, b)  r = Relu(c)  p = GlobalAveragePool(r)
           f = Flatten(p)  y = Gemm<transB=1>(f, v, d)  {other} }}"""
    )


def written(model, **options):
    """As it is without the zeros, and with them."""
    flow = quantize(model, **options)
    return insert_qdq(flow.simple, flow.plan), flow.int8


@pytest.mark.parametrize("channels", [1, 2, 3, 5, 6])
@pytest.mark.parametrize("options", [{}, {"weight": "uint8"}, {"per_tensor": True}], ids=str)
def test_pictures_get_channels_of_zeros(channels, options):
    before, after = written(stem(channels), **options)
    assert op_counts(after)["Pad"] == 1
    assert_same_outputs(before, after)
    shapes = [v.shape for name, v in after.graph.initializers.items() if name.startswith("w_quantized")]
    assert [shape[1] for shape in shapes] == [-(-channels // 4) * 4]


@pytest.mark.parametrize(
    "model",
    [
        stem(channels=4),
        stem(channels=8),
        stem(outputs=8),
        stem(channels=48, outputs=16, group=16),
        stem(other="k = Conv(x, w, b)  q = Relu(k)  z = GlobalAveragePool(q)"),
    ],
    ids=["four", "eight", "few outputs", "groups", "two readers"],
)
def test_others_stay_as_they_are(model):
    before, after = written(model)
    assert op_counts(after) == op_counts(before)


def test_between_integers_nothing_is_put():
    """After a layer, Q fuses with it."""
    model = parse(
        """g (float[N, 4, 14, 14] x) => (float[N, 10] y)
        <float[6, 4, 1, 1] u, float[6] a, float[16, 6, 3, 3] w, float[16] b, float[10, 16] v, float[10] d>
        { s = Conv(x, u, a)  t = Relu(s)  c = Conv(t, w, b)  r = Relu(c)  p = GlobalAveragePool(r)
          f = Flatten(p)  y = Gemm<transB=1>(f, v, d) }"""
    )
    before, after = written(model)
    assert op_counts(after) == op_counts(before)


def test_what_is_not_known_of_the_shape_does_not_matter():
    before, after = written(stem(size="H, W"))
    assert op_counts(after)["Pad"] == 1
    assert_same_outputs(before, after)


@pytest.mark.parametrize("target", ["tensorrt", "openvino", "qnn"])
def test_other_targets_read_what_there_is(target):
    _, after = written(stem(), target=target)
    assert "Pad" not in op_counts(after)


def test_the_model_given_stays_as_it_is():
    flow = quantize(stem())
    weights = constant_value(flow.simple.graph.initializers["w"]).copy()
    as_written(flow.simple, flow.plan)
    assert op_counts(flow.simple) == {"Conv": 1, "Relu": 1, "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1}
    assert np.array_equal(constant_value(flow.simple.graph.initializers["w"]), weights)


NORM = "z = LayerNormalization<axis=-1>(s, g, b)"


OLD_NORM = """m = ReduceMean<axes=[-1]>(s)  d = Sub(s, m)  q = Mul(d, d)  v = ReduceMean<axes=[-1]>(q)
    e = Add(v, tiny)  r = Sqrt(e)  n = Div(d, r)  n2 = Mul(n, g)  z = Add(n2, b)"""


def encoder(norm: str = NORM, total: str = "s = Add(p, x)", opset: int = 17, outputs: str = ""):
    """A linear layer, and the sum of what goes in and comes out, normalized."""
    return parse(
        f"""g (float[N,M,64] x) => (float[N,M,64] z{outputs})
        <float[64,64] w, float[64] g, float[64] b, float[64] c, float[1] tiny>
        {{ p = MatMul(x, w)  {total}  {norm} }}""",
        opset=opset,
        check=not outputs,
    )


def half():
    """An encoder in float16."""
    return parse(
        """g (float16[N,M,64] x, float16[N,M,64] p, float16[64] g, float16[64] b) => (float16[N,M,64] z)
        { s = Add(p, x)  z = LayerNormalization<axis=-1>(s, g, b) }""",
        opset=17,
    )


def named(model) -> set:
    """The outputs of the Adds that are found."""
    InferShapesPass()(model)
    for number, node in enumerate(model.graph):
        node.name = f"node {number}"
    found = adds_before_layernorm(model)
    return {node.outputs[0].name for node in all_nodes(model) if node.name in found}


@pytest.mark.parametrize(("norm", "opset"), [(NORM, 17), (OLD_NORM, 13)])
def test_a_sum_that_only_a_norm_reads_is_found(norm, opset):
    assert named(encoder(norm, opset=opset)) == {"s"}


@pytest.mark.parametrize(
    "model",
    [
        encoder(total="s = Add(p, c)"),  # a bias
        encoder(total="s = Mul(p, x)"),
        encoder(norm=f"{NORM} t = Neg(s)", outputs=", float[N,M,64] t"),
        encoder(outputs=", float[N,M,64] s"),
        encoder(norm="z = Softmax(s)"),
        half(),
    ],
    ids=["bias", "no sum", "another reader", "graph output", "no norm", "float16"],
)
def test_other_sums_are_left_alone(model):
    assert named(model) == set()


def test_the_outputs_stay_the_same():
    model, changed = encoder(), encoder()
    InferShapesPass()(changed)
    for number, node in enumerate(changed.graph):
        node.name = f"node {number}"
    unfuse_layernorm_adds(changed, adds_before_layernorm(changed))
    assert op_counts(changed)["Sum"] == 1
    assert "Add" not in op_counts(changed)
    assert_same_outputs(model, changed)


def test_onnxruntime_does_not_fuse_them():
    flow = quantize_and_check(encoder(), "onnxruntime")
    kernels = [node.op_type for node in optimized(flow.int8).graph.node]
    assert "SkipLayerNormalization" not in kernels
    assert {"Sum", "LayerNormalization", "MatMulIntegerToFloat"} <= set(kernels)


def test_other_targets_keep_their_adds():
    flow = quantize_and_check(encoder(), "tensorrt")
    assert "Sum" not in op_counts(flow.int8)


def test_dynamic_quantization_does_it_too(tmp_path):
    write(encoder(), tmp_path / "float.onnx")
    onnxq.quantize_dynamic(tmp_path / "float.onnx", tmp_path / "int8.onnx")
    assert op_counts(load(tmp_path / "int8.onnx"))["Sum"] == 1


def test_pictures_in_half_precision_get_channels_of_zeros_too():
    before = parse(
        """g (float16[N, 3, 14, 14] x) => (float16[N, 10] y)
        <float16[16, 3, 3, 3] w, float16[16] b, float16[16, 10] v>
        { c = Conv<pads=[1, 1, 1, 1]>(x, w, b)  r = Relu(c)  p = GlobalAveragePool(r)
          f = Flatten(p)  y = MatMul(f, v) }"""
    )
    assert op_counts(written(before)[1])["Pad"] == 1
