"""The small models that `fuzz` changes: one for each family of operators, with their inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx.parser
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

Feed = dict[str, NDArray[np.generic]]
"""Input name -> array, for one run."""

SAMPLES = 6
"""Number of feeds per model; two are enough to hold one out."""

SIZES = {"N": 1, "T": 6}
"""Named dimensions, as they are in the data."""


@dataclass(frozen=True)
class FuzzModel:
    """A model and its data.

    Attributes:
        model: the float model.
        feeds: the data, one array per input in each.
    """

    model: onnx.ModelProto
    feeds: list[Feed]


CONVOLUTIONS = """g (float[N,3,8,8] x) => (float[N,5] y)
<float[8,3,3,3] w1, float[8] b1, float[8] scale, float[8] shift, float[8] mean, float[8] var,
 float[8,8,3,3] w2, float[8,1,3,3] w3, float[5,8] w4, float[5] b4>
{ a = Conv<pads = [1, 1, 1, 1]>(x, w1, b1)  b = BatchNormalization(a, scale, shift, mean, var)
  c = Relu(b)  d = Conv<pads = [1, 1, 1, 1]>(c, w2)  e = Add(c, d)
  f = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(e)
  h = Conv<group = 8>(f, w3)  i = HardSigmoid(h)  j = Mul(h, i)  k = GlobalAveragePool(j)  l = Flatten(k)
  y = Gemm<transB = 1>(l, w4, b4) }"""

ENCODER = """g (int64[N,T] ids, float[N,T] mask) => (float[N,T,8] y)
<float[20,8] table, float[8] gamma, float[8] beta, float[8,8] wq, float[8,8] wk, float[8,8] wv, float[8] bq,
 float[8,16] w1, float[16] b1, float[16,8] w2, int64[1] one, float low, float root, float full>
{ e = Gather(table, ids)  q0 = MatMul(e, wq)  q = Add(q0, bq)  k = MatMul(e, wk)  v = MatMul(e, wv)
  kt = Transpose<perm = [0, 2, 1]>(k)  s0 = MatMul(q, kt)  s1 = Div(s0, root)  m0 = Sub(full, mask)
  m1 = Mul(m0, low)  m2 = Unsqueeze(m1, one)  s2 = Add(s1, m2)  p = Softmax(s2)  o = MatMul(p, v)
  r = Add(o, e)  n = LayerNormalization(r, gamma, beta)  h0 = MatMul(n, w1)  h1 = Add(h0, b1)  h2 = Relu(h1)
  h3 = MatMul(h2, w2)  y = Add(h3, n) }"""

RECURRENT = """g (float[T,N,4] x) => (float[T,1,N,6] y, float[1,N,6] last)
<float[1,24,4] w, float[1,24,6] r, float[1,48] b, float[1,18,6] w2, float[1,18,6] r2, float[6,6] v,
 int64[1] one>
{ h, hn, cn = LSTM<hidden_size = 6>(x, w, r, b)  s = Squeeze(h, one)
  m = MatMul(s, v)  y, last = GRU<hidden_size = 6>(m, w2, r2) }"""

SHAPES = """g (float[N,4,6,6] x) => (float[N,K] y, int64[4] size)
<float[4,4,1,1] w, int64[1] first, int64[1] minus, int64[4] starts, int64[4] ends, int64[4] axes,
 int64[4] steps, float[4] scales, int64[8] pads, float value>
{ size = Shape(x)  n = Gather(size, first)  to = Concat<axis = 0>(n, minus)  a = Conv(x, w)
  b = Slice(a, starts, ends, axes, steps)  none = Cast<to = 1>(first)  empty = Slice(none, first, first)
  c = Resize<mode = "nearest">(b, empty, scales)
  d = Pad(c, pads, value)  e = Reshape(d, to)  f = Transpose(e)  y = Transpose(f) }"""

BRANCHES = """g (float[N,3,4,4] x, bool take, int64 trips) => (float[N,3,4,4] y)
<float[3,3,1,1] w, bool always>
{ a = Conv(x, w)
  b = If(take) <then_branch = t () => (float[N,3,4,4] p) { p = Conv(a, w) },
                else_branch = f () => (float[N,3,4,4] q) { q = Relu(a) }>
  y = Loop(trips, always, b) <body = body (int64 i, bool on, float[N,3,4,4] u) => (bool go, float[N,3,4,4] z)
      { go = Identity(on)  z = Conv(u, w) }> }"""

DETECTOR = """g (float[1,3,16,16] x) => (int64[M,3] chosen, float[1,5] best, int64[1,5] at, float[1,8,8,6] c2)
<float[8,3,3,3] w1, float[6,8,1,1] w2, int64[2] parts, int64[3] flat, int64[1] five,
 int64[1] most, float[1] iou, float[1] score>
{ a = Conv<strides = [2, 2], pads = [1, 1, 1, 1]>(x, w1)  b = LeakyRelu<alpha = 0.1>(a)  c = Conv(b, w2)
  c2 = Transpose<perm = [0, 2, 3, 1]>(c)  d = Reshape(c2, flat)
  boxes, s = Split<axis = -1>(d, parts)  t = Sigmoid(s)  scores = Transpose<perm = [0, 2, 1]>(t)
  chosen = NonMaxSuppression(boxes, scores, most, iou, score)
  best1 = ReduceMax<axes = [1], keepdims = 0>(scores)  best, at = TopK(best1, five) }"""

DECODER = """g (float[N,4,5,5] x) => (float[N,3,12,12] y, int64[N,1,12,12] label)
<float[4,6,2,2] w1, float[6] s, float[6] b, float[6,6,3,3] w2, float[6,1,1] slope, float[3,6,1,1] w3,
 float ratio, bool train>
{ a = ConvTranspose<strides = [2, 2]>(x, w1)  c = InstanceNormalization(a, s, b)  d = PRelu(c, slope)
  e = Conv<pads = [2, 2, 2, 2], dilations = [1, 1]>(d, w2)  f = Dropout(e, ratio)
  h = AveragePool<kernel_shape = [1, 1]>(f)  i = Conv(h, w3)  y = Tanh(i)  label = ArgMax<axis = 1>(y) }"""

GENERATOR = """g (float[N,4] x) => (float[N,6] y, uint8[N,6] bytes)
<float[4,6] w, float[6,6] w2, float[6] divisor, float zero, float full>
{ a = MatMul(x, w)  noise = RandomNormalLike(a)  b = Add(a, noise)  c = Div(b, divisor)  d = MatMul(c, w2)
  h = Erf(d)  h2 = Greater(d, zero)  y = Where(h2, h, d)
  k = Clip(y, zero, full)  bytes = Cast<to = 2>(k) }"""

LOCAL = """g (float[N,4] x) => (float[N,3] y) <float[4,4] w, float[4,3] v>
{ a = local.layer<alpha = 2.0>(x, w)  b = local.layer(a, w)  y = MatMul(b, v) }"""

LAYER = """<opset_import: ["" : 17], domain: "local">
layer<alpha: float = 1.0>(x, w) => (y) { a = MatMul(x, w)  y = Elu<alpha: float = @alpha>(a) }"""

VALUES: Mapping[str, list[float] | float | bool] = {
    "zero": 0.0,
    "one": [1],
    "first": [0],
    "minus": [-1],
    "low": -1e4,
    "root": 2.8,
    "full": 1.0,
    "starts": [0, 1, 5, 0],
    "ends": [99, 4, -99, 6],
    "axes": [0, 1, 2, 3],
    "steps": [1, 1, -1, 2],
    "scales": [1, 1, 2, 2],
    "pads": [0, 0, 1, 0, 0, 0, 0, 1],
    "value": 0.5,
    "always": True,
    "train": False,
    "parts": [4, 2],
    "flat": [1, 64, 6],
    "five": [5],
    "most": [8],
    "iou": [0.5],
    "score": [0.2],
    "ratio": 0.5,
}
"""Constants that are no weights."""

TEXTS: Mapping[str, tuple[str, str]] = {
    "convolutions": (CONVOLUTIONS, ""),
    "encoder": (ENCODER, ""),
    "recurrent": (RECURRENT, ""),
    "shapes": (SHAPES, ""),
    "branches": (BRANCHES, ""),
    "detector": (DETECTOR, ""),
    "decoder": (DECODER, ""),
    "generator": (GENERATOR, ""),
    "local": (LOCAL, LAYER),
}


def fuzz_models() -> dict[str, FuzzModel]:
    """Build all models, each valid and accepted by ONNX Runtime."""
    return {name: _build(text, functions) for name, (text, functions) in TEXTS.items()}


def _build(text: str, functions: str) -> FuzzModel:
    imports = '"" : 17' + (', "local" : 1' if functions else "")
    model = onnx.parser.parse_model(f"<ir_version: 8, opset_import: [{imports}]>\n{text}\n{functions}")
    random = np.random.default_rng(0)
    computed = {name for node in model.graph.node for name in node.output}
    for info in [info for info in model.graph.value_info if info.name not in computed]:
        model.graph.initializer.append(numpy_helper.from_array(_constant(info, random), info.name))
        model.graph.value_info.remove(info)
    feeds = [{info.name: _draw(info, random) for info in model.graph.input} for _ in range(SAMPLES)]
    return FuzzModel(model, feeds)


def _shape(info: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(dim.dim_value or SIZES[dim.dim_param] for dim in info.type.tensor_type.shape.dim)


def _constant(info: onnx.ValueInfoProto, random: np.random.Generator) -> NDArray[np.generic]:
    kind = onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
    if info.name in VALUES:
        return np.array(VALUES[info.name], kind)
    values = random.normal(size=_shape(info)) * 0.5
    return (np.abs(values) + 0.1 if info.name in ("var", "divisor") else values).astype(kind)


def _draw(info: onnx.ValueInfoProto, random: np.random.Generator) -> NDArray[np.generic]:
    kind, shape = info.type.tensor_type.elem_type, _shape(info)
    if kind == TensorProto.FLOAT:
        return random.normal(size=shape).astype(np.float32)
    return np.asarray(
        random.random(shape) < 0.5 if kind == TensorProto.BOOL else random.integers(1, 4, shape)
    )
