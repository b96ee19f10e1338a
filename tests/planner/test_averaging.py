"""Over how many elements of a tensor the network averages."""

import pytest
from graphs import parse

from onnxq.core.config import QuantConfig
from onnxq.graph.passes import simplify
from onnxq.planner import make_plan
from onnxq.planner.averaging import MANY, averaged_elements
from onnxq.targets.lookup import get_target


def averaged(text, tensor="x", **given):
    model = parse(text, **given)
    found = averaged_elements(simplify(model).graph)
    return next((n for value, n in found.items() if value.name == tensor), 1)


IMAGE, MAP = "float[N, 4, 8, 8] x", "float[N, 4, a, b] y"


@pytest.mark.parametrize(
    ("nodes", "output", "weights", "expected"),
    [
        ("y = Conv <pads = [1,1,1,1]> (x, w)", MAP, "float[4,4,3,3] w", 9),
        ("y = Conv (x, w)", MAP, "float[4,4,1,1] w", 1),
        ("y = Conv <group = 4> (x, w)", MAP, "float[4,1,5,5] w", 25),
        ("y = ConvTranspose <strides = [2,2]> (x, w)", MAP, "float[4,4,4,4] w", 4),
        ("y = GlobalAveragePool (x)", MAP, "", 64),
        ("y = AveragePool <kernel_shape = [2,4]> (x)", MAP, "", 8),
        ("y = ReduceMean <axes = [-1], keepdims = 1> (x)", MAP, "", 8),
        ("y = MaxPool <kernel_shape = [2,2]> (x)", MAP, "", 1),
        ("h = Conv (x, w) r = Relu (h) y = Conv (r, w)", MAP, "float[4,4,3,3] w", 81),
        ("h = Conv (x, w) y = GlobalAveragePool (h)", MAP, "float[4,4,3,3] w", 9 * 36),
        ("a0 = Conv (x, w) b0 = Conv (x, v) y = Add (a0, b0)", MAP, "float[4,4,1,1] w, float[4,4,1,1] v", 1),
        ("a0 = Conv (x, w) y = Add (a0, x)", MAP, "float[4,4,1,1] w", 1),
        ("h = Softmax (x) y = GlobalAveragePool (h)", MAP, "", 1),
    ],
)
def test_windows_multiply(nodes, output, weights, expected):
    assert averaged(f"g ({IMAGE}) => ({output}) <{weights}> {{ {nodes} }}") == expected


def test_an_unknown_size_is_many_and_nothing_exceeds_it():
    assert averaged("g (float[N,4,a,b] x) => (float[N,4,1,1] y) { y = GlobalAveragePool (x) }") == MANY
    chain = "h = Conv (x, w) i = Conv (h, w) y = GlobalAveragePool (i)"
    assert averaged(f"g (float[N,4,64,64] x) => (float[N,4,1,1] y) <float[4,4,3,3] w> {{ {chain} }}") == MANY


def test_a_repeated_element_has_the_same_error_everywhere():
    """A squeezed branch is spread over the whole map again: nothing cancels."""
    text = """g (float[N,4,8,8] x) => (float[N,4,1,1] y) <float[4,4,1,1] w> {
        p = GlobalAveragePool (x) s = Conv (p, w) t = Sigmoid (s) m = Mul (x, t) y = GlobalAveragePool (m)
    }"""
    assert averaged(text, "t") == 1
    assert averaged(text, "s") == 1
    assert averaged(text, "m") == averaged(text, "x") == 64


def test_matrix_products_end_the_walk():
    text = """g (float[N,8,4] x) => (float[N,1,4] y) <float[4,4] w> {
        h = MatMul (x, w) y = ReduceMean <axes = [1]> (h)
    }"""
    assert averaged(text) == 1
    assert averaged(text, "h") == 8


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_a_group_averages_what_its_tensors_do(target):
    text = """g (float[N,4,8,8] x) => (float[N,3] y) <float[8,4,3,3] w, float[8,8,3,3] v, float[8,3] f> {
        c = Conv <pads = [1,1,1,1]> (x, w) r = Relu (c) p = MaxPool <kernel_shape = [2,2], strides = [2,2]> (r)
        d = Conv (p, v) s = Relu (d) m = GlobalAveragePool (s) q = Flatten (m) y = MatMul (q, f)
    }"""
    plan = make_plan(simplify(parse(text)), get_target(target), QuantConfig())
    groups = {tensor: group for group in plan.groups.values() for tensor in group.tensors}
    assert groups["p"].averaging_window == 9 * 4
    assert groups["x"].averaging_window == 9 * 9 * 4
    assert groups["q"].averaging_window == 1
    assert groups["w"].averaging_window == 1
