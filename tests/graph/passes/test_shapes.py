"""What is known about types and shapes, and what of the file is believed."""

import numpy as np
import onnx_ir as ir
import pytest
from graphs import assert_same_outputs, op_counts, parse

from onnxq.graph.passes import simplify
from onnxq.graph.passes.names import UniqueNamesPass
from onnxq.graph.passes.shapes import InferShapesPass

STALE = """g (float[N,3,4,4] x) => (float[N,6,8] y) <int64 i = {0}, int64[1] ax = {0}, int64[2] m = {6, 8}> {
    r = Relu(x)
    s = Shape(r)
    n = Gather(s, i)
    u = Unsqueeze(n, ax)
    t = Concat <axis=0> (u, m)
    y = Reshape(r, t)
}"""


def note(model, shape):
    """Say in the file what shape the first node's output has."""
    value = model.graph[0].outputs[0]
    value.shape, value.dtype = shape, ir.DataType.FLOAT


@pytest.mark.parametrize("noted", [[1, 3, 4, 4], [1, 3, None, None], [1, 12]])
def test_notes_of_another_batch_size_are_not_believed(noted):
    before = parse(STALE)
    note(before, ir.Shape(noted))
    after = simplify(before)
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 3, 4, 4), np.float32)}
    assert_same_outputs(parse(STALE), after, feeds)


def test_notes_that_agree_are_believed():
    before = parse(
        """g (float[N,4] x) => (float[a,b] y) {
            m = my.domain.Mystery(x)
            y = ReduceMean <axes=[2,3]> (m)
        }""",
        check=False,
    )
    before.graph.opset_imports["my.domain"] = 1
    note(before, ir.Shape(["N", 3, 5, 5]))
    assert op_counts(simplify(before)) == {"Mystery": 1, "GlobalAveragePool": 1}


def test_invented_sizes_are_inferred_again():
    model = parse("g (float[N,3,4,4] x) => (float[N,3,4,4] y) { a = Relu(x) b = Neg(a) y = Exp(b) }")
    for node in model.graph:
        node.outputs[0].shape, node.outputs[0].dtype = ir.Shape(["unk__0", 3, 4, 4]), ir.DataType.FLOAT
    assert InferShapesPass()(model).modified
    assert [str(n.outputs[0].shape) for n in model.graph][:2] == ["[N,3,4,4]"] * 2
    assert not InferShapesPass()(model).modified


def test_types_reach_the_bodies():
    model = parse(
        """g (float[N,4] x, bool k) => (float[N,4] y) {
            y = If (k) <
                then_branch = t () => (float[N,4] u) { a = Relu(x) u = Neg(a) },
                else_branch = e () => (float[N,4] v) { b = Exp(x) v = Neg(b) }>
        }"""
    )
    InferShapesPass()(model)
    tensors = [o for n in ir.traversal.RecursiveGraphIterator(model.graph) for o in n.outputs]
    assert all(o.dtype == ir.DataType.FLOAT and str(o.shape) == "[N,4]" for o in tensors)


def test_sequences_stay_sequences():
    before = parse(
        """g (float[N,4] x) => (float[N,4] y) <int64 i = {1}> {
            s = SequenceConstruct(x, x)
            a = SequenceInsert(s, x)
            y = SequenceAt(a, i)
        }"""
    )
    after = simplify(before)
    assert_same_outputs(before, after)


def test_a_reshape_to_sizes_read_off_a_tensor_keeps_its_rank_and_its_constants():
    text = """g (float[N,8,H,W] x) => (float[A,B,C] y)
    <int64[1] zero, int64[1] one, int64[1] rest, int64[1] eight> {
      s = Shape(x) n = Slice(s, zero, one) k = Concat<axis=0>(n, rest, eight) j = Cast<to=7>(k)
      r = Reshape(x, j) t = Relu(r) y = Transpose<perm=[0,2,1]>(t)
    }"""
    model = parse(text, zero=[0], one=[1], rest=[-1], eight=[8])
    InferShapesPass()(UniqueNamesPass()(model).model)
    (relu,) = [node for node in model.graph if node.op_type == "Relu"]
    shape = relu.outputs[0].shape
    assert len(shape) == 3
    assert shape[2] == 8


def test_a_zero_keeps_a_size_and_an_unknown_count_says_nothing():
    text = """g (float[2,3,H] x, int64[K] k, int64[1] m) => (float[A,B] y, float z) <int64[1] nought> {
      j = Concat<axis=0>(nought, m) r = Reshape(x, j) y = Relu(r) q = Reshape(x, k) z = Relu(q)
    }"""
    model = parse(text, nought=[0])
    InferShapesPass()(UniqueNamesPass()(model).model)
    known, unknown = (node.outputs[0].shape for node in model.graph if node.op_type == "Reshape")
    assert (len(known), known[0]) == (2, 2)
    assert unknown is None
