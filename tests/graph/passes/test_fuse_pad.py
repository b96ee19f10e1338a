import numpy as np
import pytest
from graphs import assert_same_outputs, feeds_for, op_counts, parse

from onnxq.graph.passes import simplify

PADS = "int64[8] p = {0,0,1,2,0,0,3,0}"


def model(reader, pads=PADS, source="Relu(x)", pad="Pad(r, p)", opset=13, more="", out="float[N,a,h,w] y"):
    tensors = ", ".join(t for t in (pads, more) if t)
    return parse(
        f"""g (float[N,3,8,8] x) => ({out}) <{tensors}> {{
            r = {source}
            q = {pad}
            y = {reader}
        }}""",
        opset=opset,
    )


def check(before, fused):
    after = simplify(before)
    assert ("Pad" not in op_counts(after)) == fused
    rng = np.random.default_rng(3)
    assert_same_outputs(before, after, {"x": rng.standard_normal((2, 3, 8, 8), np.float32)})
    return after


@pytest.mark.parametrize(
    "conv",
    [
        "Conv(q, w)",
        "Conv <pads=[1,0,2,1]> (q, w)",
        "Conv <strides=[2,2], dilations=[2,1]> (q, w)",
        'Conv <auto_pad="VALID"> (q, w)',
        'Conv <auto_pad="NOTSET", pads=[1,1,1,1]> (q, w)',
    ],
)
def test_into_conv(conv):
    check(model(conv, more="float[4,3,3,3] w"), fused=True)


def test_pads_add_up():
    after = check(model("Conv <pads=[1,0,2,1]> (q, w)", more="float[4,3,3,3] w"), fused=True)
    assert tuple(after.graph[1].attributes["pads"].as_ints()) == (2, 2, 5, 1)


@pytest.mark.parametrize(
    ("pad", "pads"),
    [
        ("Pad(r, p)", "int64[8] p = {0,0,1,-1,0,0,1,1}"),  # cuts off
        ("Pad(r, p)", "int64[8] p = {0,0,1,1,0,1,1,1}"),  # a channel
        ("Pad(r, p)", "int64[8] p = {1,0,1,1,0,0,1,1}"),  # a sample
        ("Pad(r, p, v)", "int64[8] p = {0,0,1,1,0,0,1,1}, float v = {1.0}"),
        ('Pad <mode="reflect"> (r, p)', PADS),
        ('Pad <mode="edge"> (r, p)', PADS),
    ],
)
def test_not_what_a_conv_does_not_do(pad, pads):
    channels = 4 if "{0,0,1,1,0,1" in pads else 3
    check(model("Conv(q, w)", pads, pad=pad, more=f"float[4,{channels},3,3] w"), fused=False)


def test_not_where_the_conv_pads_by_itself():
    check(model('Conv <auto_pad="SAME_UPPER", strides=[2,2]> (q, w)', more="float[4,3,3,3] w"), fused=False)


def test_pads_computed_at_run_time_stay():
    before = parse(
        """g (float[N,3,8,8] x, int64[8] p) => (float[N,a,h,w] y) <float[4,3,3,3] w> {
            q = Pad(x, p)
            y = Conv(q, w)
        }"""
    )
    after = simplify(before)
    assert op_counts(after) == {"Pad": 1, "Conv": 1}
    feeds = feeds_for(before, p=np.array([0, 0, 1, 1, 0, 0, 1, 1]))
    assert_same_outputs(before, after, feeds)


def test_axes_of_opset_18():
    pads = "int64[4] p = {1,2,3,0}, int64[2] k = {-2,3}"
    check(model("Conv(q, w)", pads, pad="Pad(r, p, , k)", opset=18, more="float[4,3,3,3] w"), fused=True)


def test_opset_9_pads_are_attributes():
    before = parse(
        """g (float[N,3,8,8] x) => (float[N,a,h,w] y) <float[4,3,3,3] w> {
            q = Pad <pads=[0,0,1,1,0,0,1,1], value=0.0> (x)
            y = Conv(q, w)
        }""",
        opset=9,
    )
    check(before, fused=True)


def test_one_pad_for_two_convs():
    before = parse(
        f"""g (float[N,3,8,8] x) => (float[N,a,h,w] y, float[N,b,i,j] z)
        <{PADS}, float[4,3,3,3] w, float[4,3,1,1] v> {{
            q = Pad(x, p)
            y = Conv(q, w)
            z = Conv(q, v)
        }}"""
    )
    check(before, fused=True)


def test_others_keep_their_pad():
    before = parse(
        f"""g (float[N,3,8,8] x) => (float[N,a,h,w] y, float[N,3,i,j] z) <{PADS}, float[4,3,3,3] w> {{
            q = Pad(x, p)
            y = Conv(q, w)
            z = Neg(q)
        }}"""
    )
    after = check(before, fused=False)
    assert next(n for n in after.graph if n.op_type == "Conv").inputs[0].name == "x"


POOL_PADS = "int64[8] p = {0,0,1,2,0,0,2,0}"


@pytest.mark.parametrize(
    ("pool", "fused"),
    [
        ("AveragePool <kernel_shape=[3,3]> (q)", True),
        ("AveragePool <kernel_shape=[3,3], strides=[2,2]> (q)", True),
        ("AveragePool <kernel_shape=[4,4], pads=[1,1,1,1], count_include_pad=1> (q)", True),
        ("AveragePool <kernel_shape=[4,4], pads=[1,1,1,1]> (q)", False),  # leaves its own padding out
        ("AveragePool <kernel_shape=[2,2]> (q)", False),  # windows of padding alone
        ("AveragePool <kernel_shape=[3,3], strides=[2,2], ceil_mode=1> (q)", False),
        ("MaxPool <kernel_shape=[3,3]> (q)", True),
        ("MaxPool <kernel_shape=[4,4], pads=[1,1,1,1], strides=[2,2]> (q)", True),
        ("MaxPool <kernel_shape=[2,2]> (q)", False),
        ("MaxPool <kernel_shape=[3,3], dilations=[2,2]> (q)", False),
    ],
)
def test_pools(pool, fused):
    check(model(pool, POOL_PADS), fused)


@pytest.mark.parametrize(
    ("source", "pad", "value", "fused"),
    [
        ("Neg(x)", "Pad(r, p)", "", False),  # 0 may exceed every x of a window
        ("Clip(x, v, u)", "Pad(r, p)", "float v = {0.0}, float u = {6.0}", True),
        ("Clip(x, v, u)", "Pad(r, p)", "float v = {-1.0}, float u = {6.0}", False),
        ("Neg(x)", "Pad(r, p, v)", "float v = {-inf}", True),
        ("Relu(x)", "Pad(r, p, v)", "float v = {-1.0}", False),
    ],
)
def test_max_pool_pads_with_minus_infinity(source, pad, value, fused):
    before = model(
        "MaxPool <kernel_shape=[3,3]> (q)", POOL_PADS, source, pad, more=value.replace("-inf", "-1.0")
    )
    if "-inf" in value:
        import onnx_ir as ir

        before.graph.initializers["v"].const_value = ir.tensor(np.array(-np.inf, np.float32), name="v")
    check(before, fused)


def test_the_indices_of_a_max_pool_count_the_padding():
    before = parse(
        f"""g (float[N,3,8,8] x) => (float[N,a,h,w] y, int64[N,a,h,w] i) <{POOL_PADS}> {{
            r = Relu(x)
            q = Pad(r, p)
            y, i = MaxPool <kernel_shape=[3,3]> (q)
        }}"""
    )
    check(before, fused=False)


def test_inside_and_across_a_body():
    before = parse(
        f"""g (float[N,3,8,8] x, bool k) => (float[N,4,9,8] y) <{PADS}, float[4,3,4,3] w> {{
            q = Pad(x, p)
            y = If (k) <
                then_branch = t () => (float[N,4,9,8] u) {{ u = Conv(q, w) }},
                else_branch = e () => (float[N,4,9,8] v) {{ d = Pad(x, p)  v = Conv(d, w) }}>
        }}"""
    )
    after = simplify(before)
    assert op_counts(after) == {"If": 1, "Conv": 2}
    for choice in (True, False):
        assert_same_outputs(before, after, feeds_for(before, k=np.array(choice)))
