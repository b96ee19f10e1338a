"""Graphs through which factors of channels pass, or not."""

from __future__ import annotations

from graphs import parse

from onnxq.graph.passes.names import UniqueNamesPass
from onnxq.graph.passes.shapes import InferShapesPass

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


ATTENTION = """
g (float[N,5,8] x) => (float[N,5,6] y)
<float[8,8] wq, float[8,8] wk, float[8,8] wv, float[8] bv, float[8,6] wo, int64[4] split, int64[3] join> {
  q = MatMul(x, wq)  k = MatMul(x, wk)  v0 = MatMul(x, wv)  v = Add(v0, bv)
  kt = Transpose<perm=[0,2,1]>(k)  s = MatMul(q, kt)  p0 = Softmax<axis=-1>(s)  p = Unsqueeze(p0, one)
  v4 = Reshape(v, split)  vt = Transpose<perm=[0,2,1,3]>(v4)
  o = MatMul(p, vt)  ot = Transpose<perm=[0,2,1,3]>(o)  oj = Reshape(ot, join)  y = MatMul(oj, wo)
}
"""


FEATURES = "g (float[N,5,6] x) => (float y) <{weights}> {{ f = Mul(x, k) {body} }}"
"""A factor for each feature gives ``f``, [N, 5, 6], whose last axis is free."""


PICTURE = "float[4,1,3,3] w, float[4] b, float[3,4,1,1] v, int64[1] one"
READ = "u = Unsqueeze({}, one) a = Conv(u, w, b) r = Relu(a) y = Conv(r, v)"

ACROSS = {
    "picture of one channel": (PICTURE, READ.format("f")),
    "rows as channels": ("float[4,5,3] w, float[3,4,1] v", "a = Conv(f, w) r = Relu(a) y = Conv(r, v)"),
    "features in two axes": (
        "float[4,2,1,3] w, float[3,4,1,1] v, int64[4] sizes",
        "u = Reshape(f, sizes) a = Conv(u, w) r = Relu(a) y = Conv(r, v)",
    ),
    "transposed convolution": (
        "float[1,4,2,2] w, float[3,4,1,1] v, int64[1] one",
        "u = Unsqueeze(f, one) a = ConvTranspose(u, w) r = Relu(a) y = Conv(r, v)",
    ),
    "half of them": (
        "float[4,5,2] w, float[3,4,1] v, float[3,2] m",
        """p = Relu(f) l, h = Split<axis=2>(p) a = Conv(l, w) r = Relu(a) c = Conv(r, v) z = MatMul(h, m)
        s = ReduceMean<axes=[1, 2]>(c) t = ReduceMean<axes=[1, 2]>(z) y = Add(s, t)""",
    ),
    "slopes": (f"{PICTURE}, float[6] slope", "p = PRelu(f, slope) " + READ.format("p")),
    "rows and features": (f"{PICTURE}, float[5,1] e", "p = Div(f, e) " + READ.format("p")),
    "largest of both": (f"{PICTURE}, float[6] e", "p = Max(f, e) " + READ.format("p")),
    "maxima of neighbours": ("float[6,3] m", "p = MaxPool<kernel_shape=[3], pads=[1,1]>(f) y = MatMul(p, m)"),
    "means of neighbours": (
        "float[6,3] m",
        "p = AveragePool<kernel_shape=[3], pads=[1,1], count_include_pad=1>(f) y = MatMul(p, m)",
    ),
    "moved by a Pad": ("float[6,3] m, int64[6] pads", "p = Pad(f, pads) y = MatMul(p, m)"),
}
"""What reads ``f``; layers whose channels lie along another axis, and operators that mix its features."""


GIVEN_ACROSS = {
    kind: {
        **({"one": [1]} if "int64[1] one" in weights else {}),
        **({"sizes": [-1, 2, 5, 3]} if "sizes" in weights else {}),
        **({"pads": [0, 0, 1, 0, 0, -1]} if "pads" in weights else {}),
    }
    for kind, (weights, _) in ACROSS.items()
}


def features(kind: str):
    """A model where factors for each feature meet what is named in `ACROSS`."""
    weights, body = ACROSS[kind]
    text = FEATURES.format(weights=f"float[6] k, {weights}", body=body)
    return prepared(text, **GIVEN_ACROSS[kind])
