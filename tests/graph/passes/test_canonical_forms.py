"""One way to write a sum, a spatial mean, a flattening and a linear layer."""

import numpy as np
import pytest
from graphs import assert_same_outputs, op_counts, parse

from onnxq.graph.passes import simplify


def both(text, expected, feeds=None, **options):
    before = parse(text, **options)
    after = simplify(before)
    assert op_counts(after) == expected
    assert_same_outputs(before, after, feeds)
    return after


def test_sum_of_two_is_add():
    both("g (float[N,4] x, float[4] z) => (float[N,4] y) { y = Sum(x, z) }", {"Add": 1})


def test_sum_of_one_is_nothing():
    both("g (float[N,4] x) => (float[N,4] y) { a = Relu(x) y = Sum(a) }", {"Relu": 1})


def test_sum_of_three_stays():
    both("g (float[N,4] x, float[4] z) => (float[N,4] y) { y = Sum(x, z, x) }", {"Sum": 1})


@pytest.mark.parametrize(
    ("mean", "opset", "expected"),
    [
        ("ReduceMean <axes=[2,3]> (x)", 13, {"GlobalAveragePool": 1}),
        ("ReduceMean <axes=[-1,-2], keepdims=1> (x)", 11, {"GlobalAveragePool": 1}),
        ("ReduceMean <axes=[2,3], keepdims=0> (x)", 13, {"GlobalAveragePool": 1, "Flatten": 1}),
        ("ReduceMean (x, a)", 18, {"GlobalAveragePool": 1}),
        ("ReduceMean <keepdims=0> (x, a)", 18, {"GlobalAveragePool": 1, "Flatten": 1}),
        ("ReduceMean <axes=[2]> (x)", 13, {"ReduceMean": 1}),
        ("ReduceMean <axes=[1,2,3]> (x)", 13, {"ReduceMean": 1}),
        ("ReduceMean (x)", 13, {"ReduceMean": 1}),
        ("ReduceMean <noop_with_empty_axes=1> (x)", 18, {"ReduceMean": 1}),
    ],
)
def test_a_spatial_mean_is_a_pool(mean, opset, expected):
    tensors = "<int64[2] a = {-2, -1}>" if "a)" in mean else ""
    both(
        f"g (float[N,3,4,5] x) => (float y) {tensors} {{ y = {mean} }}".replace("float y", _output(mean)),
        expected,
        opset=opset,
    )


@pytest.mark.parametrize(
    "body",
    [
        "m = ReduceMean <axes=[2]> (x) y = Sub(x, m)",
        "s = Mul(x, x) m = ReduceMean <axes=[2]> (s) y = Div(x, m)",
        "s = Pow(x, two) m = ReduceMean <axes=[2]> (s) y = Div(x, m)",
    ],
)
def test_the_means_of_a_normalization_stay(body):
    before = parse(f"g (float[N,3,4] x) => (float[N,3,4] y) <float two = {{2}}> {{ {body} }}")
    after = simplify(before)
    assert op_counts(after)["ReduceMean"] == 1
    assert_same_outputs(before, after)


def _output(mean):
    if "noop" in mean:
        return "float[N,3,4,5] y"
    return "float[N,3] y" if "keepdims=0" in mean else "float[a,b,c,d] y"


def test_the_pooled_name_survives_when_others_read_it():
    both(
        """g (float[N,3,4,5] x) => (float[N,3] y, float[N,3] z) {
            y = ReduceMean <axes=[2,3], keepdims=0> (x)
            z = Relu(y)
        }""",
        {"GlobalAveragePool": 1, "Flatten": 1, "Relu": 1},
    )


@pytest.mark.parametrize(
    ("sequence", "axis", "mean", "expected"),
    [("float[N,C,L]", 2, "float[N,C,k]", "GlobalAveragePool"), ("float[N,C]", 1, "float[N,k]", "ReduceMean")],
)
def test_a_mean_of_other_ranks(sequence, axis, mean, expected):
    both(
        f"g ({sequence} x) => ({mean} y) {{ y = ReduceMean <axes=[{axis}]> (x) }}",
        {expected: 1},
    )


def test_the_mean_of_a_square_root_mean_square_stays():
    both(
        """g (float[N,3,5] x) => (float[N,3,5] y) <float two = {2}> {
            s = Pow(x, two)
            v = ReduceMean <axes=[2]> (s)
            r = Sqrt(v)
            y = Div(x, r)
        }""",
        {"ReduceMean": 1, "Pow": 1, "Sqrt": 1, "Div": 1},
    )


def test_integer_means_stay():
    both("g (int32[N,3,4,5] x) => (int32[N,3,1,1] y) { y = ReduceMean <axes=[2,3]> (x) }", {"ReduceMean": 1})


@pytest.mark.parametrize(
    ("image", "shape", "flat"),
    [
        ("float[N,3,4,5]", "{0,-1}", True),
        ("float[N,3,4,5]", "{-1,60}", True),
        ("float[2,3,4,5]", "{2,60}", True),
        ("float[2,3,4,5]", "{2,-1}", True),
        ("float[2,3,4,5]", "{6,20}", False),
        ("float[N,3,4,5]", "{-1,20}", False),
        ("float[N,3,H,5]", "{-1,60}", False),
        ("float[N,3,4,5]", "{1,-1}", False),
    ],
)
def test_reshape_after_the_batch_axis_is_flatten(image, shape, flat):
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 3, 4, 5), np.float32)}
    both(
        f"g ({image} x) => (float[a,b] y) <int64[2] s = {shape}> {{ y = Reshape(x, s) }}",
        {"Flatten" if flat else "Reshape": 1},
        feeds,
    )


def test_reshape_to_a_computed_batch_is_flatten():
    both(
        """g (float[N,3,1,1] x) => (float[N,3] y) <int64 i = {0}, int64[1] ax = {0}, int64[1] m = {-1}> {
            r = Relu(x)
            s = Shape(x)
            n = Gather(s, i)
            u = Unsqueeze(n, ax)
            t = Concat <axis=0> (u, m)
            y = Reshape(r, t)
        }""",
        {"Relu": 1, "Flatten": 1},
    )


def test_reshape_to_another_batch_stays():
    text = """g (float[N,4,1] x, float[K,1] z) => (float[a,b] y)
    <int64 i = {0}, int64[1] ax = {0}, int64[1] m = {-1}> {
        s = Shape(z)
        n = Gather(s, i)
        u = Unsqueeze(n, ax)
        t = Concat <axis=0> (u, m)
        y = Reshape(x, t)
    }"""
    feeds = {"x": np.ones((2, 4, 1), np.float32), "z": np.ones((4, 1), np.float32)}
    before = parse(text)
    after = simplify(before)
    assert op_counts(after)["Reshape"] == 1
    assert_same_outputs(before, after, feeds)


@pytest.mark.parametrize("transpose", ["transB=1", "transA=1", "transA=0"])
@pytest.mark.parametrize(
    "bias", ["float[4] b", "float[1,4] b", "float b", "float[1,1] b", "float[2,4] b", "float[2,1] b"]
)
def test_gemm_scalars(transpose, bias):
    shape = {"transB=1": ("[2,6]", "[4,6]"), "transA=1": ("[6,2]", "[6,4]"), "transA=0": ("[2,6]", "[6,4]")}
    x, w = shape[transpose]
    after = both(
        f"g (float{x} x) => (float[2,4] y) <float{w} w, {bias}> {{"
        f" y = Gemm <alpha=0.3, beta=1.7, {transpose}> (x, w, b) }}",
        {"Gemm": 1},
    )
    (gemm,) = after.graph
    assert not {"alpha", "beta"} & set(gemm.attributes)
    rows = {"float[2,4] b": [2, 4], "float[2,1] b": [2, 1]}
    assert list(gemm.inputs[2].const_value.shape.numpy()) == rows.get(bias, [4])


def test_a_column_as_high_as_the_matrix_is_wide_is_no_row():
    both(
        """g (float[4,6] x) => (float[4,4] y, float[4,4] z) <float[6,4] w, float[4,1] b, float[4,1] c> {
            p = Gemm <beta=0.5> (x, w, b)
            y = Mul(p, k)
            q = MatMul(x, w)
            z = Add(q, c)
        }""".replace("c>", "c, float k = {2.0}>"),
        {"Gemm": 1, "Mul": 1, "MatMul": 1, "Add": 1},
    )


def test_gemm_scalars_of_run_time_tensors_stay():
    after = both(
        """g (float[2,6] x, float[6,4] w, float[4] b) => (float[2,4] y) {
            y = Gemm <alpha=0.3, beta=1.7> (x, w, b)
        }""",
        {"Gemm": 1},
    )
    assert {"alpha", "beta"} <= set(after.graph[0].attributes)


def test_gemm_scalars_leave_shared_tensors_alone():
    both(
        """g (float[N,4] x) => (float[N,4] y) <float[4,4] w, float[4] b> {
            a = Gemm <alpha=0.5, beta=2.0> (x, w, b)
            y = Gemm (a, w, b)
        }""",
        {"Gemm": 2},
    )


@pytest.mark.parametrize("add", ["Add(m, b)", "Add(b, m)"])
@pytest.mark.parametrize("bias", ["float[4] b", "float[1,4] b", "float b", "float[1] b"])
def test_matmul_add_is_gemm(add, bias):
    after = both(
        f"g (float[N,6] x) => (float[N,4] y) <float[6,4] w, {bias}> {{ m = MatMul(x, w) y = {add} }}",
        {"Gemm": 1},
    )
    (gemm,) = after.graph
    assert [v.name for v in gemm.inputs] == ["x", "w", "b"]
    assert gemm.outputs[0].name == "y"


@pytest.mark.parametrize(
    ("interface", "tensors", "add"),
    [
        ("(float[N,M,6] x) => (float[N,M,4] y)", "float[6,4] w, float[4] b", "Add(m, b)"),
        ("(float[N,6] x, float[6,4] w) => (float[N,4] y)", "float[4] b", "Add(m, b)"),
        ("(float[N,6] x, float[4] b) => (float[N,4] y)", "float[6,4] w", "Add(m, b)"),
        ("(float[N,6] x) => (float[1,N,4] y)", "float[6,4] w, float[1,1,4] b", "Add(m, b)"),
        ("(float[2,6] x) => (float[2,4] y)", "float[6,4] w, float[2,1] b", "Add(m, b)"),
        ("(float[N,6] x) => (float[N,4] y, float[N,4] m)", "float[6,4] w, float[4] b", "Add(m, b)"),
        ("(float[N,6] x) => (float[N,4] y)", "float[6,4] w", "Add(m, m)"),
        ("(int64[N,6] x) => (int64[N,4] y)", "int64[6,4] w, int64[4] b", "Add(m, b)"),
    ],
)
def test_matmul_add_stays(interface, tensors, add):
    both(f"g {interface} <{tensors}> {{ m = MatMul(x, w) y = {add} }}", {"MatMul": 1, "Add": 1})


def test_shared_bias_of_another_shape():
    both(
        """g (float[N,6] x) => (float[N,4] y, float[N,5] z) <float[6,4] w, float[6,5] v, float b> {
            m = MatMul(x, w)
            y = Add(m, b)
            n = MatMul(x, v)
            z = Add(n, b)
        }""",
        {"Gemm": 2},
    )


def test_equal_nodes_become_one():
    after = both(
        """g (float[N,4] x) => (float[N,4] y, float[N,4] z) {
            a = Relu(x)
            b = Relu(x)
            c = LeakyRelu <alpha=0.1> (a)
            d = LeakyRelu <alpha=0.1> (b)
            e = LeakyRelu <alpha=0.2> (b)
            f = Add(c, d)
            y = Add(f, e)
            z = Add(f, e)
        }""",
        {"Relu": 1, "LeakyRelu": 2, "Add": 3},
    )
    assert [v.name for v in after.graph.outputs] == ["y", "z"]


def test_nodes_of_different_bodies_stay():
    text = """g (float[N,4] x, bool k) => (float[N,4] y) {
        y = If (k) <
            then_branch = t () => (float[N,4] u) { a = Relu(x) u = Neg(a) },
            else_branch = e () => (float[N,4] v) { b = Relu(x) v = Exp(b) }>
    }"""
    both(text, {"If": 1, "Relu": 2, "Neg": 1, "Exp": 1})


def test_optional_outputs_tell_nodes_apart():
    both(
        """g (float[N,2,4,4] x) => (float[N,2,3,3] y, int64[N,2,3,3] i) {
            a = MaxPool <kernel_shape=[2,2]> (x)
            b, i = MaxPool <kernel_shape=[2,2]> (x)
            y = Add(a, b)
        }""",
        {"MaxPool": 2, "Add": 1},
    )


def test_unused_nodes_and_weights_go():
    after = both(
        "g (float[N,4] x) => (float[N,4] y) <float[4,4] w> { d = MatMul(x, w) e = Neg(d) y = Relu(x) }",
        {"Relu": 1},
    )
    assert not after.graph.initializers


def test_the_branch_that_is_never_taken_is_no_reader():
    after = both(
        """g (float[N,4] x) => (float[N,4] y) <bool always = {1}, float[4,4] w> {
            a = MatMul(x, w)
            y = If(always) <then_branch = t () => (float[N,4] p) { p = Neg(a) },
                            else_branch = e () => (float[N,4] r) { q = Relu(a) r = Abs(q) }>
        }""",
        {"MatMul": 1, "Neg": 1},
    )
    assert [use.node.op_type for use in after.graph.node(0).outputs[0].uses()] == ["Neg"]


def test_the_body_of_an_unused_node_is_no_reader():
    after = both(
        """g (float[N,4] x, bool c) => (float[N,4] y) <float[4,4] w> {
            a = MatMul(x, w) y = Relu(a)
            d = If(c) <then_branch = t () => (float[N,4] p) { p = Neg(a) },
                       else_branch = e () => (float[N,4] q) { i = If(c) <then_branch = u () => (float[N,4] r) { r = Exp(a) },
                           else_branch = v () => (float[N,4] s) { s = Abs(a) }> q = Add(i, a) }>
        }""",
        {"MatMul": 1, "Relu": 1},
    )
    assert [use.node.op_type for use in after.graph.node(0).outputs[0].uses()] == ["Relu"]


@pytest.mark.parametrize(
    ("attributes", "opset", "gone"),
    [
        ("dilations=[1, 1]", 19, {"dilations"}),
        ("dilations=[1, 2]", 19, set()),
        ("strides=[2, 2], ceil_mode=1", 11, {"ceil_mode"}),  # 9 - 3 and 11 - 3 are even
        ("strides=[4, 2], ceil_mode=1", 13, set()),
        ("strides=[4, 4], ceil_mode=1, count_include_pad=1", 13, {"count_include_pad"}),
        ("strides=[2, 3], ceil_mode=1, count_include_pad=1, pads=[0, 0, 0, 1]", 13, {"ceil_mode"}),
        ("strides=[4, 4], ceil_mode=1, count_include_pad=1, pads=[1, 1, 0, 0]", 13, set()),
        ('strides=[4, 4], ceil_mode=1, auto_pad="VALID", count_include_pad=1', 22, {"count_include_pad"}),
        ('strides=[4, 4], ceil_mode=1, auto_pad="SAME_UPPER", count_include_pad=1', 17, set()),
        ("ceil_mode=1, count_include_pad=1, pads=[1, 1, 1, 1]", 11, {"ceil_mode"}),
        ("count_include_pad=1", 11, set()),
    ],
)
def test_an_average_pool_loses_what_changes_nothing(attributes, opset, gone):
    before = parse(
        f"""g (float[N,2,9,11] x) => (float[A,B,C,D] y) {{
            y = AveragePool <kernel_shape=[3, 3], {attributes}> (x)
        }}""",
        opset=opset,
        ir_version=8 if opset < 19 else 10,
    )
    after = simplify(before)
    assert before.graph.node(0).attributes.keys() - after.graph.node(0).attributes.keys() == gone
    assert_same_outputs(before, after)


def test_an_average_pool_of_unknown_size_may_be_rounded():
    both(
        """g (float[N,2,H,9] x) => (float[A,B,C,D] y) {
            y = AveragePool <kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1> (x)
        }""",
        {"AveragePool": 1},
    )


@pytest.mark.parametrize(
    ("data", "product", "weight", "expected"),
    [
        ("N,M,6", "x, w", "1,6,4", {"MatMul": 1}),
        ("2,N,M,6", "x, w", "1,1,6,4", {"MatMul": 1}),
        ("2,N,M,6", "x, w", "1,6,4", {"MatMul": 1}),
        ("M,6", "x, w", "1,6,4", {"MatMul": 1, "Unsqueeze": 1}),
        ("N,M,6", "x, w", "1,1,6,4", {"MatMul": 1, "Unsqueeze": 1}),
        ("N,6,M", "w, x", "1,4,6", {"MatMul": 1}),
        ("6,M", "w, x", "1,1,4,6", {"MatMul": 1, "Unsqueeze": 1}),
    ],
)
@pytest.mark.parametrize("opset", [9, 13, 21])
def test_a_stack_of_one_matrix_is_the_matrix(data, product, weight, expected, opset):
    text = f"g (float[{data}] x) => (float[{rank(data, weight)}] y) <float[{weight}] w> {{ y = MatMul({product}) }}"
    after = both(text, expected, opset=opset)
    assert len(after.graph.initializers["w"].shape) == 2


def rank(*shapes):
    return ",".join("ABCD"[: max(len(shape.split(",")) for shape in shapes)])


@pytest.mark.parametrize(
    ("interface", "weight", "body"),
    [
        ("(float[2,M,6] x) => (float[2,M,4] y)", "2,6,4", "y = MatMul(x, w)"),
        ("(float[6] x) => (float[1,4] y)", "1,6,4", "y = MatMul(x, w)"),
        (
            "(float[N,M,6] x, float[4] k) => (float[N,M,4] y, float[1,6,4] z)",
            "1,6,4",
            "y = MatMul(x, w) z = Mul(w, k)",
        ),
        ("(float[N,M,6] x) => (float[N,M,4] y, float[1,6,4] w)", "1,6,4", "y = MatMul(x, w)"),
    ],
    ids=["two matrices", "a vector", "another reader", "a graph output"],
)
def test_other_stacks_stay(interface, weight, body):
    before = parse(f"g {interface} <float[{weight}] w> {{ {body} }}")
    assert simplify(before).graph.initializers["w"].shape == [int(size) for size in weight.split(",")]


def test_a_stack_of_one_matrix_that_several_read():
    """Also in a body, and beside data of another rank; the axes are given to each."""
    after = both(
        """g (float[N,M,6] x, float[M,6] z, bool c) => (float[N,M,4] y, float[1,M,4] v, float[1,M,4] u) <float[1,6,4] w> {
            y = MatMul(x, w) v = MatMul(z, w)
            u = If(c) <then_branch = t () => (float[1,M,4] a) { n = Neg(z) a = MatMul(n, w) },
                       else_branch = e () => (float[1,M,4] b) { b = MatMul(z, w) }>
        }""",
        {"MatMul": 4, "Unsqueeze": 3, "Neg": 1, "If": 1},
    )
    assert after.graph.initializers["w"].shape == [6, 4]
