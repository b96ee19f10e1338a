import numpy as np
import pytest
from graphs import assert_same_outputs, op_counts, parse

from onnxq.graph.passes import simplify
from onnxq.graph.passes.fold_affine import FoldBatchNormPass

BN = "<float[4] gamma, float[4] beta, float[4] mean, float[4] var, {}>"


def check(text, expected, **given):
    """Fold in a copy, compare, and return the copy."""
    before = parse(text, **given)
    after = simplify(before)
    assert_same_outputs(before, after)
    assert op_counts(after) == expected
    return after


CONV = f"""g (float[N,3,8,8] x) => (float[N,4,h,w] y) {BN.format("float[4,3,3,3] w, float[4] b")} {{
    c = Conv <pads=[1,1,1,1], strides=[2,2]> (x, w, b)
    y = BatchNormalization <epsilon=0.01> (c, gamma, beta, mean, var)
}}"""


def test_conv_keeps_its_node_name_and_takes_the_output_name():
    before = parse(CONV)
    before.graph[0].name = "my_conv"
    after = simplify(before)
    assert_same_outputs(before, after)
    (conv,) = after.graph
    assert (conv.op_type, conv.name, conv.outputs[0].name) == ("Conv", "my_conv", "y")
    assert [v.name for v in conv.inputs] == ["x", "w", "b"]


@pytest.mark.parametrize(
    ("producer", "weights"),
    [
        ("Conv(x, w)", "float[4,6,3,3] w"),
        ("Conv <group=2> (x, w, b)", "float[4,3,3,3] w, float[4] b"),
        ("ConvTranspose <strides=[2,2]> (x, w, b)", "float[6,4,3,3] w, float[4] b"),
        ("ConvTranspose <group=2, strides=[2,2], output_padding=[1,1]> (x, w)", "float[6,2,3,3] w"),
    ],
)
def test_every_convolution(producer, weights):
    text = f"""g (float[N,6,8,8] x) => (float[N,4,h,w] y) {BN.format(weights)} {{
        c = {producer}
        y = BatchNormalization (c, gamma, beta, mean, var)
    }}"""
    check(text, {producer.split("(")[0].split()[0]: 1})


@pytest.mark.parametrize(
    ("producer", "weights", "result"),
    [
        ("Gemm(x, w, b)", "float[6,4] w, float[4] b", "Gemm"),
        ("Gemm <transB=1, alpha=0.5, beta=2.0> (x, w, b)", "float[4,6] w, float[1,4] b", "Gemm"),
        ("Gemm <transB=1> (x, w)", "float[4,6] w", "Gemm"),
        ("MatMul(x, w)", "float[6,4] w", "Gemm"),
    ],
)
def test_every_linear_layer(producer, weights, result):
    text = f"""g (float[N,6] x) => (float[N,4] y) {BN.format(weights)} {{
        c = {producer}
        y = BatchNormalization (c, gamma, beta, mean, var)
    }}"""
    check(text, {result: 1})


def test_matmul_add_batchnorm_is_one_gemm():
    text = f"""g (float[N,6] x) => (float[N,4] y) {BN.format("float[6,4] w, float[4] b")} {{
        p = MatMul(x, w)
        c = Add(b, p)
        y = BatchNormalization (c, gamma, beta, mean, var)
    }}"""
    check(text, {"Gemm": 1})


def test_shared_weights_are_copied_for_the_folded_consumer():
    text = f"""g (float[N,3,8,8] x) => (float[N,4,h,w] y, float[N,4,h,w] z) {BN.format("float[4,3,3,3] w")} {{
        c = Conv(x, w)
        y = BatchNormalization (c, gamma, beta, mean, var)
        r = Relu(x)
        z = Conv(r, w)
    }}"""
    before = parse(text)
    weights = before.graph.initializers["w"].const_value.numpy().copy()
    after = check(text, {"Conv": 2, "Relu": 1})
    folded, other = (n for n in after.graph if n.op_type == "Conv")
    assert folded.inputs[1] is not other.inputs[1]
    np.testing.assert_array_equal(other.inputs[1].const_value.numpy(), weights)


def test_the_callers_weights_are_not_touched():
    before = parse(CONV)
    weights = before.graph.initializers["w"].const_value.numpy().copy()
    simplify(before)
    np.testing.assert_array_equal(before.graph.initializers["w"].const_value.numpy(), weights)
    assert op_counts(before) == {"Conv": 1, "BatchNormalization": 1}


@pytest.mark.parametrize(
    "text",
    [
        # the Conv's output is an output of the graph
        "g (float[N,3,8,8] x) => (float[N,4,h,w] y, float[N,4,h,w] c) {tensors} {{"
        " c = Conv(x, w)  y = BatchNormalization(c, gamma, beta, mean, var) }}",
        # somebody else reads it
        "g (float[N,3,8,8] x) => (float[N,4,h,w] y, float[N,4,h,w] z) {tensors} {{"
        " c = Conv(x, w)  y = BatchNormalization(c, gamma, beta, mean, var)  z = Relu(c) }}",
        # a body captures it
        "g (float[N,3,8,8] x, bool k) => (float[N,4,h,w] y, float[N,4,a,b] z) {tensors} {{"
        " c = Conv(x, w)  y = BatchNormalization(c, gamma, beta, mean, var)"
        " z = If (k) <then_branch = t () => (float[N,4,a,b] p) {{ p = Relu(c) }},"
        " else_branch = e () => (float[N,4,a,b] q) {{ q = Neg(c) }}> }}",
        # the weight is computed at run time
        "g (float[N,3,8,8] x, float[4,3,3,3] v) => (float[N,4,h,w] y) {tensors} {{"
        " k = Add(v, w)  c = Conv(x, k)  y = BatchNormalization(c, gamma, beta, mean, var) }}",
    ],
    ids=["graph output", "fan-out", "captured", "dynamic weight"],
)
def test_not_where_others_would_notice(text):
    before = parse(text.format(tensors=BN.format("float[4,3,3,3] w")))
    after = simplify(before)
    assert_same_outputs(before, after)
    assert op_counts(after) == op_counts(before)


def test_training_mode_zero_is_inference():
    text = CONV.replace("epsilon=0.01", "epsilon=0.01, training_mode=0")
    check(text, {"Conv": 1}, opset=15)


def test_a_result_that_overflows_is_left_alone():
    before = parse(CONV, gamma=[1e30, 1, 1, 1], w=1e20)
    after = before.clone()
    result = FoldBatchNormPass()(after)
    assert not result.modified
    assert op_counts(after) == {"Conv": 1, "BatchNormalization": 1}


def test_dead_channel():
    check(CONV, {"Conv": 1}, gamma=[0, 1, 1, 1], var=[0, 1, 2, 3])


def test_inside_a_body_with_outer_weights():
    text = f"""g (float[N,3,8,8] x, bool k) => (float[N,4,6,6] y)
    {BN.format("float[4,3,3,3] w, float[4] b")} {{
        s = Relu(x)
        y = If (k) <
            then_branch = t () => (float[N,4,6,6] p) {{
                c = Conv(s, w, b)
                p = BatchNormalization (c, gamma, beta, mean, var)
            }},
            else_branch = e () => (float[N,4,6,6] q) {{
                d = Conv(s, w, b)
                q = BatchNormalization (d, gamma, mean, beta, var)
            }}>
    }}"""
    before = parse(text)
    after = simplify(before)
    assert op_counts(after) == {"Relu": 1, "If": 1, "Conv": 2}
    for choice in (True, False):
        feeds = {
            "x": np.random.default_rng(1).standard_normal((2, 3, 8, 8), np.float32),
            "k": np.array(choice),
        }
        assert_same_outputs(before, after, feeds)


def test_float16_is_folded_in_float32():
    text = CONV.replace("float", "float16")
    before = parse(text, opset=15)
    after = simplify(before)
    assert op_counts(after) == {"Cast": 2, "Conv": 1}
    assert_same_outputs(before, after, tolerance=5e-3)
