"""HardSwish, HardSigmoid and scalars around them, in whatever nodes they were written."""

import numpy as np
import pytest
from graphs import assert_same_outputs, op_counts, parse

from onnxq.graph.passes import simplify

CONSTANTS = """float three = {3}, float[1] threes = {3}, float six = {6}, float zero = {0}, float one = {1},
    float half = {0.5}, float sixth = {0.1666667}, float k = {0.7}, float s = {-0.3}, float minus = {-3}"""

FEEDS = {"x": np.linspace(-8, 8, 2 * 4 * 36, dtype=np.float32).reshape(2, 4, 6, 6)}


def graph(nodes, outputs="float[N,4,6,6] y", tensors="", kind="float"):
    return parse(
        f"g ({kind}[N,4,6,6] x) => ({outputs}) <{CONSTANTS.replace('float', kind)} {tensors}> {{ {nodes} }}"
    )


def both(nodes, expected, feeds=FEEDS, **options):
    before = graph(nodes, **options)
    after = simplify(before)
    assert op_counts(after) == expected
    assert_same_outputs(before, after, feeds)
    return after


SWISHES = {
    "divided": "a = Add(x, three) c = Clip(a, zero, six) m = Mul(x, c) y = Div(m, six)",
    "multiplied": "a = Add(three, x) c = Clip(a, zero, six) m = Mul(c, x) y = Mul(sixth, m)",
    "gate divided": "a = Add(x, threes) c = Clip(a, zero, six) d = Div(c, six) y = Mul(d, x)",
    "input divided": "a = Add(x, three) c = Clip(a, zero, six) d = Mul(x, sixth) y = Mul(d, c)",
    "subtracted": "a = Sub(x, minus) c = Clip(a, zero, six) m = Mul(x, c) y = Div(m, six)",
    "min and relu": "a = Add(x, three) r = Relu(a) c = Min(r, six) m = Mul(x, c) y = Div(m, six)",
    "min and max": "a = Add(x, three) r = Min(six, a) c = Max(zero, r) m = Mul(x, c) y = Div(m, six)",
    "line first": "d = Div(x, six) a = Add(d, half) c = Clip(a, zero, one) y = Mul(x, c)",
    "hard sigmoid": "h = HardSigmoid <alpha=0.16666667, beta=0.5> (x) y = Mul(x, h)",
    "rounded slope": "h = HardSigmoid <alpha=0.1666667, beta=0.5> (x) y = Mul(h, x)",
}


@pytest.mark.parametrize("name", SWISHES)
def test_hard_swish_is_one_node(name):
    after = both(SWISHES[name], {"HardSwish": 1})
    assert after.graph.opset_imports[""] == 14
    (node,) = after.graph
    assert node.outputs[0].name == "y"


@pytest.mark.parametrize(
    "nodes",
    [
        "a = Add(x, half) c = Clip(a, zero, six) m = Mul(x, c) y = Div(m, six)",
        "a = Add(x, three) c = Clip(a, zero, three) m = Mul(x, c) y = Div(m, six)",
        "a = Add(x, three) c = Clip(a, half, six) m = Mul(x, c) y = Div(m, six)",
        "a = Add(x, three) c = Clip(a, zero, six) m = Mul(x, c) y = Mul(m, half)",
        "a = Add(x, three) c = Clip(a, zero, six) n = Neg(x) m = Mul(n, c) y = Div(m, six)",
        "h = HardSigmoid (x) y = Mul(x, h)",
        "h = HardSigmoid <alpha=0.16667, beta=0.5> (x) y = Mul(x, h)",
    ],
)
def test_what_is_nearly_a_hard_swish_stays(nodes):
    before = graph(nodes)
    after = simplify(before)
    assert "HardSwish" not in op_counts(after)
    assert after.graph.opset_imports[""] == 13
    assert_same_outputs(before, after, FEEDS)


def test_other_readers_of_a_gate_keep_it():
    nodes = "a = Add(x, three) c = Clip(a, zero, six) m = Mul(x, c) y = Div(m, six) z = Neg(c)"
    both(
        nodes,
        {"HardSwish": 1, "Add": 1, "Clip": 1, "Neg": 1},
        outputs="float[N,4,6,6] y, float[N,4,6,6] z",
    )


def test_a_gate_that_is_an_output_stays():
    nodes = "c = HardSigmoid <alpha=0.16666667, beta=0.5> (x) y = Mul(x, c)"
    both(
        nodes,
        {"HardSwish": 1, "HardSigmoid": 1},
        outputs="float[N,4,6,6] y, float[N,4,6,6] c",
    )


def test_a_hard_swish_of_something_scaled():
    both(
        """n = Neg(x) t = Mul(n, half) a = Add(t, three) c = Clip(a, zero, six) m = Mul(t, c)
        y = Div(m, six)""",
        {"Neg": 1, "Mul": 1, "HardSwish": 1},
    )


def test_in_the_body_of_an_if():
    before = parse(
        f"""g (float[N,4] x, bool b) => (float[N,4] y) <{CONSTANTS}> {{
            y = If (b) <
                then_branch = t () => (float[N,4] p) {{
                    a = Add(x, three) c = Clip(a, zero, six) m = Mul(x, c) p = Div(m, six) }},
                else_branch = e () => (float[N,4] q) {{ q = Neg(x) }}
            >
        }}"""
    )
    after = simplify(before)
    assert op_counts(after) == {"If": 1, "HardSwish": 1, "Neg": 1}
    assert_same_outputs(before, after)


def test_doubles_stay_where_no_kernel_takes_them():
    before = graph(SWISHES["divided"], "double[N,4,6,6] y", kind="double")
    after = simplify(before)
    assert "HardSwish" not in op_counts(after)
    assert_same_outputs(before, after, {"x": FEEDS["x"].astype(np.float64)})


def test_constants_that_change_the_shape_stay():
    nodes = "a = Add(x, t) c = Clip(a, zero, six) m = Mul(x, c) y = Div(m, six)"
    after = both(
        nodes,
        {"Add": 1, "Clip": 1, "Mul": 1, "Div": 1},
        tensors=", float[1,1,1,1,1] t = {3}",
        outputs="float[1,N,4,6,6] y",
    )
    assert after.graph.opset_imports[""] == 13


SIGMOIDS = {
    "divided": "a = Add(n, three) c = Clip(a, zero, six) y = Div(c, six)",
    "line first": "d = Mul(n, sixth) a = Add(d, half) y = Clip(a, zero, one)",
    "other slope": "d = Mul(n, k) a = Sub(d, s) y = Clip(a, zero, one)",
    "min and relu": "d = Mul(n, k) a = Add(d, half) r = Relu(a) y = Min(one, r)",
}


@pytest.mark.parametrize("name", SIGMOIDS)
def test_hard_sigmoid_is_one_node(name):
    after = both("n = Neg(x) " + SIGMOIDS[name], {"Neg": 1, "HardSigmoid": 1})
    assert after.graph.opset_imports[""] == 13


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ("a = Add(n, half) y = Clip(a, zero, one)", {"Add": 1, "Clip": 1}),
        ("c = Clip(n, zero, six) y = Div(c, six)", {"Clip": 1, "Div": 1}),
        ("a = Add(n, three) c = Clip(a, zero, six) y = Mul(c, half)", {"Add": 1, "Clip": 1, "Mul": 1}),
        ("d = Mul(n, k) a = Add(d, half) y = Clip(a, s, one)", {"Mul": 1, "Add": 1, "Clip": 1}),
    ],
)
def test_what_is_no_shorter_as_a_hard_sigmoid_stays(nodes, expected):
    both("n = Neg(x) " + nodes, {"Neg": 1, **expected})


LAYERS = ", float[4,4,1,1] w, float[4] b, float[4,1,3,3] d"


@pytest.mark.parametrize("name", [*SIGMOIDS, "hard sigmoid"])
def test_after_a_layer_it_becomes_a_clip(name):
    nodes = SIGMOIDS.get(name, "y = HardSigmoid(n)")
    after = both("n = Conv(x, w, b) " + nodes, {"Conv": 1, "Clip": 1}, tensors=LAYERS)
    clip = list(after.graph)[1]
    assert [float(limit.const_value.numpy()) for limit in clip.inputs[1:]] == pytest.approx([0, 1])


def test_a_layer_that_others_read_keeps_its_output():
    both(
        "n = Conv(x, w, b) h = HardSigmoid(n) y = Add(n, h)",
        {"Conv": 1, "HardSigmoid": 1, "Add": 1},
        tensors=LAYERS,
    )


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ("c = Clip(n, s, six) y = Mul(c, k)", {"Conv": 1, "Clip": 1}),
        ("c = Clip(n, , six) y = Div(c, k)", {"Conv": 1, "Clip": 1}),
        ("c = Relu(n) y = Mul(k, c)", {"Conv": 1, "Relu": 1}),
        ("c = Relu(n) y = Mul(c, s)", {"Conv": 1, "Relu": 1, "Mul": 1}),
        ("c = Relu(n) y = Add(c, k)", {"Conv": 1, "Relu": 1, "Add": 1}),
        ("c = Relu(n) m = Mul(c, k) y = Sub(m, c)", {"Conv": 1, "Relu": 1, "Mul": 1, "Sub": 1}),
    ],
)
def test_a_positive_factor_goes_before_a_clip(nodes, expected):
    both("n = Conv(x, w, b) " + nodes, expected, tensors=LAYERS)


PADDED = "<group=4, pads=[1,1,1,1]>"


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ("m = Mul(n, k) a = Add(m, s) y = Conv(a, w, b)", {"Conv": 1}),
        ("m = Sub(three, n) y = Conv(m, w)", {"Conv": 1}),
        (f"m = Div(n, k) y = Conv {PADDED} (m, d)", {"Conv": 1}),
        (f"m = Mul(n, k) a = Add(s, m) y = Conv {PADDED} (a, d)", {"Conv": 1, "Add": 1}),
        (f"a = Add(n, s) y = Conv {PADDED} (a, d)", {"Conv": 1, "Add": 1}),
        ("m = Mul(n, k) c = Conv(m, w) y = Add(c, m)", {"Conv": 1, "Mul": 1, "Add": 1}),
        (f"m = Mul(n, zero) a = Add(m, s) y = Conv {PADDED} (a, d)", {"Conv": 1, "Mul": 1, "Add": 1}),
    ],
)
def test_scalars_go_into_the_layer_after(nodes, expected):
    both("n = Neg(x) " + nodes, {"Neg": 1, **expected}, tensors=LAYERS)


def test_scalars_go_into_a_gemm():
    before = parse(
        f"g (float[N,4] x) => (float[N,3] y) <{CONSTANTS}, float[4,3] w, float[3] b> {{"
        " n = Neg(x) m = Mul(n, k) a = Add(m, s) y = Gemm(a, w, b) }"
    )
    after = simplify(before)
    assert op_counts(after) == {"Neg": 1, "Gemm": 1}
    assert_same_outputs(before, after)
