import pytest
from graphs import assert_same_outputs, op_counts, parse

from onnxq.graph.passes import simplify


def model(conv, weights, image="float[N,4,8,8]", **given):
    return parse(
        f"""g ({image} x) => (float[N,6,h,w] y)
        <float[4] gamma, float[4] beta, float[4] mean, float[4] var, {weights}> {{
            r = Relu(x)
            b = BatchNormalization (r, gamma, beta, mean, var)
            y = {conv}
        }}""",
        **given,
    )


@pytest.mark.parametrize(
    ("conv", "weights"),
    [
        ("Conv (b, w)", "float[6,4,3,3] w"),
        ("Conv (b, w, c)", "float[6,4,1,1] w, float[6] c"),
        ("Conv <group=2, strides=[2,1]> (b, w)", "float[6,2,3,3] w"),
        ('Conv <auto_pad="VALID", dilations=[2,2]> (b, w)', "float[6,4,3,3] w"),
    ],
)
def test_into_an_unpadded_conv(conv, weights):
    before = model(conv, weights)
    after = simplify(before)
    assert op_counts(after) == {"Relu": 1, "Conv": 1}
    assert_same_outputs(before, after)


def test_into_a_gemm():
    before = parse(
        """g (float[N,4] x) => (float[N,6] y)
        <float[4] gamma, float[4] beta, float[4] mean, float[4] var, float[6,4] w, float[6] c> {
            r = Relu(x)
            b = BatchNormalization (r, gamma, beta, mean, var)
            y = Gemm <transB=1> (b, w, c)
        }"""
    )
    after = simplify(before)
    assert op_counts(after) == {"Relu": 1, "Gemm": 1}
    assert_same_outputs(before, after)


@pytest.mark.parametrize("padding", ["pads=[1,1,1,1]", 'auto_pad="SAME_UPPER"'])
def test_padding_keeps_a_shift_out(padding):
    before = model(f"Conv <{padding}> (b, w)", "float[6,4,3,3] w")
    after = simplify(before)
    assert op_counts(after) == {"Relu": 1, "BatchNormalization": 1, "Conv": 1}
    assert_same_outputs(before, after)


def test_padding_lets_a_bare_scale_in():
    before = model("Conv <pads=[1,1,1,1]> (b, w)", "float[6,4,3,3] w", beta=0, mean=0)
    after = simplify(before)
    assert op_counts(after) == {"Relu": 1, "Conv": 1}
    assert len(after.graph[1].inputs) == 2, "no shift, so no bias"
    assert_same_outputs(before, after)


def test_not_when_somebody_else_reads_the_batchnorm():
    before = parse(
        """g (float[N,4,8,8] x) => (float[N,6,h,w] y, float[N,4,8,8] z)
        <float[4] gamma, float[4] beta, float[4] mean, float[4] var, float[6,4,3,3] w> {
            z = BatchNormalization (x, gamma, beta, mean, var)
            y = Conv (z, w)
        }"""
    )
    after = simplify(before)
    assert op_counts(after) == op_counts(before)
    assert_same_outputs(before, after)
