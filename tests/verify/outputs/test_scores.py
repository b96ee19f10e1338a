"""Which outputs decide: scores of classes do, embeddings, features and hidden states do not."""

import numpy as np
import pytest
from encoders import ACTIVATIONS, ENCODER, PARAMETERS
from graphs import parse

from onnxq.verify.outputs.output_kinds import OutputKind
from onnxq.verify.outputs.scores import decides, is_peaked
from onnxq.verify.outputs.tally import Tally


def kind_of(body, inputs="float[N,8,6,6] x", **given):
    text = (
        f"g ({inputs}) => (float[] y) <float[8,8,3,3] w, float[8,8] v, float[8] g, float[8] b, float[9,8] t, "
        f"float tiny, float two, float[1] one, int64[2] flat> {{ {body} }}"
    )
    model = parse(text, opset=17, check=False, flat=[0, -1], tiny=1e-6, two=2, one=1, **given)
    return decides(model.graph.outputs[0])


CONV = "c = Conv <pads = [1,1,1,1]> (x, w)"
POOLED = "p = GlobalAveragePool (r) f = Flatten (p)"
DESCRIBING = {
    "an embedding of unit length": f"{CONV} r = Relu (c) {POOLED} e = MatMul (f, v) y = LpNormalization (e)",
    "in primitives": f"{CONV} r = Relu (c) {POOLED} e = MatMul (f, v) n = ReduceL2 <axes = [1]> (e)"
    " m = Max (n, tiny) y = Div (e, m)",
    "by squares": f"{CONV} r = Relu (c) {POOLED} e = MatMul (f, v) q = Mul (e, e) s = ReduceSum (q) "
    "n = Sqrt (s) i = Reciprocal (n) y = Mul (e, i)",
    "pooled residual features": f"{CONV} r0 = Relu (c) d = Conv <pads = [1,1,1,1]> (r0, w) a = Add (d, r0) "
    f"r = Relu (a) {POOLED} y = Identity (f)",
    "hidden states": "n = LayerNormalization (x, g, b) m = MatMul (n, v) y = LayerNormalization (m, g, b)",
    "one of them": "m = MatMul (x, v) n = LayerNormalization (m, g, b) y = Slice (n, flat, flat)",
    "in old opsets": "m = MatMul (x, v) u = ReduceMean <axes = [-1]> (m) d = Sub (m, u) q = Pow (d, two) "
    "s = ReduceMean <axes = [-1]> (q) e = Add (s, tiny) r = Sqrt (e) z = Div (d, r) h = Mul (z, g) y = Add (h, b)",
    "boxes beside scores": f"{CONV} s = Sigmoid (c) d = Mul (x, two) e = Conv (d, w) y = Concat <axis = 1> (e, s)",
    "moved then": f"{CONV} s = Softmax <axis = 1> (c) j = Concat <axis = 1> (s, c) y = Transpose (j)",
    "a picture": f"{CONV} y = Tanh (c)",
    "what is added to a picture": f"{CONV} y = Add (x, c)",
}
SCORING = {
    "logits": f"{CONV} r = Relu (c) {POOLED} y = MatMul (f, v)",
    "logits beside a bias": f"{CONV} r = Relu (c) {POOLED} m = MatMul (f, v) y = Add (m, b)",
    "pooled scores": f"{CONV} r = Relu (c) {POOLED} y = Identity (f)",
    "two branches": f"{CONV} d = Conv <pads = [1,1,1,1]> (x, w) a = Add (c, d) r = Relu (a) {POOLED} y = Identity (f)",
    "a map": f"{CONV} y = Resize (c, g, g)",
    "tokens": "n = LayerNormalization (x, g, b) y = MatMul (n, v)",
}


@pytest.mark.parametrize("body", DESCRIBING.values(), ids=DESCRIBING)
def test_descriptions_are_no_decisions(body):
    assert kind_of(body) is False


@pytest.mark.parametrize("body", SCORING.values(), ids=SCORING)
def test_scores_may_be_decisions(body):
    assert kind_of(body) is None


def test_probabilities_of_several_heads_are_decisions():
    """As a detector gives them for each of its grids."""
    assert (
        kind_of(f"{CONV} s = Sigmoid (c) d = Conv (c, w) t = Sigmoid (d) y = Concat <axis = 2> (s, t)")
        is True
    )


def test_many_nested_joins_are_looked_at_once():
    """As in networks whose layers read all that came before."""
    steps = " ".join(f"c{i + 1} = Concat <axis = 1> (c{i}, c{i})" for i in range(60))
    assert kind_of(f"c0 = Conv <pads = [1,1,1,1]> (x, w) {steps} y = Relu (c60)") is None


def test_probabilities_are_decisions():
    assert kind_of(f"{CONV} r = Relu (c) {POOLED} m = MatMul (f, v) y = Softmax (m)") is True
    divided = "e = Exp (f) s = ReduceSum (e) y = Div (e, s)"
    assert kind_of(f"{CONV} r = Relu (c) {POOLED} {divided}") is None


def test_the_mean_of_a_sentence_is_no_decision():
    text = f"""g (int64[N,L] ids, float[N,L,1] mask) => (float[N,8] y) <float[50,8] table, {PARAMETERS},
      float[8] b, float[8] g, float[8,32] up, float[32] c, float[32,8] down, float root, int64[4] heads,
      int64[3] joined, int64[1] along>
    {{ x = Gather(table, ids) {ENCODER.format(activation=ACTIVATIONS["relu"]).replace("y =", "states =")}
      masked = Mul(states, mask)  t = ReduceSum<keepdims=0>(masked, along)  total = ReduceSum<keepdims=0>(mask, along)
      y = Div(t, total) }}"""
    model = parse(text, opset=17, root=2, heads=[0, 0, 2, 4], joined=[0, 0, 8], along=[1])
    assert decides(model.graph.outputs[0]) is False


def tally_of(reference, actual, decides=None):
    tally = Tally(OutputKind(measured=True, decides=decides))
    tally.add(np.asarray(reference, np.float32), np.asarray(actual, np.float32))
    return tally.quality()


RNG = np.random.default_rng(0)


def test_scores_are_told_from_descriptions_by_their_values():
    unit = RNG.normal(size=(6, 64))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    landmarks = RNG.random((6, 136))
    scores = RNG.normal(size=(6, 10)) * 3
    assert [tally_of(each, each).agreement for each in (unit, landmarks, scores)] == [None, None, 1.0]
    assert tally_of(unit, unit, decides=True).agreement == 1.0
    assert tally_of(scores, scores, decides=False).agreement is None
    assert tally_of(scores, scores, decides=False).sqnr == np.inf


def test_one_sure_row_is_enough_and_the_axis_counts():
    maps = np.zeros((1, 5, 40, 40))
    assert not is_peaked(maps, 1)
    maps[0, 2, 3:20, 7:20] = 4
    assert is_peaked(maps, 1)
    assert is_peaked(np.array([[np.nan, 1.0]]), 1)  # nothing is known of it
