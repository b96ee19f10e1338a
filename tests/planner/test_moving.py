"""Float tensors that are quantized before their values are moved, and those that are not."""

import pytest
from flow import check, optimized, quantize
from graphs import parse

from onnxq.core.config import QuantConfig
from onnxq.graph.passes import simplify
from onnxq.planner import make_plan
from onnxq.targets.lookup import get_target

WEIGHTS = "float[8,8,1] w, float[8,8,3] v, int64[1] zero, int64[1] two, int64[1] three, int64[1] last, int64[3] turned, int64[3] rows"
GIVEN = {"zero": [0], "two": [2], "three": [3], "last": [2], "turned": [0, 0, -1], "rows": [0, 4, -1]}
CIRCULAR = "s = Slice (e, zero, two, last) j = Concat <axis = 2> (e, s)"


def model_of(nodes, shape="2,8,6", more=""):
    """A float tensor e, made by an Elu, and ``nodes`` that make t of it, which a convolution reads."""
    used = [w for w in WEIGHTS.split(", ") if f" {w.split()[1]}" in f"{nodes} w v".replace(",", " ,")]
    return parse(
        f"""g (float[{shape}] x) => (float[A,B,C] y{", float[D,E,F] z" if more else ""}) <{", ".join(used)}> {{
            c = Conv (x, w) e = Elu (c) {nodes} d = Conv (j, v) y = Neg (d) {more} }}""",
        opset=18,
        ir_version=9,
        **{name: value for name, value in GIVEN.items() if any(w.split()[1] == name for w in used)},
    )


def edges(model):
    plan = make_plan(simplify(model), get_target("onnxruntime"), QuantConfig())
    return plan, {(p.tensor, p.consumer.rpartition("_")[2]) for p in plan.points}


@pytest.mark.parametrize("more", ["", "z = Add (e, e)"])
def test_values_are_joined_in_integers(more):
    model = model_of(CIRCULAR, more=more)
    plan, found = edges(model)
    assert {("e", "s"), ("e", "j"), ("s", "j"), ("j", "d")} <= found
    assert len({group.name for group in plan.groups.values() if {"e", "s", "j"} & {*group.tensors}}) == 1
    flow = quantize(model)
    check(flow)
    kernels = [node.op_type for node in optimized(flow.int8).graph.node]
    assert (kernels.count("QuantizeLinear"), kernels.count("QLinearConcat")) == (2, 1), "x and e"


@pytest.mark.parametrize("shape", ["2,8,6", "N,8,T"])
def test_as_many_elements_are_moved_in_integers(shape):
    nodes = "t = Unsqueeze (e, two) u = Concat <axis = 2> (t, t) j = Reshape (u, turned)"
    _, found = edges(model_of(nodes, shape))
    assert {("e", "t"), ("t", "u"), ("u", "j")} <= found


@pytest.mark.parametrize(
    ("nodes", "more", "shape"),
    [
        ("j = Slice (e, zero, two, last)", "", "2,8,6"),
        ("j = Slice (e, zero, two, last)", "", "N,8,T"),
        (CIRCULAR, "z = Neg (j)", "2,8,6"),
        ("t = Unsqueeze (e, three) u = Sigmoid (t) j = Squeeze (u, three)", "", "2,8,6"),
        ("t = Unsqueeze (e, three) u = Concat <axis = 3> (t, t) j = Reshape (u, turned)", "", "2,8,6"),
        (CIRCULAR.replace("(e", "(x").replace(" e,", " x,"), "", "2,8,6"),
    ],
)
def test_values_stay_in_float(nodes, more, shape):
    _, found = edges(model_of(nodes, shape, more))
    assert not {("e", "s"), ("e", "j"), ("e", "t"), ("x", "s"), ("x", "j")} & found
    assert ("j", "d") in found
