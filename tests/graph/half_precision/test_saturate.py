"""Numbers that stand for minus infinity, or for no limit."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import assert_same_outputs, feeds_for, parse

from onnxq.graph.half_precision.saturate import LARGEST, LOWEST, saturate
from onnxq.graph.passes import plain

LOW = float(np.finfo(np.float32).min)

MASKED = """g (float[N, 5] s, bool[N, 5] m) => (float[N, 5] y) <float w>
{ a = Where(m, s, w)  y = Softmax<axis=-1>(a) }"""

SCALED = """g (float[N, 5] s, float[N, 5] m) => (float[N, 5] y) <float w>
{ b = Mul(m, w)  c = Unsqueeze<axes=[0]>(b)  d = Squeeze<axes=[0]>(c)  a = Add(s, d)  y = Softmax<axis=-1>(a) }"""

REPEATED = """g (float[N, 5] s, int64[2] n) => (float[N, 5] y)
{ f = ConstantOfShape<value = float[1] {-3.4e38}>(n)  a = Min(s, f)  b = Max(a, s)  y = Softmax<axis=-1>(b) }"""


def lowest(model):
    arrays = [value.const_value.numpy() for value in model.graph.initializers.values()]
    return min(float(array.min()) for array in arrays if array.dtype == np.float32)


@pytest.mark.parametrize("low", [LOW, -1e9, -1e5])
def test_masks_before_softmax_fit_float16(low):
    before = plain(parse(MASKED, w=low))
    after = before.clone()
    saturate(after)
    assert lowest(after) == LOWEST
    mask = np.array([[True, False, True, True, False]] * 2)
    assert_same_outputs(before, after, feeds_for(before, m=mask), tolerance=0)


def test_masks_may_be_scaled_and_moved_on_their_way():
    before = plain(parse(SCALED, opset=11, w=LOW))
    after = before.clone()
    saturate(after)
    assert lowest(after) == LOWEST
    mask = np.array([[0, 1, 0, 0, 1]] * 2, np.float32)
    assert_same_outputs(before, after, feeds_for(before, m=mask), tolerance=0)


def test_what_repeats_a_mask_is_changed_too():
    model = plain(parse(REPEATED))
    saturate(model)
    (fill,) = [
        n.attributes["value"].as_tensor().numpy() for n in model.graph if n.op_type == "ConstantOfShape"
    ]
    assert fill == LOWEST


def test_a_large_number_that_counts_stays():
    model = plain(parse("g (float[N] x) => (float[N] y) <float w> { y = Add(x, w) }", w=-1e9))
    saturate(model)
    assert lowest(model) == -1e9


def test_limits_that_limit_nothing_become_those_of_float16():
    model = plain(
        parse("g (float[N] x) => (float[N] y) <float a, float b> { y = Clip(x, a, b) }", a=LOW, b=-LOW)
    )
    saturate(model)
    limits = [model.graph.initializers[value.name].const_value.numpy() for value in model.graph[0].inputs[1:]]
    assert limits == [-LARGEST, LARGEST]


def test_minus_infinity_stays():
    model = plain(parse(MASKED, w=-np.inf))
    saturate(model)
    assert lowest(model) == -np.inf
