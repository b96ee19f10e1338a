"""Whatever factors the channels get, the float model computes what it did; what must stay stays."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graphs import assert_same_outputs, parse

from onnxq.algorithms.channels import find_channels
from onnxq.algorithms.folding import folded
from onnxq.algorithms.linear import RULES
from onnxq.algorithms.reshaping import reshaped
from onnxq.passes.infer_shapes import InferShapesPass
from onnxq.passes.unique_names import UniqueNamesPass

CONV = "<float[8,3,3,3] w1, float[8] b1, {weights}> {{ a = Conv<pads=[1,1,1,1]>(x, w1, b1) {body} }}"
IMAGE = "g (float[N,3,8,8] x) => (float y) " + CONV
"""A convolution gives ``a``, [N, 8, 8, 8], whose channels are free."""

LAST = "y = Conv(t, w2)"
W2 = "float[4,8,1,1] w2"

CONVOLUTIONS = {
    "relu": ("", f"t = Relu(a) {LAST}"),
    "leaky": ("", f"t = LeakyRelu(a) {LAST}"),
    "prelu": ("float[8,1,1] slope", f"t = PRelu(a, slope) {LAST}"),
    "depthwise": ("float[8,1,3,3] d, float[8] bd", f"r = Conv<group=8>(a, d, bd) t = Relu(r) {LAST}"),
    "grouped": ("float[8,2,1,1] d, float[8] bd", f"r = Conv<group=4>(a, d, bd) t = Relu(r) {LAST}"),
    "transposed": ("float[8,2,2,2] d, float[8] bd", f"t = ConvTranspose<group=4>(a, d, bd) {LAST}"),
    "residual": ("float[8,8,1,1] d", f"r = Relu(a) c = Conv(r, d) t = Add(r, c) {LAST}"),
    "constant added": ("float[8,1,1] k", f"t = Add(k, a) {LAST}"),
    "number added": ("float k", f"t = Add(a, k) {LAST}"),
    "constant multiplied": ("float[1,8,1,1] k", f"t = Mul(a, k) {LAST}"),
    "divided": ("float[8,1,1] vark", f"t = Div(a, vark) {LAST}"),
    "number multiplied": ("float k", f"t = Mul(a, k) {LAST}"),
    "maximum": ("float[8,1,1] k", f"t = Max(a, k) {LAST}"),
    "pools": ("", f"p = MaxPool<kernel_shape=[2,2]>(a) t = AveragePool<kernel_shape=[2,2]>(p) {LAST}"),
    "global pool": ("", f"t = GlobalAveragePool(a) {LAST}"),
    "mean": ("", f"t = ReduceMean<axes=[2,3]>(a) {LAST}"),
    "squeeze-excite": (
        "float[8,8,1,1] d",
        f"p = GlobalAveragePool(a) c = Conv(p, d) s = Sigmoid(c) t = Mul(s, a) {LAST}",
    ),
    "split and joined": ("", f"l, r = Split<axis=1>(a) p = Relu(r) t = Concat<axis=1>(p, l) {LAST}"),
    "joined along space": ("", f"r = Relu(a) t = Concat<axis=2>(r, a) {LAST}"),
    "joined with a constant": (
        "float[2,1,8,8] k, float[4,9,1,1] w3",
        "t = Concat<axis=1>(a, k) y = Conv(t, w3)",
    ),
    "flattened": ("float[512,4] m, float[4] bm", "t = Flatten(a) y = Gemm(t, m, bm)"),
    "batch normalization": (
        "float[8] k, float[8] bk, float[8] mean, float[8] var",
        f"t = BatchNormalization(a, k, bk, mean, var) {LAST}",
    ),
    "instance normalization": ("float[8] k, float[8] bk", f"t = InstanceNormalization(a, k, bk) {LAST}"),
    "transposed to matrices": (
        "float[8,4] m",
        "t = Transpose<perm=[0,2,3,1]>(a) y = MatMul(t, m)",
    ),
}


def image(weights: str, body: str) -> str:
    declared = ", ".join(w for w in (weights, W2 if "w2" in body else "") if w)
    return IMAGE.format(weights=declared, body=body)


def prepared(text, opset=13, **given):
    """A model with names and shapes, and otherwise as it is written."""
    model = parse(text, opset, **given)
    return InferShapesPass()(UniqueNamesPass()(model).model).model


def scaled(model, seed=0):
    """The model with random factors for all channels that may have some, and how many factors there are."""
    channels = find_channels(model, RULES)
    factors = np.exp(np.random.default_rng(seed).uniform(-1, 1, channels.count))
    factors[0] = 1
    return folded(model, channels, factors), channels


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_any_factors_leave_the_outputs_as_they_are(kind: str) -> None:
    model = prepared(image(*CONVOLUTIONS[kind]))
    changed, channels = scaled(model)
    assert channels.count > 4
    assert_same_outputs(model, changed, tolerance=1e-4)
    name = "k" if "normalization" in kind else "w1"
    before, after = (m.graph.initializers[name].const_value.numpy() for m in (model, changed))
    assert not np.allclose(before, after)


FIXED = {
    "graph output": "g (float[N,3,8,8] x) => (float y, float a) "
    + CONV.format(weights=W2, body="y = Conv(a, w2)"),
    "unknown operator": image("", f"s = Sigmoid(a) c = Conv(a, w2) t = Mul(s, a) {LAST}"),
    "second reader": image("", f"t = Relu(a) q = Softplus(a) {LAST} z = Add(q, q)").replace(
        "(float y)", "(float y, float z)"
    ),
    "clipped": image("float low, float six", f"t = Clip(a, low, six) {LAST}"),
    "padded with ones": image("int64[8] pads, float one", f"t = Pad(a, pads, one) {LAST}"),
    "shared weights": image("", "c = Conv(a, w2) q = Relu(a) d = Conv(q, w2) y = Add(c, d)"),
    "mean over channels": image("", f"m = ReduceMean<axes=[1]>(a) t = Sub(a, m) {LAST}"),
}
GIVEN = {
    "clipped": {"low": -1.0, "six": 6.0},
    "padded with ones": {"pads": [0, 0, 1, 1, 0, 0, 1, 1], "one": 1.0},
}


@pytest.mark.parametrize("kind", FIXED)
def test_what_nobody_can_make_up_for_stays(kind: str) -> None:
    model = prepared(FIXED[kind], **GIVEN.get(kind, {}))
    changed, channels = scaled(model)
    assert not channels.of("a").any()
    assert_same_outputs(model, changed, tolerance=1e-4)


def test_a_shared_bias_is_copied() -> None:
    text = image("float[8,8,1,1] d", f"c = Conv(a, d, b1) t = Relu(c) {LAST}")
    model = prepared(text)
    changed, _ = scaled(model)
    assert_same_outputs(model, changed, tolerance=1e-4)
    assert len(changed.graph.initializers) == len(model.graph.initializers) + 1


ATTENTION = """
g (float[N,5,8] x) => (float[N,5,6] y)
<float[8,8] wq, float[8,8] wk, float[8,8] wv, float[8] bv, float[8,6] wo, int64[4] split, int64[3] join> {
  q = MatMul(x, wq)  k = MatMul(x, wk)  v0 = MatMul(x, wv)  v = Add(v0, bv)
  kt = Transpose<perm=[0,2,1]>(k)  s = MatMul(q, kt)  p0 = Softmax<axis=-1>(s)  p = Unsqueeze(p0, one)
  v4 = Reshape(v, split)  vt = Transpose<perm=[0,2,1,3]>(v4)
  o = MatMul(p, vt)  ot = Transpose<perm=[0,2,1,3]>(o)  oj = Reshape(ot, join)  y = MatMul(oj, wo)
}
"""


def test_values_pass_through_attention() -> None:
    text = ATTENTION.replace("int64[3] join>", "int64[3] join, int64[1] one>")
    model = prepared(text, split=[0, 0, 2, 4], join=[0, 0, 8], one=[1])
    changed, channels = scaled(model)
    assert channels.count == 9
    assert_same_outputs(model, changed, tolerance=1e-4)


def test_layer_normalization_gives_factors_but_takes_none() -> None:
    text = """g (float[N,5,8] x) => (float[N,5,4] y)
    <float[8,8] w, float[8] k, float[8] b, float[8,4] w2> {
      a = MatMul(x, w)  t = LayerNormalization(a, k, b)  y = MatMul(t, w2)
    }"""
    model = prepared(text, opset=17)
    changed, channels = scaled(model)
    assert channels.of("t").any()
    assert not channels.of("a").any()
    assert_same_outputs(model, changed, tolerance=1e-4)


def test_a_body_that_reads_a_tensor_holds_it() -> None:
    text = (
        image(
            "bool yes",
            f"""q = If (yes) <then_branch = one () => (float[N,8,8,8] m) {{ m = Sigmoid(a) }},
                          else_branch = two () => (float[N,8,8,8] n) {{ n = Identity(a) }}>
        z = Relu(a) t = Add(z, q) {LAST}""",
        )
        .replace("bool yes, ", "")
        .replace("x) =>", "x, bool yes) =>")
    )
    model = prepared(text)
    assert not find_channels(model, RULES).of("a").any()


@pytest.mark.parametrize(
    ("shape", "before", "after"),
    [
        ((1, 6, 1, 1), (2, 6, 5, 5), (2, 3, 2, 5, 5)),
        ((1, 6, 1, 1), (2, 6, 1, 1), (2, 6)),
        ((1, 6, 1, 1), (2, 6, 3, 3), (2, 54)),
        ((1, 1, 6), (2, 5, 6), (10, 6)),
        ((1, 1, 2, 3), (2, 5, 2, 3), (2, 5, 6)),
        ((1, 6), (1, 6), (6,)),
        ((6,), (6,), (1, 1, 6, 1)),
    ],
)
def test_reshaped_labels_are_those_of_the_reshaped_tensor(shape, before, after) -> None:
    labels = np.arange(6).reshape(shape)
    full = np.broadcast_to(labels, before).reshape(after)
    found = reshaped(labels, before, after)
    assert found is not None
    assert len(found.shape) == len(after)
    np.testing.assert_array_equal(np.broadcast_to(found, after), full)


def test_an_unknown_reshape_of_channels_is_none() -> None:
    unknown = ir.SymbolicDim(None)
    assert reshaped(np.arange(6).reshape(1, 6, 1), (2, 6, unknown), (2, unknown)) is None
