import numpy as np
import pytest
from benches import bench_of
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


SIZES = np.array([0.03, 2.0, 500.0, 9.0])
FEATURES = """g (float[N,4{size}] x) => (float[N,6{size}] y)
<float[4] gamma, float[4] beta, float[4] mean, float[4] var, {weights}> {{
  {before} b = BatchNormalization (r, gamma, beta, mean, var) {layer}
}}"""
PLAIN = {"gamma": 1.0, "beta": 0.0}
GEMM = ("", "float[4,6] w, float[6] c", "y = Gemm (b, w, c)")
CONV = (",8,8", "float[6,4,1,1] w", "y = Conv (b, w)")
GROUPED = (",8,8", "float[6,2,1,1] w", "y = Conv <group=2> (b, w)")
LINEAR = ("", "float[4,6] w, float[6] c", "z = MatMul (b, w) y = Add (z, c)")


def features(layer, before="r = Identity (x)", weights=(), **given):
    size, own, text = layer
    body = FEATURES.format(size=size, weights=", ".join((own, *weights)), before=before, layer=text)
    return parse(body, **{**PLAIN, **given})


@pytest.mark.parametrize("layer", [GEMM, CONV, GROUPED, LINEAR], ids=["Gemm", "Conv", "grouped", "MatMul"])
@pytest.mark.parametrize(
    ("mean", "deviation", "folded"),
    [
        (SIZES, 0.4 * SIZES, False),
        (0 * SIZES, SIZES, False),
        (300.0, 1.0, False),
        (127.0, 60.0, True),
        (0.5, [0.2, 0.3, 0.25, 0.2], True),
    ],
    ids=["sizes", "deviations", "far from zero", "bytes", "pictures"],
)
def test_raw_features_of_different_sizes_keep_their_batchnorm(layer, mean, deviation, folded):
    before = features(layer, mean=mean, var=np.square(deviation))
    after = simplify(before)
    assert op_counts(after).get("BatchNormalization", 0) == (0 if folded else 1)
    assert_same_outputs(before, after, tolerance=1e-3)


@pytest.mark.parametrize(
    ("operators", "folded"),
    [
        ("q = Conv (x, v) r = Relu (q)", True),
        ("q = Conv (x, v) p = LeakyRelu (q) r = MaxPool <kernel_shape=[1,1]> (p)", True),
        ("q = Conv (x, v) r = Sigmoid (q)", False),
        ("r = Relu (x)", False),
        ("q = Conv (x, v) r = Add (q, x)", False),
    ],
)
def test_layers_before_can_make_up_for_different_sizes(operators, folded):
    before = features(CONV, operators, ("float[4,4,1,1] v",), mean=SIZES, var=SIZES**2)
    after = simplify(before)
    assert op_counts(after).get("BatchNormalization", 0) == (0 if folded else 1)
    assert_same_outputs(before, after, tolerance=1e-3)


def test_what_makes_features_alike_after_all_is_folded():
    before = features(GEMM, mean=0.0, var=1.0, gamma=SIZES, w=np.ones((4, 6)) / SIZES[:, None])
    assert op_counts(simplify(before)) == {"Gemm": 1}


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt", "openvino"])
def test_integers_suit_features_of_different_sizes(target):
    raw = features(GEMM, "r = Mul (x, sizes)", ("float[4] sizes",), sizes=SIZES, mean=0.0, var=SIZES**2)
    draft, context = bench_of(simplify(raw), (1, 4), target=target)
    assert context.error(draft) < 0.01
