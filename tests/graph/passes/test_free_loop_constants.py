"""States of Loop and Scan that are constants and never change become constants that the body reads."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import assert_same_outputs, feeds_for, op_counts, parse

from onnxq.graph.nodes import all_nodes
from onnxq.graph.passes import simplify

LOOP = """g (int64 count, float[N, 8] x) => (float[N, 8] y, float[8, 8] last)
<float[8, 8] w, bool yes = {1}>
{
    h, same = Loop(count, yes, x, w) <body = l (int64 i, bool c, float[N, 8] s, float[8, 8] v)
        => (bool o, float[N, 8] t, float[8, 8] u)
        { o = Identity(c)  m = MatMul(s, v)  t = Tanh(m)  u = PASS }>
    y = Neg(h)
    last = Neg(same)
}"""


def only(model, op_type):
    (node,) = [node for node in all_nodes(model) if node.op_type == op_type]
    return node


@pytest.mark.parametrize("count", [0, 3])
def test_a_constant_state_of_a_loop_is_read_from_outside(count):
    before = parse(LOOP.replace("PASS", "Identity(v)"), opset=15)
    after = simplify(before)
    loop = only(after, "Loop")
    assert (len(loop.inputs), len(loop.outputs)) == (3, 1)
    body = loop.attributes["body"].value
    assert (len(body.inputs), len(body.outputs)) == (3, 2)
    assert only(after, "MatMul").inputs[1] is after.graph.initializers["w"]
    assert_same_outputs(before, after, feeds_for(before, count=np.array(count)))


def test_a_state_that_the_body_changes_stays():
    before = parse(LOOP.replace("PASS", "Neg(v)"), opset=15)
    after = simplify(before)
    assert len(only(after, "Loop").inputs) == 4
    assert_same_outputs(before, after, feeds_for(before, count=np.array(3)))


def test_a_state_that_is_computed_stays():
    text = LOOP.replace("PASS", "Identity(v)").replace("float[N, 8] x)", "float[N, 8] x, float[8, 8] given)")
    text = text.replace("{\n", "{ w2 = Neg(given)\n", 1).replace("x, w)", "x, w2)")
    before = parse(text, opset=15)
    assert len(only(simplify(before), "Loop").inputs) == 4


def test_states_that_change_places_stay():
    before = parse(
        """g (int64 count, float[N, 8] x) => (float[N, 8] y) <float[8, 8] w, float[8, 8] w2, bool yes = {1}>
        {
            h, one, two = Loop(count, yes, x, w, w2)
                <body = l (int64 i, bool c, float[N, 8] s, float[8, 8] v, float[8, 8] v2)
                    => (bool o, float[N, 8] t, float[8, 8] u, float[8, 8] u2)
                { o = Identity(c)  t = MatMul(s, v)  u = Identity(v2)  u2 = Identity(v) }>
            y = Neg(h)
        }""",
        opset=15,
    )
    after = simplify(before)
    assert len(only(after, "Loop").inputs) == 5
    assert_same_outputs(before, after, feeds_for(before, count=np.array(3)))


def test_a_final_state_that_is_a_graph_output_stays():
    text = (
        LOOP.replace("PASS", "Identity(v)").replace("h, same =", "h, last =").replace("last = Neg(same)", "")
    )
    before = parse(text, opset=15)
    after = simplify(before)
    assert len(only(after, "Loop").inputs) == 4
    assert_same_outputs(before, after, feeds_for(before, count=np.array(2)))


def test_a_loop_with_constant_states_alone_is_removed():
    before = parse(
        """g (int64 count, float[N, 8] x) => (float[N, 8] y) <float[8, 8] w, bool yes = {1}>
        {
            same = Loop(count, yes, w) <body = l (int64 i, bool c, float[8, 8] v) => (bool o, float[8, 8] u)
                { o = Identity(c)  u = Identity(v) }>
            y = MatMul(x, same)
        }""",
        opset=15,
    )
    after = simplify(before)
    assert op_counts(after) == {"MatMul": 1}
    assert_same_outputs(before, after, feeds_for(before, count=np.array(2)))


def test_a_constant_state_of_a_scan_is_read_from_outside():
    before = parse(
        """g (float[M, 2, 8] x) => (float[M, 2, 8] y, float[2, 8] h) <float[8, 8] w, float[2, 8] start>
        {
            h, same, y = Scan(start, w, x) <num_scan_inputs = 1,
                body = l (float[2, 8] s, float[8, 8] v, float[2, 8] e)
                    => (float[2, 8] t, float[8, 8] u, float[2, 8] out)
                { a = Add(s, e)  t = MatMul(a, v)  u = Identity(v)  out = Relu(t) }>
        }""",
        opset=15,
    )
    after = simplify(before)
    scan = only(after, "Scan")
    assert (len(scan.inputs), len(scan.outputs)) == (2, 2)
    assert_same_outputs(before, after)
