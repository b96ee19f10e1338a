"""Models in half precision: types, Casts, interfaces, and outputs close to float32's."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import feeds_for, op_counts, parse

from calibrators.session import open_session
from onnxq.graph.half_precision.narrow import Narrowing, narrow
from onnxq.graph.half_precision.widen import use_float32
from onnxq.graph.passes import plain

HALF, FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT

LAYERS = """g (float[N, 4] x) => (float[N, 3] y) <float[4, 8] w, float[8] b, float[8, 3] v>
{ h = MatMul(x, w)  a = Add(h, b)  r = Relu(a)  y = MatMul(r, v) }"""

TWICE = """g (float[N, 4] x) => (float[N, 4] y, float[N, 4] z) <float[4] w>
{ a = Add(x, w)  e = Exp(a)  y = Mul(e, w)  z = Sub(e, a) }"""

RESIZED = """g (float[1, 1, 2, 2] x) => (float[A, B, C, D] y) <float[4] scales = {1, 1, 2, 2}>
{ h = Neg(x)  y = Resize(h, , scales) }"""

BRANCHES = """g (float[N] x, bool k) => (float[N] y) <float w>
{
    h = Neg(x)
    r = If(k) <then_branch = t () => (float[N] a) { a = Add(h, w) }, else_branch = e () => (float[N] b) { b = Exp(h) }>
    y = Abs(r)
}"""

LOOP = """g (float[N] x) => (float[N] y, float[C, N] all) <int64 count = {3}, bool yes = {1}>
{
    y, all = Loop(count, yes, x) <body = l (int64 i, bool c, float[N] v) => (bool o, float[N] u, float[N] s)
        { o = Identity(c)  u = Tanh(v)  s = Neg(u) }>
}"""

GENERATED = """g (int64[2] n, float[A, B] x) => (float[A, B] y)
{ c = ConstantOfShape<value = float[1] {1.5}>(n)  y = Add(c, x) }"""

SEQUENCE = """g (float[N] x, int64 i) => (float[N] y)
{ h = Neg(x)  s = SequenceConstruct(h, x)  a = SequenceAt(s, i)  y = Relu(a) }"""

PASSED = "g (float[N] x) => (float[N] y, float[N] z) { y = Identity(x)  z = Neg(x) }"

MODELS = {
    "layers": LAYERS,
    "twice": TWICE,
    "resized": RESIZED,
    "branches": BRANCHES,
    "loop": LOOP,
    "generated": GENERATED,
    "sequence": SEQUENCE,
    "passed": PASSED,
}


def model_of(text, opset=17, **given):
    return plain(parse(text, opset=opset, **given), opset)


def narrowed(model, *float32, dtype=HALF, keep_io=True):
    after = model.clone()
    narrow(after, Narrowing(dtype, dict.fromkeys(float32, "asked for"), keep_io))
    onnx.checker.check_model(ir.to_proto(after), full_check=True)
    return after


def values(model, feeds):
    session = open_session(model)
    types = {each.name: each.type for each in session.get_inputs()}
    given = {n: a.astype(np.float16) if "float16" in types[n] else a for n, a in feeds.items()}
    return session.run(None, given)


def feeds(model):
    given = {"k": np.array(False)} if any(v.name == "k" for v in model.graph.inputs) else {}
    given |= {"n": np.array([2, 3])} if any(v.name == "n" for v in model.graph.inputs) else {}
    given |= {"x": np.ones((2, 3), np.float32)} if "n" in given else {}
    return feeds_for(model, **given)


@pytest.mark.parametrize("keep_io", [True, False])
@pytest.mark.parametrize("opset", [13, 17, 21])
@pytest.mark.parametrize("kind", MODELS)
def test_outputs_are_those_of_float32(kind, opset, keep_io):
    before = model_of(MODELS[kind], opset)
    after = narrowed(before, keep_io=keep_io)
    kept, wanted = feeds(before), FLOAT if keep_io else HALF
    for value in (*after.graph.inputs, *after.graph.outputs):
        assert value.dtype in (wanted, ir.DataType.INT64, ir.DataType.BOOL)
    assert [v.name for v in after.graph.outputs] == [v.name for v in before.graph.outputs]
    for one, other in zip(values(before, kept), values(after, kept), strict=True):
        np.testing.assert_allclose(other.astype(np.float32), one, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("which", range(4))
def test_any_node_may_stay_in_float32(kind, which):
    before = model_of(MODELS[kind])
    nodes = list(ir.traversal.RecursiveGraphIterator(before.graph))
    name = nodes[which % len(nodes)].name
    after = narrowed(before, name)
    (node,) = [n for n in ir.traversal.RecursiveGraphIterator(after.graph) if n.name == name]
    types = {value.dtype for value in (*node.inputs, *node.outputs) if value is not None}
    assert HALF not in types
    kept = feeds(before)
    for one, other in zip(values(before, kept), values(after, kept), strict=True):
        np.testing.assert_allclose(other.astype(np.float32), one, rtol=5e-3, atol=5e-3)


def test_only_the_borders_have_casts():
    assert op_counts(narrowed(model_of(LAYERS)))["Cast"] == 2
    assert "Cast" not in op_counts(narrowed(model_of(LAYERS), keep_io=False))


def test_a_value_gets_one_cast_for_all_its_readers():
    before = model_of(
        "g (float[N] x) => (float[N] y) { a = Neg(x)  b = Exp(x)  c = Abs(x)  y = Sum(a, b, c) }"
    )
    assert op_counts(narrowed(before))["Cast"] == 2


def test_a_constant_is_stored_in_the_types_that_it_is_read_in():
    before = model_of(TWICE)
    add = next(node.name for node in before.graph if node.op_type == "Add")
    types = [value.dtype for value in narrowed(before, add).graph.initializers.values()]
    assert sorted(types) == [FLOAT, HALF]
    assert [v.dtype for v in narrowed(before).graph.initializers.values()] == [HALF]
    assert list(narrowed(before).graph.initializers) == ["w"]


def test_the_caller_s_constants_stay():
    before = model_of(LAYERS)
    narrowed(before)
    assert all(value.dtype == FLOAT for value in before.graph.initializers.values())


def test_a_model_that_was_in_half_precision_has_no_cast_pairs():
    text = """g (float16[N, 4] x) => (float16[N, 3] y) <float16[4, 3] w> { h = MatMul(x, w)  y = Relu(h) }"""
    given = model_of(text)
    wide = given.clone()
    use_float32(wide)
    assert op_counts(wide)["Cast"] == 2
    again = narrowed(wide)
    assert op_counts(again) == {"MatMul": 1, "Relu": 1}
    x = feeds_for(given)
    np.testing.assert_array_equal(values(again, x)[0], values(given, x)[0])


PAIRS = """g (float[N, 4] x) => (float[N, 3] y) <float s, int8 z = {0}, int8[4, 3] w, float t, int8 u = {0}, float[3] b>
{
    h = Neg(x)  q = QuantizeLinear(h, s, z)  d = DequantizeLinear(q, s, z)  e = DequantizeLinear(w, t, u)
    y = Gemm(d, e, b)
}"""


def scales(model):
    nodes = [n for n in model.graph if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    return {(n.op_type, n.inputs[1].dtype) for n in nodes}


def test_integers_keep_their_meaning():
    before = model_of(PAIRS, 19, s=0.05, t=0.0123)
    after = narrowed(before)
    assert scales(after) == {("QuantizeLinear", HALF), ("DequantizeLinear", HALF)}
    x = feeds_for(before)
    np.testing.assert_allclose(values(after, x)[0], values(before, x)[0], rtol=2e-3, atol=2e-3)


def test_biases_between_integers_are_added_on_their_own():
    """ONNX Runtime would divide them by the scale in float16, which overflows."""
    before = model_of(PAIRS, 19, s=1e-3, t=1e-3, b=[5, -5, 1])
    after = narrowed(before)
    assert op_counts(after)["Add"] == 1
    x = feeds_for(before)
    np.testing.assert_allclose(values(after, x)[0], values(before, x)[0], rtol=2e-3, atol=2e-3)


def test_a_scale_that_float16_does_not_hold_keeps_its_layer_in_float32():
    after = narrowed(model_of(PAIRS, 19, s=0.05, t=1e-8))
    gemm = next(node for node in after.graph if node.op_type == "Gemm")
    assert {value.dtype for value in (*gemm.inputs, *gemm.outputs)} == {FLOAT}


def test_below_opset_19_scales_stay_in_float32():
    assert scales(narrowed(model_of(PAIRS, 17, s=0.05, t=0.01))) == {
        ("QuantizeLinear", FLOAT),
        ("DequantizeLinear", FLOAT),
    }


def test_a_model_that_was_widened_may_take_and_give_float32():
    model = model_of(
        "g (float16[N, 4] x) => (float16[N, 3] y) <float16[4, 3] w> { h = MatMul(x, w)  y = Relu(h) }"
    )
    use_float32(model)
    after = narrowed(model, dtype=FLOAT, keep_io=False)
    assert op_counts(after) == {"MatMul": 1, "Relu": 1}
    assert {value.dtype for value in (*after.graph.inputs, *after.graph.outputs)} == {FLOAT}


SEPARATED = """g (float[N, 4] x) => (float[N, 3] y) <float s, int8 z = {0}, int8[4, 3] w, float t, int8 u = {0}>
{
    h = Neg(x)  a = Max(h)  q = QuantizeLinear(a, s, z)  d = DequantizeLinear(q, s, z)  m = Max(d)
    e = DequantizeLinear(w, t, u)  y = MatMul(m, e)
}"""


@pytest.mark.parametrize("operator", ["Neg", "MatMul"])
def test_what_separates_pairs_from_nodes_follows_the_nodes(operator):
    """Else a Cast would stand between a DequantizeLinear and its reader."""
    before = model_of(SEPARATED, 19, s=0.05, t=0.01)
    after = narrowed(before, next(node.name for node in before.graph if node.op_type == operator))
    types = {node.op_type: node.outputs[0].dtype for node in after.graph if node.op_type in ("Neg", "MatMul")}
    for node in after.graph:
        if node.op_type == "Max":
            assert node.inputs[0].producer().op_type != "Cast"
            assert all(use.node.op_type != "Cast" for use in node.outputs[0].uses())
    assert types[operator] == FLOAT
