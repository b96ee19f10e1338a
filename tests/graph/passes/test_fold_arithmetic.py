import re

import pytest
from graphs import assert_same_outputs, op_counts, parse

from onnxq.graph.passes import simplify

CONV = "Conv <pads=[1,1,1,1]> (x, w)"


def conv(arithmetic, weights, **given):
    tensors = ", ".join(t for t in ("float[4,3,3,3] w", weights) if t)
    return parse(
        f"""g (float[N,3,8,8] x) => (float[N,4,h,w] y) <{tensors}> {{
            c = {CONV}
            y = {arithmetic}
        }}""",
        **given,
    )


@pytest.mark.parametrize(
    ("arithmetic", "weights"),
    [
        ("Mul(c, k)", "float[1,4,1,1] k"),
        ("Mul(k, c)", "float[4,1,1] k"),
        ("Div(c, k)", "float[4,1,1] k"),
        ("Add(c, k)", "float[1,4,1,1] k"),
        ("Sub(c, k)", "float k"),
        ("Sub(k, c)", "float[4,1,1] k"),
        ("Add(k, c)", "float[1] k"),
    ],
)
def test_into_a_conv(arithmetic, weights):
    before = conv(arithmetic, weights)
    after = simplify(before)
    assert op_counts(after) == {"Conv": 1}
    assert after.graph[0].outputs[0].name == "y"
    assert_same_outputs(before, after)


@pytest.mark.parametrize(
    ("arithmetic", "weights"),
    [
        ("Div(k, c)", "float[4,1,1] k"),  # not linear in c
        ("Mul(c, k)", "float[8] k"),  # along the width
        ("Add(c, k)", "float[4,8,1] k"),
        ("Add(c, c)", ""),
        ("Exp(c)", ""),
    ],
)
def test_not_what_is_no_channel_constant(arithmetic, weights):
    before = conv(arithmetic, weights)
    after = simplify(before)
    assert op_counts(after) == op_counts(before)
    assert_same_outputs(before, after)


def test_not_a_division_by_zero():
    before = conv("Div(c, k)", "float[4,1,1] k", k=[[[1]], [[0]], [[1]], [[1]]])
    assert op_counts(simplify(before)) == {"Conv": 1, "Div": 1}


def test_not_a_constant_that_adds_a_dimension():
    before = parse(
        f"g (float[N,3,8,8] x) => (float[1,N,4,8,8] y) <float[4,3,3,3] w, float[1,1,4,1,1] k>"
        f"{{ c = {CONV} y = Add(c, k) }}"
    )
    after = simplify(before)
    assert op_counts(after) == {"Conv": 1, "Add": 1}
    assert_same_outputs(before, after)


def test_a_chain_and_a_batchnorm_after_it():
    before = parse(
        """g (float[N,3,8,8] x) => (float[N,4,h,w] y)
        <float[4,3,3,3] w, float[4] b, float[4,1,1] m, float[4,1,1] a, float[4] s, float[4] t,
         float[4] u, float[4] var> {
            c = Conv(x, w, b)
            d = Mul(c, m)
            e = Add(d, a)
            f = BatchNormalization(e, s, t, u, var)
            y = Div(f, m)
        }"""
    )
    after = simplify(before)
    assert op_counts(after) == {"Conv": 1}
    assert_same_outputs(before, after)


def test_scale_layers_go_into_a_lone_batchnorm():
    before = parse(
        """g (float[N,4,8,8] x) => (float[N,4,8,8] y)
        <float[4,1,1] m, float[4,1,1] a, float[4] s, float[4] t, float[4] u, float[4] var> {
            r = Relu(x)
            f = BatchNormalization(r, s, t, u, var)
            d = Mul(f, m)
            y = Add(a, d)
        }"""
    )
    after = simplify(before)
    assert op_counts(after) == {"Relu": 1, "BatchNormalization": 1}
    assert_same_outputs(before, after)


@pytest.mark.parametrize(
    ("layer", "result"),
    [
        ("c = Gemm <transB=1> (x, v, b)  y = Mul(c, k)", {"Gemm": 1}),
        ("c = Gemm (x, w)  y = Sub(k, c)", {"Gemm": 1}),
        ("c = MatMul (x, w)  y = Mul(c, k)", {"MatMul": 1}),
        ("c = MatMul (x, w)  y = Add(c, k)", {"Gemm": 1}),
        ("c = MatMul (x, w)  d = Mul(k, c) y = Add(d, b)", {"Gemm": 1}),
        ("c = MatMul (x, w)  d = Add(b, c) y = Div(d, k)", {"Gemm": 1}),
    ],
)
@pytest.mark.parametrize("shape", ["[4]", "[1,4]", "[1]", ""])
def test_into_a_linear_layer(layer, result, shape):
    used = [t for t in ("float[4,6] v", "float[6,4] w", "float[4] b") if re.search(rf"\b{t[-1]}\b", layer)]
    before = parse(
        f"g (float[N,6] x) => (float[N,4] y) <{', '.join([*used, f'float{shape} k'])}> {{ {layer} }}"
    )
    after = simplify(before)
    assert op_counts(after) == result
    assert_same_outputs(before, after)


def test_more_dimensions_take_a_factor_but_no_shift():
    before = parse(
        """g (float[N,M,6] x) => (float[N,M,4] y) <float[6,4] w, float[4] k, float[4] b> {
            c = MatMul(x, w)
            d = Mul(c, k)
            y = Add(d, b)
        }"""
    )
    after = simplify(before)
    assert op_counts(after) == {"MatMul": 1, "Add": 1}
    assert_same_outputs(before, after)


def test_a_factor_after_matmul_and_add_goes_into_both():
    before = parse(
        """g (float[N,M,6] x) => (float[N,M,4] y) <float[6,4] w, float k, float[4] b> {
            c = MatMul(x, w)
            d = Add(c, b)
            y = Mul(d, k)
        }"""
    )
    after = simplify(before)
    assert op_counts(after) == {"MatMul": 1, "Add": 1}
    assert_same_outputs(before, after)


def test_a_vector_times_a_matrix():
    before = parse(
        """g (float[6] x) => (float[4] y, float[1,4] z) <float[6,4] w, float[4] k, float[1,4] m> {
            c = MatMul(x, w)
            y = Mul(c, k)
            d = MatMul(x, w)
            z = Mul(d, m)
        }"""
    )
    after = simplify(before)
    assert_same_outputs(before, after)
    assert op_counts(after)["Mul"] == 1, "the second adds a dimension"


def test_integers_are_no_weights():
    before = parse(
        "g (int64[N,6] x) => (int64[N,4] y) <int64[6,4] w, int64[4] k> { c = MatMul(x, w) y = Mul(c, k) }"
    )
    after = simplify(before)
    assert op_counts(after) == {"MatMul": 1, "Mul": 1}
    assert_same_outputs(before, after)
