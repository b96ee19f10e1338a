"""The choice of the nodes that stay in float32, checked by running both precisions."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graphs import parse

from calibrators.data.samples import Sample
from calibrators.session import open_session
from onnxq.algorithms.float32_nodes import AS_GIVEN, MAKES_NOISE, Runs, choose_float32
from onnxq.graph.half_precision.narrow import narrow
from onnxq.graph.half_precision.saturate import saturate
from onnxq.graph.passes import plain, simplify

HALF = ir.DataType.FLOAT16


def batches(*shape, count=4, scale=1.0, **more):
    rng = np.random.default_rng(0)
    arrays = [(scale * rng.normal(size=shape)).astype(np.float32) for _ in range(count)]
    return [Sample(f"sample {i}", {"x": array, **more}) for i, array in enumerate(arrays)]


def sqnr(model, samples):
    chosen = choose_float32(model, Runs(samples), HALF)
    half = model.clone()
    saturate(half)
    narrow(half, chosen)
    signal = noise = 0.0
    for sample in samples:
        (one,), (other,) = (open_session(each).run(None, dict(sample.feeds)) for each in (model, half))
        signal += np.square(one, dtype=np.float64).sum()
        noise += np.square(one - other, dtype=np.float64).sum()
    return chosen, 10 * np.log10(signal / noise)


VARIANCE = """g (float[N, 8] x) => (float[N, 8] y) <float far, float eps>
{
    h = Add(x, far)  m = ReduceMean<axes = [1], keepdims = 1>(h)  d = Sub(h, m)
    s = Mul(d, d)  v = ReduceMean<axes = [1], keepdims = 1>(s)  e = Add(v, eps)  r = Sqrt(e)  y = Div(d, r)
}"""
"""Layer normalization around a value far from zero, which takes most of float16's bits."""


def test_a_difference_of_large_numbers_is_computed_in_float32():
    model = plain(parse(VARIANCE, opset=17, far=200.0, eps=1e-5), 17)
    chosen, quality = sqnr(model, batches(4, 8, scale=0.5))
    assert MAKES_NOISE in chosen.float32.values()
    assert quality > 40


def test_a_harmless_model_is_all_half():
    model = plain(
        parse("g (float[N, 8] x) => (float[N, 8] y) <float[8, 8] w> { h = MatMul(x, w)  y = Relu(h) }")
    )
    chosen, quality = sqnr(model, batches(4, 8))
    assert not chosen.float32
    assert quality > 50


@pytest.mark.parametrize("scale", [1e5, 1e-6])
def test_what_float16_does_not_hold_is_computed_in_float32(scale):
    text = (
        "g (float[N, 8] x) => (float[N, 8] y) <float[8, 8] w> { h = MatMul(x, w)  a = Abs(h)  y = Sqrt(a) }"
    )
    _, quality = sqnr(plain(parse(text)), batches(4, 8, scale=scale))
    assert quality > 50


def test_what_was_float32_in_a_mixed_model_stays():
    text = """g (float16[N, 8] x) => (float16[N, 8] y) <float16[8, 8] w>
    { h = MatMul(x, w)  f = Cast<to=1>(h)  s = Softmax(f)  y = Cast<to=10>(s) }"""
    model = simplify(parse(text, opset=17))
    chosen = choose_float32(model, Runs(()), HALF)
    assert {n.op_type for n in model.graph if chosen.float32.get(n.name) == AS_GIVEN} == {"Softmax"}


def test_the_given_model_stays():
    model = plain(
        parse("g (float[N, 2] x) => (float[N, 2] y) <float w> { a = Min(x, w)  y = Softmax(a) }", w=1e30)
    )
    choose_float32(model, Runs(batches(4, 2)), HALF)
    assert model.graph.initializers["w"].const_value.numpy() == np.float32(1e30)


SMALL_ROWS = """g (float[N, 8] x) => (float[N, 8] y) <float eps>
{
    s = Mul(x, x)  v = ReduceMean<axes = [1], keepdims = 1>(s)  e = Add(v, eps)  r = Sqrt(e)
    y = Div(x, r)
}"""
"""RMS normalization of rows of all sizes: the squares of small ones are lost long before the division."""


def test_noise_is_followed_back_over_several_nodes():
    model = plain(parse(SMALL_ROWS, opset=17, eps=1e-7), 17)
    sizes = np.geomspace(1e-5, 1, 16, dtype=np.float32)[:, None]
    samples = [Sample(s.name, {"x": s.feeds["x"] * sizes}) for s in batches(16, 8)]
    chosen = choose_float32(model, Runs(samples), HALF)
    wide = {n.op_type for n in model.graph if chosen.float32.get(n.name) == MAKES_NOISE}
    assert wide == {"ReduceMean", "Sqrt", "Div"}
