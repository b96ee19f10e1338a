"""A layer's rows at all places of its output, times its matrices, are what ONNX Runtime computes."""

import json

import numpy as np
import pytest
from graphs import parse, run
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from onnxq.algorithms.layers.im2col import im2col_rows
from onnxq.algorithms.layers.matrices import matrices, weights_of

ALL = 10**6
"""More than there are places."""


def layer(op_type, data, weight, rank=None, **attributes):
    """A model of one node."""
    listed = ", ".join(f"{name} = {json.dumps(value)}" for name, value in attributes.items())
    sizes = ",".join(f"D{i}" for i in range(len(data) if rank is None else rank))
    options = f"<{listed}>" if listed else ""
    return parse(
        f"g (float{list(data)} x) => (float[{sizes}] y) <float{list(weight)} w> {{ y = {op_type} {options} (x, w) }}",
        check=False,
    )


def products(model, data, limit=ALL):
    """``[rows, G * O]``: rows times matrices."""
    (node,) = model.graph
    rows = im2col_rows(node, data, limit, np.random.default_rng(0))
    found = np.einsum("ngk,gok->ngo", rows, matrices(node, weights_of(node)), dtype=np.float64)
    return found.reshape(len(rows), -1)


def normal(shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def assert_computed(model, data):
    """Of a convolution."""
    (expected,) = run(model, {"x": data})
    found = products(model, data).reshape(len(data), -1, expected.shape[1]).transpose(0, 2, 1)
    np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol=1e-4, atol=1e-4)


CONVOLUTIONS = {
    "1-D": ((2, 3, 9), (4, 3, 3), {"pads": [2, 1], "strides": [2]}),
    "2-D": ((2, 3, 7, 6), (4, 3, 3, 2), {}),
    "3-D": ((2, 2, 5, 4, 6), (3, 2, 2, 3, 2), {"pads": [1, 0, 2, 0, 1, 1], "strides": [2, 1, 3]}),
    "grouped": ((2, 4, 6, 5), (6, 2, 3, 3), {"group": 2, "pads": [1, 1, 1, 1]}),
    "depthwise": ((2, 4, 6, 5), (4, 1, 3, 3), {"group": 4, "strides": [2, 2], "pads": [1, 0, 0, 1]}),
    "depthwise, two each": ((2, 3, 6, 5), (6, 1, 3, 3), {"group": 3}),
    "dilated": ((2, 3, 9, 9), (4, 3, 3, 3), {"dilations": [2, 3], "pads": [2, 3, 2, 3]}),
    "pads more than the kernel": ((1, 2, 3, 3), (2, 2, 2, 2), {"pads": [3, 2, 2, 4]}),
    "valid": ((2, 3, 7, 7), (4, 3, 3, 3), {"auto_pad": "VALID", "strides": [2, 2]}),
    "a point": ((2, 3, 4, 4), (5, 3, 1, 1), {}),
}


@pytest.mark.parametrize(("data", "weight", "attributes"), CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_convolutions(data, weight, attributes):
    assert_computed(layer("Conv", data, weight, **attributes), normal(data))


TRANSPOSED = {
    "1-D": ((2, 3, 5), (3, 4, 3), {"strides": [2]}),
    "2-D": ((2, 3, 4, 5), (3, 4, 3, 2), {"strides": [2, 3], "pads": [1, 0, 1, 1]}),
    "3-D": ((1, 2, 3, 2, 3), (2, 3, 2, 3, 2), {"strides": [2, 1, 2], "pads": [0, 1, 0, 1, 0, 0]}),
    "grouped": ((2, 4, 4, 4), (4, 3, 3, 3), {"group": 2, "strides": [2, 2]}),
    "depthwise": ((2, 4, 4, 4), (4, 1, 2, 2), {"group": 4, "strides": [2, 2]}),
    "dilated": ((2, 3, 4, 4), (3, 2, 3, 3), {"dilations": [2, 2], "strides": [3, 2]}),
    "kernel below the stride": ((2, 3, 4, 4), (3, 2, 1, 2), {"strides": [3, 3]}),
    "output_padding": ((2, 3, 4, 5), (3, 4, 3, 3), {"strides": [2, 3], "output_padding": [1, 2]}),
    "output_shape": ((2, 3, 4, 5), (3, 4, 3, 3), {"strides": [2, 2], "output_shape": [8, 8]}),
    "larger output_shape": ((2, 3, 4, 5), (3, 4, 2, 1), {"strides": [2, 3], "output_shape": [9, 15]}),
    "output_shape, upper": (
        (2, 3, 4, 5),
        (3, 4, 3, 3),
        {"strides": [2, 2], "output_shape": [8, 8], "auto_pad": "SAME_UPPER"},
    ),
}


@pytest.mark.parametrize(("data", "weight", "attributes"), TRANSPOSED.values(), ids=TRANSPOSED)
def test_transposed_convolutions(data, weight, attributes):
    assert_computed(layer("ConvTranspose", data, weight, **attributes), normal(data))


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("op_type", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("kernel", [2, 3, 4])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_same_padding(op_type, auto_pad, kernel, stride):
    data = (2, 3, 7, 8)
    weight = (4, 3, kernel, kernel) if op_type == "Conv" else (3, 4, kernel, kernel)
    assert_computed(layer(op_type, data, weight, auto_pad=auto_pad, strides=[stride] * 2), normal(data))


@settings(max_examples=60)
@given(op_type=st.sampled_from(["Conv", "ConvTranspose"]), draw=st.data())
def test_any_geometry(op_type, draw):
    rank = draw.draw(st.integers(1, 2))

    def some(low, high, count=rank):
        return draw.draw(st.lists(st.integers(low, high), min_size=count, max_size=count))

    sizes, kernel, strides, dilations = some(1, 7), some(1, 3), some(1, 3), some(1, 2)
    pads, group, inputs, outputs = some(0, 2, 2 * rank), *some(1, 2, 3)
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    total = [pads[d] + pads[d + rank] for d in range(rank)]
    if op_type == "Conv":
        assume(all(n + p >= s for n, p, s in zip(sizes, total, spans, strict=True)))
        weight = (group * outputs, inputs, *kernel)
    else:
        assume(all((n - 1) * t + s > p for n, t, s, p in zip(sizes, strides, spans, total, strict=True)))
        weight = (group * inputs, outputs, *kernel)
    data = (2, group * inputs, *sizes)
    options = {"strides": strides, "dilations": dilations, "pads": pads, "group": group}
    assert_computed(layer(op_type, data, weight, **options), normal(data))


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
def test_gemm(trans_a, trans_b):
    data, weight = ((6, 5) if trans_a else (5, 6)), ((4, 6) if trans_b else (6, 4))
    model, x = layer("Gemm", data, weight, transA=trans_a, transB=trans_b), normal(data)
    np.testing.assert_allclose(products(model, x), run(model, {"x": x})[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("data", [(6,), (5, 6), (2, 3, 6), (2, 3, 2, 6)])
def test_matmul(data):
    model, x = layer("MatMul", data, (6, 4)), normal(data)
    (expected,) = run(model, {"x": x})
    np.testing.assert_allclose(products(model, x), expected.reshape(-1, 4), rtol=1e-4, atol=1e-4)


SAMPLED = {
    "Conv": ((3, 2, 6, 6), (4, 2, 3, 3), {}),
    "ConvTranspose": ((3, 2, 3, 3), (2, 4, 3, 3), {"strides": [2, 2]}),
    "Gemm": ((3, 8), (8, 4), {}),
    "MatMul": ((3, 9, 8), (8, 4), {}),
}


@pytest.mark.parametrize("op_type", SAMPLED)
def test_some_places_are_different_ones_of_all(op_type):
    data, weight, attributes = SAMPLED[op_type]
    model, x = layer(op_type, data, weight, **attributes), normal(data)
    (node,) = model.graph
    all_rows, *others = (
        im2col_rows(node, x, limit, np.random.default_rng(seed))
        for limit, seed in ((ALL, 0), (5, 0), (5, 0), (5, 1))
    )
    keys = {row.tobytes() for row in all_rows}
    assert all({row.tobytes() for row in rows} <= keys for rows in others)
    assert len(others[0]) == min(3 * 5, len(all_rows))
    assert len({row.tobytes() for row in others[0]}) == len(others[0])
    assert np.array_equal(others[0], others[1])
    if len(all_rows) > 3 * 5:
        assert not np.array_equal(others[0], others[2])


def test_no_rows_of_no_data():
    (node,) = layer("MatMul", (3, 9, 8), (8, 4)).graph
    assert im2col_rows(node, np.zeros((0, 9, 8), np.float32), 5, np.random.default_rng(0)).shape == (0, 1, 8)
