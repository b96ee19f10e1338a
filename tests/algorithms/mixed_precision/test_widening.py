"""In which order weights get wider, and what comes after that."""

import onnx_ir as ir
import pytest
from benches import CHAIN, bench_for

from onnxq.algorithms.mixed_precision.priorities import stages, widenings
from onnxq.algorithms.mixed_precision.steps import FLOAT, Precision

INT8 = ir.DataType.INT8

SHARED = """g (float[N,8] x) => (float[N,8] y) <float[8,8] w, float[8,8] v>
{ a = MatMul (x, w)  b = Relu (a)  c = MatMul (b, w)  d = Relu (c)  y = MatMul (d, v) }"""


def noises(draft, **given):
    return {name: given.get(name, 0.0) for name in draft.plan.groups}


def test_weights_follow_by_the_noise_for_each_byte():
    draft, _ = bench_for(weight="int4")
    equal = noises(draft, w1=0.1, w2=0.1, w3=0.1, v=0.1)
    (tier,) = widenings(draft.reference, draft.plan, equal)
    assert [one.group for one in tier] == ["v", "w3", "w1", "w2"]  # 40, 64, 288, 576 weights
    (tier,) = widenings(draft.reference, draft.plan, {**equal, "w2": 20.0})
    assert tier[0].group == "w2"
    assert (tier[0].nodes, tier[0].form) == (("Conv_c",), INT8)
    assert tier[0].left == pytest.approx(20.0 * (15 / 254) ** 2)
    assert tier[0].worth == pytest.approx((20.0 - tier[0].left) / (576 / 2))


def test_who_reads_the_same_weights_gets_them_wider_together():
    draft, _ = bench_for(SHARED, weight="int4")
    (tier,) = widenings(draft.reference, draft.plan, noises(draft, w=0.1))
    assert {one.group: one.nodes for one in tier} == {"w": ("MatMul_a", "MatMul_c"), "v": ("MatMul_y",)}


def test_constants_that_are_no_weights_stay_as_they_are():
    text = """g (float[N,8] x) => (float[N,8] y) <float[8,8] w, float[8,8] v, float[3,8] k>
    { a = MatMul (x, w)  b = Relu (a)  c = Mul (b, k)  y = MatMul (c, v) }"""
    draft, _ = bench_for(text, weight="int4", feeds={})
    assert draft.plan.groups["k"].constant
    (tier,) = widenings(draft.reference, draft.plan, noises(draft, k=1.0))
    assert {one.group for one in tier} == {"w", "v"}


def test_eight_bits_are_as_wide_as_the_target_can():
    draft, _ = bench_for()
    assert widenings(draft.reference, draft.plan, noises(draft, w1=0.5)) == []


def test_float_comes_last_and_counts_only_the_noise_that_wider_weights_leave():
    draft, _ = bench_for(weight="int4")
    wider, floats = stages(draft.reference, draft.plan, noises(draft, w2=0.9, x=0.1))
    assert wider[0].steps == {Precision("Conv_c", INT8)}
    assert floats[0].steps == {Precision("Conv_a", FLOAT)}
    assert {step.node for move in floats for step in move.steps} == set(draft.plan.integer_nodes)
    (only,) = stages(*((d := bench_for(CHAIN)[0]).reference, d.plan), noises(d, w2=0.9, x=0.1))
    assert only[0].steps == {Precision("Conv_c", FLOAT)}


def test_what_saves_next_to_nothing_is_not_to_be_tried_alone():
    text = """g (float[N,64] x) => (float[N,2] y) <float[64,64] w, float[64,2] v, float[2,2] u>
    { a = MatMul (x, w)  r = Relu (a)  b = MatMul (r, v)  s = Relu (b)  y = MatMul (s, u) }"""
    draft, _ = bench_for(text, weight="int4")
    wider, floats = stages(draft.reference, draft.plan, noises(draft))
    back = {step.node: move.back for move in wider for step in move.steps}
    assert {name for name, steps in back.items() if steps} == {"MatMul_a", "MatMul_b"}
    assert all(move.back for move in floats)


def test_what_became_float_together_may_go_back_one_by_one_but_readers_of_the_same_weights_only_together():
    draft, _ = bench_for(SHARED, weight="int4")
    wider, floats = stages(draft.reference, draft.plan, noises(draft, w=0.9))
    assert wider[0].back == (wider[0].steps,)
    assert len(wider[0].steps) == 2
    assert floats[0].back == (floats[0].steps, *({step} for step in sorted(floats[0].steps)))
    assert floats[1].back == (floats[1].steps,)
