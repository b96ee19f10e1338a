"""Which nodes stay in float32, and why."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graphs import parse

from calibrators.data.samples import Sample
from calibrators.extremes import measure_extremes
from onnxq.graph.half_precision.keep_float32 import BETWEEN, Knowledge, divisors, float32_nodes
from onnxq.graph.passes import plain

HALF, BFLOAT = ir.DataType.FLOAT16, ir.DataType.BFLOAT16


def kept(text, feeds, dtype=HALF, opset=17, **given):
    """Operator -> reason of each node that stays in float32."""
    model = plain(parse(text, opset=opset, **given), opset)
    extremes = measure_extremes(model, [Sample("sample", feeds)], divisors(model)) if feeds else {}
    found = float32_nodes(model, Knowledge(dtype, extremes))
    return {node.op_type: found[node.name] for node in model.graph if node.name in found}


def ones(*shape, times=1.0):
    return {"x": np.full(shape, times, np.float32)}


CASES = {
    "overflow": (
        "g (float[N] x) => (float[N] y) { h = Mul(x, x)  y = Sqrt(h) }",
        ones(2, times=200),  # 40,000 with a margin
        {"Mul": "values of 'h' reach 4e+04", "Sqrt": "values of 'h' reach 4e+04"},
    ),
    "underflow": (
        "g (float[N] x) => (float[N] y) { h = Mul(x, x)  y = Sqrt(h) }",
        ones(2, times=1e-4),
        {"Mul": "all values of 'h' are below 1e-08", "Sqrt": "all values of 'h' are below 1e-08"},
    ),
    "divisor": (
        "g (float[N] x) => (float[N] y) { h = Neg(x)  y = Div(x, h) }",
        {"x": np.array([1, 1e-6], np.float32)},
        {"Neg": "'h' is divided by", "Div": "'h' is divided by"},
    ),
    "angle": (
        "g (float[N] x) => (float[N] y) { h = Neg(x)  y = Sin(h) }",
        ones(2, times=100),
        {"Neg": "angles reach 100", "Sin": "angles reach 100"},
    ),
    "integers": (
        "g (float[N] x) => (int64[N] y) { h = Neg(x)  y = Cast<to=7>(h) }",
        ones(2, times=3000),
        {"Neg": "integers up to 3000 are made of 'h'", "Cast": "integers up to 3000 are made of 'h'"},
    ),
    "long sum": (
        "g (float[1, 4096] x) => (float[1, 1] y) { y = ReduceMean<axes=[1]>(x) }",
        ones(1, 4096),
        {"ReduceMean": "it adds 4096 numbers"},
    ),
    "large sum": (
        "g (float[1, 100] x) => (float[1, 1] y) { y = ReduceMean<axes=[1]>(x) }",
        ones(1, 100, times=500),
        {"ReduceMean": "sums of 'x' may exceed 65504"},
    ),
    "squares": (
        "g (float[1, 4] x) => (float[1, 1] y) { y = ReduceL2<axes=[1]>(x) }",
        ones(1, 4, times=300),
        {"ReduceL2": "squares of 'x' may exceed 65504"},
    ),
    "ordinary": (
        "g (float[1, 4] x) => (float[1, 4] y) { h = Exp(x)  s = Softmax(h)  y = Add(s, x) }",
        ones(1, 4),
        {},
    ),
}


@pytest.mark.parametrize("kind", CASES)
def test_tensors_and_sums(kind):
    text, feeds, expected = CASES[kind]
    found = kept(text, feeds)
    assert found.keys() == expected.keys()
    for operator, start in expected.items():
        assert found[operator].startswith(start)


@pytest.mark.parametrize(
    ("text", "number", "reason"),
    [
        ("y = Add(x, w)", 1e-7, "constant 'w' is as small as 1e-07"),
        ("y = Div(x, w)", 1e-12, "constant 'w' is as small as 1e-12"),
        ("y = Add(x, w)", 1e9, "constant 'w' has 1e+09, too large"),
        ("y = Add(x, w)", 1e-5, None),
        ("y = Add(x, w)", -np.inf, None),
    ],
)
def test_constants(text, number, reason):
    found = kept(f"g (float[N] x) => (float[N] y) <float w> {{ {text} }}", None, w=number)
    assert len(found) == (reason is not None)
    assert all(text.startswith(reason) for text in found.values())


def test_few_small_numbers_among_large_ones_do_no_harm():
    weights = np.ones((4, 4))
    weights[0, 0] = 1e-9
    text = "g (float[N, 4] x) => (float[N, 4] y) <float[4, 4] w> { y = MatMul(x, w) }"
    assert kept(text, ones(2, 4), w=weights) == {}


def test_a_small_variance_and_a_small_epsilon():
    text = """g (float[N, 3, 4] x) => (float[N, 3, 4] y) <float[3] s, float[3] b, float[3] m, float[3] v>
    { h = Tanh(x)  y = BatchNormalization<epsilon = 1e-12>(h, s, b, m, v) }"""
    found = kept(text, None, v=[1e-9, 1, 1])
    assert "constant 'v' is as small as 1e-09" in found["BatchNormalization"]
    assert "epsilon" in kept(text, None, v=[1, 1, 1])["BatchNormalization"]


def test_layernorm_adds_up_in_float32_whatever_its_epsilon():
    text = """g (float[N, 8] x) => (float[N, 8] y) <float[8] s>
    { y = LayerNormalization<epsilon = 1e-12>(x, s) }"""
    assert kept(text, ones(2, 8)) == {}


def test_bfloat16_has_the_range_but_not_the_bits():
    text = "g (float[N] x) => (float[N] y) { h = Mul(x, x)  y = Sqrt(h) }"
    assert kept(text, ones(2, times=1e6), BFLOAT) == {}
    text = "g (float[1, 300] x) => (float[1, 1] y) { y = ReduceMean<axes=[1]>(x) }"
    assert kept(text, ones(1, 300)) == {}
    assert kept(text, ones(1, 300), BFLOAT).keys() == {"ReduceMean"}


def test_without_data_what_may_grow_stays():
    text = "g (float[N] x, int64[N] i) => (float[N] y) { e = Exp(x)  f = Cast<to=1>(i)  r = Relu(x)  y = Sum(e, f, r) }"
    assert kept(text, None).keys() == {"Exp", "Cast", "Sum"}


def test_moves_between_float32_nodes_stay_with_them():
    text = """g (float[2, 3] x) => (float[3, 2] y) <float w>
    { a = Add(x, w)  b = Transpose<perm = [1, 0]>(a)  y = Add(b, w) }"""
    assert kept(text, ones(2, 3), w=1e-7)["Transpose"] == BETWEEN


def test_bodies_are_judged_too():
    text = """g (float[N] x, bool k) => (float[N] y)
    { y = If(k) <then_branch = t () => (float[N] a) { h = Mul(x, x)  a = Sqrt(h) },
                 else_branch = e () => (float[N] b) { b = Abs(x) }> }"""
    model = plain(parse(text, opset=17), 17)
    feeds = {**ones(2, times=1000), "k": np.array(True)}
    found = float32_nodes(model, Knowledge(HALF, measure_extremes(model, [Sample("s", feeds)])))
    kinds = {n.op_type for n in ir.traversal.RecursiveGraphIterator(model.graph) if n.name in found}
    assert kinds == {"Mul", "Sqrt"}


ROTARY = """g (int64[N] p) => (float[N, 4] y) <float[1, 4] f, int64[1] last = {-1}>
{ x = Cast<to = 1>(p)  u = Unsqueeze(x, last)  a = MatMul(u, f)  y = Sin(a) }"""


@pytest.mark.parametrize(("last", "dtype", "chain"), [
    (3000, HALF, True),
    (3000, BFLOAT, True),
    (3, HALF, False),
    (None, HALF, True),
    (None, BFLOAT, True),
])  # fmt: skip
def test_what_large_angles_are_computed_from_stays_in_float32(last, dtype, chain):
    feeds = None if last is None else {"p": np.arange(last)}
    found = kept(ROTARY, feeds, dtype, opset=17, f=[1, 0.5, 0.25, 0.125])
    assert {"Cast", "Unsqueeze", "MatMul", "Sin"} <= found.keys() if chain else not found


def test_integers_that_half_precision_does_not_hold_stay_in_float32():
    text = "g (int64[N] p) => (float[N] y) { x = Cast<to = 1>(p)  y = Neg(x) }"
    assert "integers up to 2999" in kept(text, {"p": np.arange(3000)})["Cast"]
    assert not kept(text, {"p": np.arange(2000)})
