import numpy as np
import pytest
from graphs import assert_same_outputs, feeds_for, op_counts, parse

from onnxq.graph.passes import simplify


def test_chains_disappear():
    before = parse(
        "g (float[N,4] x) => (float[N,4] y) { a = Identity(x) b = Relu(a) c = Identity(b) y = Neg(c) }"
    )
    after = simplify(before)
    assert op_counts(after) == {"Relu": 1, "Neg": 1}
    assert_same_outputs(before, after)


def test_an_output_name_goes_to_the_producer():
    before = parse(
        "g (float[N,4] x) => (float[N,4] y, float[N,4] z) { a = Relu(x) y = Identity(a) z = Neg(a) }"
    )
    after = simplify(before)
    assert op_counts(after) == {"Relu": 1, "Neg": 1}
    assert after.graph[0].outputs[0].name == "y"
    assert_same_outputs(before, after)


@pytest.mark.parametrize(
    "body",
    [
        "y = Identity(x)",  # an input under a second name
        "y = Relu(x) z = Identity(y)",  # an output under a second name
        "a = Relu(x) y = Identity(a) z = Identity(a)",
    ],
)
def test_a_second_name_needs_the_identity(body):
    outputs = "float[N,4] y" + (", float[N,4] z" if "z =" in body else "")
    before = parse(f"g (float[N,4] x) => ({outputs}) {{ {body} }}")
    after = simplify(before)
    assert op_counts(after)["Identity"] == 1
    assert_same_outputs(before, after)


def test_a_weight_that_is_an_output():
    before = parse(
        "g (float[N,4] x) => (float[4] y, float[N,4] z) <float[4] w> { y = Identity(w) z = Add(x, w) }"
    )
    after = simplify(before)
    assert_same_outputs(before, after)


def test_an_outer_tensor_is_no_output_of_a_body():
    before = parse(
        """g (float[N,4] x, bool k) => (float[N,4] y) {
            a = Relu(x)
            y = If (k) <
                then_branch = t () => (float[N,4] u) { u = Identity(a) },
                else_branch = e () => (float[N,4] v) { v = Neg(a) }>
        }"""
    )
    after = simplify(before)
    assert op_counts(after) == {"Relu": 1, "If": 1, "Identity": 1, "Neg": 1}
    for choice in (True, False):
        assert_same_outputs(before, after, feeds_for(before, k=np.array(choice)))


@pytest.mark.parametrize(
    ("opset", "dropout", "tensors"),
    [
        (9, "Dropout <ratio=0.3> (a)", ""),
        (13, "Dropout (a)", ""),
        (13, "Dropout (a, r)", "<float r = {0.4}>"),
        (13, "Dropout (a, r, t)", "<float r = {0.4}, bool t = {0}>"),
    ],
)
def test_dropout_at_inference(opset, dropout, tensors):
    before = parse(
        f"g (float[N,4] x) => (float[N,4] y) {tensors} {{ a = Relu(x) y = {dropout} }}", opset=opset
    )
    after = simplify(before)
    assert op_counts(after) == {"Relu": 1}
    assert_same_outputs(before, after)
