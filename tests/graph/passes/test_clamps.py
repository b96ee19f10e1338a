"""Max and Min with constants are Relu and Clip, and successive ones are one node."""

import math

import numpy as np
import pytest
from graphs import assert_same_outputs, op_counts, parse

from onnxq.core.config import QuantConfig
from onnxq.graph.operators import clip_range
from onnxq.graph.passes import simplify
from onnxq.planner import make_plan
from onnxq.targets.lookup import get_target

CONSTANTS = {
    "zero": 0.0,
    "six": 6.0,
    "ones": [1.0],
    "plane": np.full((1, 4, 1, 1), 2.0),
    "whole": np.full((4, 6, 6), -1.0),
    "each": [[[0.0]], [[1.0]], [[2.0]], [[3.0]]],
    "wide": np.zeros((2, 1, 1, 1, 1)),
    "none": -np.inf,
    "two": [2.0, 2.0],
}
SHAPES = {
    n: ("float" if np.ndim(v) == 0 else f"float[{','.join(map(str, np.shape(v)))}]")
    for n, v in CONSTANTS.items()
}
FEEDS = {"x": np.linspace(-8, 8, 2 * 4 * 36, dtype=np.float32).reshape(2, 4, 6, 6)}


def graph(nodes, kind="float", out="y", given=None):
    names = [
        name
        for name in CONSTANTS
        if name in nodes.replace("(", " ").replace(")", " ").replace(",", " ").split()
    ]
    declared = ", ".join(f"{SHAPES[name]} {name}".replace("float", kind) for name in names)
    outputs = ", ".join(f"{kind}[N,4,6,6] {name}" for name in out.split())
    values = {name: CONSTANTS[name] for name in names}
    return parse(f"g ({kind}[N,4,6,6] x) => ({outputs}) <{declared}> {{ {nodes} }}", **values)


CLAMPS = {
    "max": ("y = Max(x, zero)", "Relu", (0, math.inf)),
    "constant first": ("y = Max(zero, x)", "Relu", (0, math.inf)),
    "min": ("y = Min(x, six)", "Clip", (-math.inf, 6)),
    "low other than zero": ("y = Max(x, ones)", "Clip", (1, math.inf)),
    "max, min": ("a = Max(x, zero) y = Min(a, six)", "Clip", (0, 6)),
    "min, max, constants first": ("a = Min(six, x) y = Max(zero, a)", "Clip", (0, 6)),
    "relu, min": ("a = Relu(x) y = Min(a, six)", "Clip", (0, 6)),
    "min, relu": ("a = Min(x, six) y = Relu(a)", "Clip", (0, 6)),
    "two clips": ('a = Clip(x, "", six) y = Clip(a, zero)', "Clip", (0, 6)),
    "clip, relu": ("a = Clip(x, ones, six) y = Relu(a)", "Clip", (1, 6)),
    "relu, relu": ("a = Relu(x) y = Relu(a)", "Relu", (0, math.inf)),
    "chain of four": ("a = Relu(x) b = Min(six, a) c = Max(b, ones) y = Min(c, plane)", "Clip", (1, 2)),
    "nothing left": ("a = Min(x, zero) y = Max(a, ones)", "Clip", (1, 1)),
    "several constants": ("y = Max(zero, x, ones)", "Clip", (1, math.inf)),
    "one number many times": ("y = Min(plane, x)", "Clip", (-math.inf, 2)),
    "one number in a whole tensor": ("y = Max(x, whole)", "Clip", (-1, math.inf)),
}


@pytest.mark.parametrize("kind", CLAMPS)
@pytest.mark.parametrize("numbers", ["float", "double", "float16"])
def test_clamps_are_one_relu_or_clip(kind, numbers):
    nodes, op_type, limits = CLAMPS[kind]
    before = graph(nodes, numbers)
    after = simplify(before)
    casts = {} if numbers == "float" else {"Cast": 2}  # computed in float32
    assert op_counts(after) == {op_type: 1, **casts}
    assert [clip_range(node) for node in after.graph if node.op_type == op_type] == [limits]
    feeds = {"x": FEEDS["x"].astype(before.graph.inputs[0].dtype.numpy())}
    assert_same_outputs(before, after, feeds, tolerance=0)


STAY = {
    "a number for each channel": ("y = Max(x, each)", {"Max": 1}),
    "two tensors": ("a = Neg(x) y = Max(x, a)", {"Neg": 1, "Max": 1}),
    "two tensors and a constant": ("a = Neg(x) y = Min(x, a, six)", {"Neg": 1, "Min": 1}),
    "limits the wrong way around": ("a = Clip(x, six, zero) y = Relu(a)", {"Clip": 1, "Relu": 1}),
}


@pytest.mark.parametrize("kind", STAY)
def test_other_maxima_stay(kind):
    nodes, expected = STAY[kind]
    before = graph(nodes)
    after = simplify(before)
    assert op_counts(after) == expected
    assert_same_outputs(before, after, FEEDS, tolerance=0)


def test_a_constant_that_adds_axes_stays():
    before = parse(
        "g (float[N,6] x) => (float[2,N,6] y) <float[2,1,1] c> { y = Max(x, c) }", c=np.zeros((2, 1, 1))
    )
    assert op_counts(simplify(before)) == {"Max": 1}


def test_a_constant_of_an_unknown_size_stays():
    before = parse("g (float[N,M] x) => (float[N,6] y) <float[6] c> { y = Max(x, c) }", c=np.zeros(6))
    assert op_counts(simplify(before)) == {"Max": 1}


def test_no_limit_at_all_is_removed():
    before = graph("a = Max(x, none) y = Neg(a)")
    assert op_counts(simplify(before)) == {"Neg": 1}


def test_integers_stay():
    before = parse("g (int64[N] x) => (int64[N] y) <int64 c> { y = Max(x, c) }", c=0)
    assert op_counts(simplify(before)) == {"Max": 1}


def test_what_others_read_keeps_its_node():
    before = graph("a = Relu(x) y = Min(a, six) z = Neg(a)", out="y z")
    after = simplify(before)
    assert op_counts(after) == {"Relu": 1, "Clip": 1, "Neg": 1}
    assert_same_outputs(before, after, FEEDS, tolerance=0)


def test_a_graph_output_keeps_its_node():
    before = graph("a = Max(x, zero) y = Min(a, six)", out="a y")
    after = simplify(before)
    assert op_counts(after) == {"Relu": 1, "Clip": 1}
    assert_same_outputs(before, after, FEEDS, tolerance=0)


@pytest.mark.parametrize("clamp", ["m = Max(c, low) r = Min(m, high)", "m = Min(high, c) r = Max(low, m)"])
def test_convolutions_around_clamps_stay_integers(clamp):
    text = """g (float[N,8,6,6] x) => (float y) <float[16,8,3,3] w, float[16,16,3,3] v, float low, float high> {{
      c = Conv(x, w) {} d = Conv(r, v) s = Relu(d) y = GlobalAveragePool(s) }}"""
    model, twin = (
        simplify(parse(text.format(t), low=0.0, high=4.0)) for t in (clamp, "r = Clip(c, low, high)")
    )
    plans = [make_plan(m, get_target("onnxruntime"), QuantConfig()) for m in (model, twin)]
    assert len(plans[0].points) == len(plans[1].points)
    assert [g.bounds for g in plans[0].groups.values()] == [g.bounds for g in plans[1].groups.values()]
    assert plans[0].float_nodes == plans[1].float_nodes
    assert plans[0].integer_nodes == plans[1].integer_nodes == {"Conv_c": "Conv", "Conv_d": "Conv"}
