"""Extremes of all tensors, those in bodies of If, Loop and Scan included."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import parse

from calibrators.data.samples import Sample
from calibrators.errors import CalibrationError
from calibrators.extremes import Extremes, measure_extremes
from onnxq.graph.passes import plain

BRANCHES = """g (float[N] x, bool k) => (float[N] y)
{
    y = If(k) <
        then_branch = t () => (float[N] a) { big = Mul(x, x)  a = Neg(big) },
        else_branch = e () => (float[N] b) { b = Abs(x) }
    >
}"""

LOOP = """g (float[N] x, int64 count) => (float[N] y) <bool yes = {1}>
{
    y = Loop(count, yes, x) <body = l (int64 i, bool c, float[N] v) => (bool o, float[N] u)
        { o = Identity(c)  u = Add(v, v) }>
}"""

SCAN = """g (float[T, M] x, float[M] s) => (float[M] last, float[T, M] ys)
{
    last, ys = Scan <num_scan_inputs = 1, scan_output_directions = [1], body = b
        (float[M] state, float[M] step) => (float[M] next, float[M] out)
        { next = Add(state, step)  out = Neg(next) }> (s, x)
}"""


def measured(text, *feeds, least_of=(), opset=17):
    model = plain(parse(text, opset=opset), opset)
    return measure_extremes(model, [Sample(f"sample {i}", each) for i, each in enumerate(feeds)], least_of)


def floats(*numbers):
    return np.array(numbers, np.float32)


def test_all_samples_count():
    found = measured(
        "g (float[N] x) => (float[N] y) { h = Neg(x)  y = Relu(h) }",
        {"x": floats(-3, 1)},
        {"x": floats(2, 5)},
    )
    assert {name: (e.low, e.high) for name, e in found.items()} == {"x": (-3, 5), "h": (-5, 3), "y": (0, 3)}


def test_infinities_and_nan_are_left_out():
    text = "g (float[N] x) => (float[N] y) { y = Neg(x) }"
    found = measured(text, {"x": floats(-np.inf, 1, np.nan, 2)}, {"x": floats(np.nan, np.nan)})
    assert (found["x"].low, found["x"].high) == (1, 2)


def test_a_tensor_without_elements_has_no_extremes():
    assert measured("g (float[N] x) => (float[N] y) { y = Neg(x) }", {"x": floats()}) == {}


def test_the_smallest_magnitude_is_measured_on_request():
    text = "g (float[N] x) => (float[N] y) { y = Neg(x) }"
    found = measured(text, {"x": floats(0, -0.25, 3)}, least_of=("x",))
    assert found["x"].least == 0.25
    assert found["y"].least == np.inf


@pytest.mark.parametrize("opset", [13, 17, 18, 21])
def test_both_branches_are_seen(opset):
    x = floats(-3, 2)
    one, other = ({"x": x, "k": np.array(each)} for each in (True, False))
    found = measured(BRANCHES, one, other, opset=opset)
    assert found["big"] == Extremes(4, 9, 4)
    assert found["b"] == Extremes(2, 3, 2)


def test_a_branch_that_was_not_taken_is_unknown():
    found = measured(BRANCHES, {"x": floats(-3, 2), "k": np.array(False)})
    assert "big" not in found
    assert "b" in found


@pytest.mark.parametrize("opset", [13, 18])
def test_all_iterations_of_a_loop_are_seen(opset):
    found = measured(LOOP, {"x": floats(-1, 1.5), "count": np.array(3)}, opset=opset)
    assert found["u"] == Extremes(-8, 12, 2)


def test_a_loop_that_does_not_run_is_unknown():
    assert "u" not in measured(LOOP, {"x": floats(-1, 1.5), "count": np.array(0)})


def test_a_scan_with_directions_is_seen():
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    found = measured(SCAN, {"x": x, "s": floats(0, 0)})
    assert found["out"] == Extremes(-9, 0, 1)


def test_a_sample_that_does_not_fit_is_named():
    with pytest.raises(CalibrationError, match="sample 0"):
        measured("g (float[2] x) => (float[2] y) { y = Neg(x) }", {"x": floats(1, 2, 3)})
