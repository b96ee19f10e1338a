"""Operators that are written between Q and DQ: the same values as between DQ and Q, in fewer kernels."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from flow import check, optimized, quantize, run
from graphs import parse

from onnxq.core.numerics import sqnr
from onnxq.graph.passes import simplify
from onnxq.graph.qdq.insert_qdq import insert_qdq
from onnxq.graph.qdq.on_integers import work_on_integers
from onnxq.graph.qdq.strip_qdq import strip


def between(nodes, outputs="float[A,B,C,D] y", **constants):
    """A model with ``nodes`` from c to t between two convolutions of eight channels."""
    declared = "".join(f", {name}" for name in constants)
    return parse(
        f"""g (float[2,8,6,6] x) => ({outputs}) <float[8,8,1,1] w, float[8,8,1,1] v, float[8] b{declared}> {{
            c = Conv (x, w, b) {nodes} d = Conv (t, v) y = Neg (d) }}""",
        opset=20,
        ir_version=9,
        **{name.split()[1]: value for name, value in constants.items()},
    )


def kernels(model):
    return [node.op_type for node in optimized(model).graph.node]


def as_pairs(flow):
    """The model with Q/DQ around every node."""
    return insert_qdq(flow.simple, replace(flow.plan, on_integers=frozenset()))


ENDS = {"int64[8] p": [0, 0, 1, 2, 0, 0, 3, 1]}
MOVES = {
    "zeros": ("s = Pad (c, p) t = Sigmoid (s)", ENDS),
    "a stored zero": ("s = Pad (c, p, z) t = Sigmoid (s)", {**ENDS, "float z": 0}),
    "edge": ('t = Pad <mode = "edge"> (c, p)', ENDS),
    "reflect": ('t = Pad <mode = "reflect"> (c, p)', ENDS),
    "cropped": ("t = Pad (c, p)", {"int64[8] p": [0, 0, -1, 0, 0, 0, 0, -2]}),
    "blocks": ("s = SpaceToDepth <blocksize = 2> (c) t = DepthToSpace <blocksize = 2> (s)", {}),
}


@pytest.mark.parametrize("form", MOVES)
def test_moved_integers_are_the_same(form):
    nodes, constants = MOVES[form]
    flow = quantize(between(nodes, **constants))
    check(flow)
    assert {"Pad", "SpaceToDepth"} & set(flow.plan.integer_nodes.values())
    pairs, direct = (run(model, flow.feeds, optimize=False) for model in (as_pairs(flow), flow.int8))
    np.testing.assert_array_equal(direct[0], pairs[0])
    assert kernels(flow.int8).count("DequantizeLinear") < kernels(as_pairs(flow)).count("DequantizeLinear")


def test_a_pad_with_other_numbers_stays_in_float():
    flow = quantize(between("t = Pad (c, p, z)", **ENDS, **{"float z": 1.5}))
    assert "other numbers than zero" in flow.plan.float_nodes["Pad_t"].reason
    check(flow)


@pytest.mark.parametrize("nodes", ["t = HardSwish (c)", 'p = Pad <mode = "edge"> (c, e) t = Relu (p)'])
def test_signed_integers_stay_between_pairs(nodes):
    flow = quantize(
        between(nodes, **({"int64[8] e": [0, 0, 1, 1, 0, 0, 1, 1]} if "Pad" in nodes else {})),
        activation="int8",
    )
    assert not flow.plan.on_integers
    check(flow)


@pytest.mark.parametrize("spread", [4, 12])
def test_a_hard_swish_becomes_a_product(spread):
    model, x = (
        between("t = HardSwish (c)"),
        np.random.default_rng(0).standard_normal((2, 8, 6, 6), np.float32),
    )
    feeds = {"x": x * spread}
    flow = quantize(model, feeds=feeds)
    assert not {"HardSwish", "HardSigmoid"} & {*kernels(flow.int8), *(n.op_type for n in flow.int8.graph)}
    direct, pairs, exact = (run(m, feeds, optimize=False)[0] for m in (flow.int8, as_pairs(flow), model))
    assert sqnr(exact, direct) > sqnr(exact, pairs) - 0.5
    assert kernels(flow.int8).count("QLinearMul") == 1
    check(flow)


def test_a_hard_swish_of_a_range_above_minus_three_stays():
    model = between("r = LeakyRelu <alpha = 0.001> (c) t = HardSwish (r)")
    flow = quantize(model)
    assert "HardSwish" in [node.op_type for node in flow.int8.graph]
    expected, actual = (run(m, flow.feeds)[0] for m in (model, flow.int8))
    assert sqnr(expected, actual) > 20


NORMS = {
    "any": ([1.5, -0.3, 2, 0.1, 1, 1, 0.7, -2], [0.1, -0.2, 0, 1, 0.5, 0, 0.3, 0.2]),
    "dead channels": ([1, 0, 1e-9, 1, 0, 1, 1e-30, 1], [0.5, 0.7, -0.6, 0, 0, 0.1, 1, 0]),
}


@pytest.mark.parametrize(
    "after", ["t = LeakyRelu (n)", "t = Relu (n)", "t = MaxPool <kernel_shape = [2, 2]> (n)"]
)
@pytest.mark.parametrize("name", NORMS)
def test_a_batch_normalization_after_relu_is_a_convolution(name, after):
    gamma, beta = NORMS[name]
    model = between(
        f"r = Relu (c) n = BatchNormalization (r, gamma, beta, mean, var) {after}",
        **{
            "float[8] gamma": gamma,
            "float[8] beta": beta,
            "float[8] mean": [0.2] * 8,
            "float[8] var": [2] * 8,
        },
    )
    flow = quantize(model)
    check(flow)
    assert kernels(flow.int8).count("QLinearConv") == 3
    pairs, direct = (run(m, flow.feeds, optimize=False)[0] for m in (as_pairs(flow), flow.int8))
    assert sqnr(pairs, direct) > 45, "single steps where a number lies between two"
    expected, actual = (run(m, flow.feeds)[0] for m in (model, strip(flow.int8).model))
    assert sqnr(expected, actual) > 35, "weights only are rounded"


@pytest.mark.parametrize("gamma", [np.inf, 3e38])
def test_a_batch_normalization_whose_scales_float32_cannot_hold_stays(gamma):
    names = ("gamma", "beta", "mean", "var")
    constants = {f"float[8] {name}": [0.2] * 8 for name in names}
    flow = quantize(
        between("r = Relu (c) n = BatchNormalization (r, gamma, beta, mean, var) t = Relu (n)", **constants)
    )
    model = as_pairs(flow)
    (norm,) = (node for node in model.graph if node.op_type == "BatchNormalization")
    values = np.array([gamma, *[1] * 7], np.float32)
    model.graph.initializers["gamma"].const_value = ir.tensor(values)
    work_on_integers(model, [norm.name])
    assert norm.op_type == "BatchNormalization"


def test_a_batch_normalization_of_rows_stays_in_float():
    model = parse(
        """g (float[4,8] x) => (float[4,8] y) <float[8,8] w, float[8,8] v, float[8] s, float[8] b, float[8] m, float[8] var> {
            c = MatMul (x, w) r = Relu (c) n = BatchNormalization (r, s, b, m, var) d = MatMul (n, v) y = Neg (d) }""",
        opset=20,
        ir_version=9,
        s=[1, 2] * 4,
        b=[1] * 8,
        m=[0.1] * 8,
        var=[1] * 8,
    )
    assert not quantize(model).plan.on_integers


@pytest.mark.parametrize(
    ("nodes", "op_type"),
    [
        ("t = HardSwish (c)", "HardSwish"),
        ("s = Pad (c, p) t = Sigmoid (s)", "Pad"),
        ("s = Relu (c) t = HardSwish (c)", "HardSwish"),
    ],
)
def test_the_operator_comes_back_when_qdq_is_stripped(nodes, op_type):
    feeds = {"x": 4 * np.random.default_rng(0).standard_normal((2, 8, 6, 6), np.float32)}
    flow = quantize(between(nodes, **(ENDS if op_type == "Pad" else {})), feeds=feeds)
    stripped = simplify(strip(flow.int8).model)
    assert op_type in [node.op_type for node in stripped.graph]
    expected, actual = (run(model, feeds)[0] for model in (flow.model, stripped))
    assert sqnr(expected, actual) > 35, "weights only are rounded"
