"""Slow integer kernels in another form: the same numbers, and nothing else touched."""

import pytest
from flow import check, quantize
from graphs import assert_same_outputs, op_counts, parse

from onnxq.config import QuantConfig
from onnxq.lowering import lower
from onnxq.passes import simplify
from onnxq.planner import make_plan
from onnxq.targets import get_target

POOLS = {
    "plain": "kernel_shape = [2, 2], strides = [2, 2]",
    "overlapping": "kernel_shape = [3, 2], strides = [2, 1]",
    "valid": 'kernel_shape = [3, 3], auto_pad = "VALID"',
    "padding-counts": "kernel_shape = [3, 3], pads = [1, 0, 1, 2], count_include_pad = 1",
    "same-and-padding-counts": 'kernel_shape = [3, 3], auto_pad = "SAME_UPPER", count_include_pad = 1',
    "dilated": "kernel_shape = [2, 2], dilations = [2, 2]",
}
OTHERS = {
    "padding-does-not-count": "kernel_shape = [3, 3], pads = [1, 1, 1, 1]",
    "same-and-padding-does-not-count": 'kernel_shape = [3, 3], auto_pad = "SAME_UPPER"',
    "ceil": "kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1",
}


def model(attributes, channels=8):
    return parse(
        f"""g (float[N, 4, 9, 9] x) => (float[A, B, C, D] y)
        <float[{channels}, 4, 1, 1] w, float[{channels}] b, float[4, {channels}, 1, 1] v>
        {{ c = Conv (x, w, b) p = AveragePool <{attributes}> (c) d = Conv (p, v) y = Neg (d) }}""",
        opset=19,
    )


def lowered(float_model, target="onnxruntime"):
    simple = simplify(float_model)
    target = get_target(target)
    return simple, lower(simple, make_plan(simple, target, QuantConfig()), target)


@pytest.mark.parametrize("channels", [1, 8])
@pytest.mark.parametrize("name", POOLS)
def test_an_average_becomes_a_depthwise_convolution(name, channels):
    before = model(POOLS[name], channels)
    after, changed = lowered(before)
    assert changed
    assert op_counts(after) == {"Conv": 3, "Neg": 1}
    assert_same_outputs(before, after)


@pytest.mark.parametrize("name", OTHERS)
def test_an_average_that_no_convolution_computes_stays(name):
    after, changed = lowered(model(OTHERS[name]))
    assert not changed
    assert op_counts(after)["AveragePool"] == 1


def test_where_nothing_is_quantized_nothing_changes():
    float_model = parse(
        """g (float[N, 4, 9, 9] x) => (float[A, B, C, D] y)
        { t = Tanh (x) y = AveragePool <kernel_shape = [2, 2]> (t) }"""
    )
    assert not lowered(float_model)[1]


def test_only_for_targets_that_are_slow_at_it():
    assert not lowered(model(POOLS["plain"]), "tensorrt")[1]


def test_the_average_is_exact_in_integers_and_keeps_its_name():
    flow = quantize(model(POOLS["padding-counts"]))
    check(flow, at_least=30)
    assert flow.plan.nodes["AveragePool_p"] == "Conv"
    assert set(flow.plan.params["AveragePool_p_weight"].scale) == {
        flow.plan.params["AveragePool_p_weight"].scale[0]
    }
    stored = flow.int8.graph.initializers["AveragePool_p_weight_quantized"].const_value.numpy()
    assert (abs(stored) == abs(stored).flat[0]).all()
