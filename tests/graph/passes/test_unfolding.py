"""Small models with large results of constants: they stay small while they are cleaned."""

import multiprocessing
import resource

import numpy as np
import onnx_ir as ir
import pytest
from graphs import parse

from onnxq.graph.passes import simplify

COUNT = 60_000_000
"""Elements; ONNX's propagation of values takes 140 bytes for each."""

BODIES = {
    "range": "<int64 a = {0}, int64 b = {COUNT}, int64 d = {1}> { c = Range (a, b, d) LAST }",
    "range of computed sizes": (
        "<int64 a = {0}, int64 r = {7746}, int64 d = {1}> { b = Mul (r, r) c = Range (a, b, d) LAST }"
    ),
    "constant of shape": ("<int64[1] s = {COUNT}> { c = ConstantOfShape <value = int64[1] {3}> (s) LAST }"),
    "joined sizes": (
        "<int64[1] s = {7746}, int64 one = {1}> { t = Concat <axis = 0> (s, s) k = ReduceProd <keepdims = 1> (t) "
        "c = ConstantOfShape (k) LAST }"
    ),
    "expand": "<int64[1] s = {COUNT}, int64 v = {3}> { c = Expand (v, s) LAST }",
    "tile": "<int64[1] s = {COUNT}, int64[1] v = {3}> { c = Tile (v, s) LAST }",
    "pad": "<int64[2] s = {0, COUNT}, int64[1] v = {3}> { c = Pad (v, s) LAST }",
    "chain": (
        "<int64 a = {0}, int64 b = {COUNT}, int64 d = {1}, int64[1] ax = {0}> "
        "{ k = Range (a, b, d) e = Add (k, k) c = Unsqueeze (e, ax) LAST }"
    ),
    "one hot": "<int64[1] i = {3}, int64 n = {COUNT}, float[2] v = {0, 1}> { c = OneHot (i, n, v) LAST }",
    "resize": (
        "<float[1,1,1,1] v = {2}, float[4] s = {1, 1, 7746, 7746}> "
        '{ c = Resize <mode = "nearest"> (v, , s) LAST }'
    ),
    "weight": "<int64[2] s = {8, 75000000}> { k = ConstantOfShape <value = float[1] {2}> (s) c = MatMul (x, k) LAST }",
    "product of weights": (
        "<int64[2] s = {20000, 20000}> { k = ConstantOfShape <value = float[1] {2}> (s) c = MatMul (k, k) LAST }"
    ),
}
LAST = "f = Cast <to = 1> (c) m = ReduceMax <keepdims = 0> (f) p = MatMul (x, w) y = Add (p, m)"


def model_of(body):
    text = (
        BODIES[body].replace("LAST", LAST).replace("COUNT", str(COUNT)).replace("> {", ", float[8,4] w> {", 1)
    )
    return parse(f"g (float[N,8] x) => (float[N,4] y) {text}", 17)


def _simplified(body, answers):
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    simple = simplify(model_of(body))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - used
    answers.put((grown, max(v.const_value.size for v in simple.graph.initializers.values())))


@pytest.mark.parametrize("body", BODIES)
def test_a_small_model_stays_small(body):
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    process = context.Process(target=_simplified, args=(body, answers))
    process.start()
    grown, largest = answers.get(timeout=60)
    process.join()
    assert grown < 100 * 2**20
    assert largest < 2**16


def test_small_results_are_stored():
    text = "g (float[N,8] x) => (float[N,4] y) <int64[2] s = {8, 4}> { k = ConstantOfShape (s) y = MatMul (x, k) }"
    simple = simplify(parse(text))
    assert [node.op_type for node in simple.graph] == ["MatMul"]
    assert [v.shape for v in simple.graph.initializers.values()] == [ir.Shape([8, 4])]


def test_values_are_propagated_beside_vectors_that_are_not_huge():
    """The sizes of the Reshape follow from values, which are known although there is a Range."""
    text = """g (float[2,3,4] x) => (float[a,b] y) <int64 z = {0}, int64 n = {1000}, int64 o = {1}, int64[1] i = {2}>
    { r = Range (z, n, o) f = Cast <to = 1> (r) m = ReduceMax <keepdims = 0> (f) q = Add (x, m)
      s = Shape (x) l = Gather (s, i) k = Constant <value = int64[1] {6}> () t = Concat <axis = 0> (k, l)
      y = Reshape (q, t) }"""
    simple = simplify(parse(text))
    np.testing.assert_array_equal(simple.graph.outputs[0].shape.numpy(), [6, 4])
