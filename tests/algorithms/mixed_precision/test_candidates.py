"""In which order nodes become float."""

import pytest
from benches import CHAIN, bench_for

from onnxq.algorithms.mixed_precision.priorities import candidates


def noises(draft, **given):
    return {name: given.get(name, 0.0) for name in draft.plan.groups}


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_every_node_comes_once(target):
    draft, _ = bench_for(CHAIN, target=target)
    found = candidates(draft.reference, draft.plan, noises(draft, w1=0.5, w2=0.25, x=0.125))
    assert sorted(name for one in found for name in one.nodes) == sorted(draft.plan.integer_nodes)


def test_bad_weights_take_their_reader():
    draft, _ = bench_for()
    found = candidates(draft.reference, draft.plan, noises(draft, w2=0.5, w3=0.25))
    assert [one.nodes for one in found[:2]] == [("Conv_c",), ("Conv_d",)]
    assert [one.gain for one in found[:2]] == [0.5, 0.25]


def test_a_bad_tensor_takes_all_that_quantize_it():
    draft, _ = bench_for()
    best = candidates(draft.reference, draft.plan, noises(draft, r=0.9))[0]
    assert best.nodes == ("Conv_a", "Conv_c", "Add_s")
    assert best.gain == 0.9


def test_where_the_kernel_gives_float_too_the_reader_is_enough():
    draft, _ = bench_for(target="tensorrt")
    (name,) = (p.group for p in draft.plan.points if (p.consumer, p.input_index) == ("Conv_d", 0))
    assert candidates(draft.reference, draft.plan, noises(draft, **{name: 0.9}))[0].nodes == ("Conv_d",)


def test_noise_is_weighed_by_the_nodes_that_it_costs():
    draft, _ = bench_for()
    found = candidates(draft.reference, draft.plan, noises(draft, r=0.6, w3=0.3, w1=0.1))
    assert found[0].nodes == ("Conv_d",)
    assert set(found[1].nodes) == {"Conv_a", "Conv_c", "Add_s"}
    assert found[1].gain == pytest.approx(0.7)
