import numpy as np
import onnx_ir as ir
import pytest
from graphs import assert_same_outputs, feeds_for, op_counts, parse

from onnxq.graph.passes import simplify


def test_small_results_are_stored():
    before = parse(
        """g (float[N,4] x) => (float[N,4] y) <float[4] a, float[4] b> {
            c = Add(a, b)
            d = Unsqueeze(c, i)
            y = Add(x, d)
        }""".replace("float[4] b>", "float[4] b, int64[1] i = {0}>")
    )
    after = simplify(before)
    assert op_counts(after) == {"Add": 1}
    assert_same_outputs(before, after)


LARGER = {
    "constant of shape": "o = ConstantOfShape <value = float[1] {0.01}> (s) w = Mul(o, row)",
    "expand": "w = Expand(row, s)",
    "tile": "w = Tile(row, rows)",
    "outer product": "w = MatMul(column, row)",
    "einsum": 'o = Einsum <equation = "ik,kj->ij"> (column, row) w = Neg(o)',
    "sparse": """z = ConstantOfShape <value = float[1] {0}> (s) w = ScatterND(z, place, number)""",
    "one hot": "w = OneHot(each, depth, ends)",
    "pad": "w = Pad(row, ends_of_row)",
}


@pytest.mark.parametrize("kind", LARGER)
def test_a_weight_that_is_larger_than_what_makes_it_stays_computed(kind):
    before = parse(
        f"""g (float[N,512] x) => (float[N,512] y) <int64[2] s = {{512, 512}}, float[1,512] row,
        int64[2] rows = {{512, 1}}, float[512,1] column, int64[2,2] place = {{0, 1, 2, 3}}, float[2] number,
        int64[512] each, int64 depth = {{512}}, float[2] ends, int64[4] ends_of_row = {{0, 0, 511, 0}}> {{
            {LARGER[kind]}
            y = MatMul(x, w)
        }}""",
        each=np.arange(512),
    )
    after = simplify(before)
    assert sum(v.const_value.size for v in after.graph.initializers.values()) < 5_000
    assert not after.graph[-1].inputs[1].is_initializer()
    assert_same_outputs(before, after)


SAME = {
    "low rank": "p = MatMul(down, up) q = Mul(p, k) t = Add(w, q)",
    "halves": "h = Concat <axis = 0> (upper, lower) t = Transpose <perm = [1, 0]> (h)",
    "scaled": "a = Mul(w, row) t = Div(a, column)",
}


@pytest.mark.parametrize("kind", SAME)
def test_a_weight_that_is_made_from_as_many_numbers_is_stored(kind):
    before = parse(
        f"""g (float[N,64] x) => (float[N,64] y) <float[64,64] w, float[64,2] down, float[2,64] up, float k = {{0.5}},
        float[32,64] upper, float[32,64] lower, float[1,64] row, float[64,1] var_column> {{
            {SAME[kind].replace("column", "var_column")}
            y = MatMul(x, t)
        }}"""
    )
    after = simplify(before)
    assert op_counts(after) == {"MatMul": 1}
    assert sum(v.const_value.size for v in after.graph.initializers.values()) == 64 * 64
    assert_same_outputs(before, after)


def test_growth_is_limited_for_all_constants_together():
    """Each of them alone is small enough, but there are many."""
    count = 32
    made = " ".join(f"e{i} = Expand(k{i}, s) a{i} = Add(a{i - 1 if i else 'x'}, e{i})" for i in range(count))
    made = made.replace("aa", "a").replace("ax", "x")
    weights = ", ".join(f"float[1,1] k{i} = {{{i + 1}}}" for i in range(count))
    before = parse(
        f"g (float[32,32] x) => (float[32,32] y) <int64[2] s = {{32, 32}}, {weights}> "
        f"{{ {made} y = Neg(a{count - 1}) }}"
    )
    after = simplify(before)
    assert op_counts(after)["Expand"] >= count - 2
    assert_same_outputs(before, after)


def test_what_would_blow_up_the_file_stays():
    before = parse(
        """g (float[N,512,512] x) => (float[N,512,512] y) <int64[2] s = {512, 512}, float[512] k> {
            o = ConstantOfShape <value = float[1] {0.01}> (s)
            e = Expand(k, s)
            f = Add(x, o)
            y = Mul(f, e)
        }"""
    )
    after = simplify(before)
    assert op_counts(after) == op_counts(before)
    assert_same_outputs(before, after)


def test_large_but_no_larger_than_before():
    before = parse(
        """g (float[N,400] x) => (float[N,400] y) <float[400,400] w> {
            t = Transpose(w)
            n = Neg(t)
            s = Softmax(n)
            y = Einsum <equation="ij,jk->ik"> (x, s)
        }"""
    )
    after = simplify(before)
    assert op_counts(after) == {"MatMul": 1}
    assert_same_outputs(before, after)


def test_quantization_is_left_alone():
    before = parse(
        """g (float[N,4] x) => (float[N,4] y) <int8[4,4] q, float s = {0.1}, int8 z = {0}> {
            w = DequantizeLinear(q, s, z)
            y = MatMul(x, w)
        }"""
    )
    after = simplify(before)
    assert op_counts(after) == {"DequantizeLinear": 1, "MatMul": 1}
    assert_same_outputs(before, after)


def test_random_numbers_stay_random():
    before = parse(
        """g (float[N,4] x) => (float[N,4] y) {
            r = RandomNormal <shape=[4]> ()
            q = RandomNormal <shape=[4]> ()
            s = Add(r, q)
            y = Add(x, s)
        }"""
    )
    assert op_counts(simplify(before)) == {"RandomNormal": 2, "Add": 2}


def test_what_the_reference_code_computes_differently_stays():
    before = parse(
        """g (float[1,1,2,2] x) => (float[1,1,2,2] y) <float[1,1,4,4] w, float[4] s = {1.0, 1.0, 0.6, 0.6}> {
            r = Resize <mode="linear", coordinate_transformation_mode="align_corners"> (w, , s)
            y = Add(x, r)
        }"""
    )
    after = simplify(before)
    assert op_counts(after) == {"Resize": 1, "Add": 1}
    assert_same_outputs(before, after)


def test_shapes_with_a_dynamic_batch():
    before = parse(
        """g (float[N,6,4] x) => (float[N,24] y) <int64 one = {1}, int64 two = {2}, int64[1] zero = {0}> {
            s = Shape(x)
            a = Gather(s, one)
            b = Gather(s, two)
            c = Mul(a, b)
            d = Unsqueeze(c, zero)
            m = Constant <value = int64[1] {-1}> ()
            t = Concat <axis=0> (m, d)
            y = Reshape(x, t)
        }"""
    )
    after = simplify(before)
    assert_same_outputs(before, after)
    assert_same_outputs(before, after, {"x": np.ones((7, 6, 4), np.float32)})


def test_an_if_that_is_decided_dissolves():
    before = parse(
        """g (float[N,4] x) => (float[N,4] y) <float[4,4] w> {
            c = Constant <value = bool {1}> ()
            a = If (c) <
                then_branch = t () => (float[N,4] u) { p = Relu(x) u = MatMul(p, w) },
                else_branch = e () => (float[N,4] v) { p = Neg(x) v = MatMul(p, w) }>
            p = Neg(a)
            y = Exp(p)
        }"""
    )
    after = simplify(before)
    assert op_counts(after) == {"Relu": 1, "MatMul": 1, "Neg": 1, "Exp": 1}
    assert_same_outputs(before, after)


def test_constants_of_bodies_move_to_the_main_graph():
    before = parse(
        """g (float[N,4] x, bool k) => (float[N,4] y) {
            y = If (k) <
                then_branch = t () => (float[N,4] u) {
                    w = Constant <value = float[4] {1.0, 2.0, 3.0, 4.0}> ()
                    u = Mul(x, w)
                },
                else_branch = e () => (float[N,4] v) {
                    w = Constant <value = float[4] {5.0, 6.0, 7.0, 8.0}> ()
                    v = Mul(x, w)
                }>
        }"""
    )
    after = simplify(before)
    assert op_counts(after) == {"If": 1, "Mul": 2}
    assert set(after.graph.initializers) == {"w", "w_1"}
    assert all(not g.initializers for g in after.graphs() if g is not after.graph)
    for choice in (True, False):
        assert_same_outputs(before, after, feeds_for(before, k=np.array(choice)))


@pytest.mark.parametrize(
    "constant",
    [
        "value_float = 2.0",
        "value_floats = [1.0, 2.0, 3.0, 4.0]",
        "value = float[4] {1.0, 2.0, 3.0, 4.0}",
    ],
)
def test_every_kind_of_constant(constant):
    before = parse(f"g (float[N,4] x) => (float[N,4] y) {{ c = Constant <{constant}> () y = Mul(x, c) }}")
    after = simplify(before)
    assert op_counts(after) == {"Mul": 1}
    assert_same_outputs(before, after)


def test_an_output_that_is_constant():
    before = parse(
        """g (float[N,4] x) => (int64[1] s, float[N,4] y) {
            t = Shape <start=1> (x)
            s = Identity(t)
            y = Relu(x)
        }""",
        opset=15,
    )
    after = simplify(before)
    assert_same_outputs(before, after)


def test_clutter_of_an_unoptimized_export():
    before = parse(
        """g (float[N,3,8,8] x) => (float[N,4,6,6] y)
        <float[4,3,3,3] w, float z = {0.0}, float[4] s, float[4] t, float[4] u, float[4] var> {
            n = Shape <start=0, end=1> (w)
            one = Constant <value_ints = [1]> ()
            e = Expand(n, one)
            c = CastLike(z, x)
            b = Expand(c, e)
            k = Conv(x, w, b)
            ss = CastLike(s, k)
            y = BatchNormalization(k, ss, t, u, var)
        }""",
        opset=18,
    )
    after = simplify(before)
    assert op_counts(after) == {"Conv": 1}
    assert_same_outputs(before, after)


def test_typed_and_shaped():
    after = simplify(
        parse("g (float[N,3,8,8] x) => (float[N,4,6,6] y) <float[4,3,3,3] w> { c = Conv(x, w) y = Relu(c) }")
    )
    assert after.graph[0].outputs[0].dtype == ir.DataType.FLOAT
    assert str(after.graph[0].outputs[0].shape) == "[N,4,6,6]"
