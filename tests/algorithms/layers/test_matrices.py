"""Weights as matrices and back, which nodes are layers, and where their channels lie."""

import numpy as np
import pytest
from benches import CHAIN, bench_for
from graphs import parse

from onnxq.algorithms.layers.matrices import channel_axes, layers, matrices, weights, weights_of

FORMS = {
    "Conv": ("Conv", (4, 3, 3, 2), (1, 4, 18)),
    "Conv, 1-D, grouped": ("Conv <group = 2>", (6, 2, 3), (2, 3, 6)),
    "depthwise": ("Conv <group = 4>", (4, 1, 3, 3), (4, 1, 9)),
    "ConvTranspose": ("ConvTranspose", (3, 4, 2, 2), (1, 4, 12)),
    "ConvTranspose, grouped": ("ConvTranspose <group = 2>", (6, 4, 2, 3), (2, 4, 18)),
    "Gemm": ("Gemm", (6, 4), (1, 4, 6)),
    "Gemm, transB": ("Gemm <transB = 1>", (4, 6), (1, 4, 6)),
    "MatMul": ("MatMul", (6, 4), (1, 4, 6)),
}


def node_of(operator, weight):
    (node,) = parse(
        f"g (float[A,B] x) => (float[C,D] y) <float{list(weight)} w> {{ y = {operator} (x, w) }}", check=False
    ).graph
    return node


@pytest.mark.parametrize(("operator", "shape", "form"), FORMS.values(), ids=FORMS)
def test_weights_become_matrices_and_weights_again(operator, shape, form):
    node = node_of(operator, shape)
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    matrix = matrices(node, values)
    assert matrix.shape == form
    assert np.array_equal(np.sort(matrix, axis=None), values.ravel()), "each weight once"
    back = weights(node, matrix, shape)
    assert np.array_equal(back, values)
    assert back.flags.c_contiguous


@pytest.mark.parametrize(("operator", "shape", "form"), FORMS.values(), ids=FORMS)
def test_an_output_channel_is_a_row(operator, shape, form):
    node = node_of(operator, shape)
    groups, outputs, _ = form
    axis = {"Conv": 0, "ConvTranspose": 1, "Gemm": int("transB" not in operator), "MatMul": 1}[node.op_type]
    index = np.arange(shape[axis]).reshape([-1 if i == axis else 1 for i in range(len(shape))])
    matrix = matrices(node, np.broadcast_to(index, shape))
    assert (matrix == matrix[:, :, :1]).all()
    if node.op_type == "ConvTranspose":  # counted anew in each group
        assert np.array_equal(matrix[:, :, 0], np.broadcast_to(np.arange(outputs), (groups, outputs)))
    else:
        assert np.array_equal(matrix[:, :, 0].ravel(), np.arange(groups * outputs))


def test_layers_come_in_graph_order_with_their_edges():
    draft, _ = bench_for()
    found = layers(draft.reference, draft.plan)
    assert [layer.name for layer in found] == ["Conv_a", "Conv_c", "Conv_d", "MatMul_y"]
    assert [layer.weight.tensor for layer in found] == ["w1", "w2", "w3", "v"]
    assert [layer.data.tensor for layer in found] == ["x", "r", "t", "f"]
    assert [layer.shape for layer in found] == [(1, 8, 36), (1, 8, 72), (1, 8, 8), (1, 5, 8)]
    assert all(weights_of(draft.reference.graph.node(layer.name)) is not None for layer in found)


def test_float_nodes_and_weights_that_are_no_constant_matrix_are_no_layers():
    text = """g (float[N,6,6] x) => (float[N,6,4] y)
    <float[6,6] w1, float[1,6,6] w2, float[6,6] w3, float[6,6] w4, float[6,4] w5>
    { a = MatMul (x, w1)  b = MatMul (a, w2)  c = MatMul (w3, b)  d = MatMul (c, x)  e = MatMul (d, w4)
      y = MatMul (e, w5) }"""
    draft, _ = bench_for(text, exclude=("MatMul_a",))
    assert [layer.name for layer in layers(draft.reference, draft.plan)] == [
        *("MatMul_b", "MatMul_e", "MatMul_y")  # w2 is a stack of one matrix, which cleaning makes the matrix
    ]


def test_channels_lie_in_front_of_the_places():
    draft, _ = bench_for(CHAIN)
    assert channel_axes(draft.reference, draft.plan) == {"x": -3, "r": -3, "t": -3, "f": -1}


NO_CHANNELS = {
    "a vector": "g (float[8] x) => (float[4] y) <float[8,4] w> { y = MatMul (x, w) }",
    "a transposed matrix": """g (float[8,3] x) => (float[3,4] y) <float[8,4] w, float[4] b>
    { y = Gemm <transA = 1> (x, w, b) }""",
}


@pytest.mark.parametrize("text", NO_CHANNELS.values(), ids=NO_CHANNELS)
def test_where_the_first_axis_is_summed_over_there_are_no_channel_means(text):
    draft, _ = bench_for(text)
    assert len(layers(draft.reference, draft.plan)) == 1
    assert channel_axes(draft.reference, draft.plan) == {}


def test_a_tensor_that_layers_sum_over_different_axes_of_has_no_channel_means():
    text = """g (float[N,4,4,4] x) => (float[N,3,2,2] y, float[N,4,4,5] z) <float[3,4,3,3] w1, float[4,5] w2>
    { y = Conv (x, w1)  z = MatMul (x, w2) }"""
    draft, _ = bench_for(text, quantize_outputs=True)
    assert len(layers(draft.reference, draft.plan)) == 2
    assert channel_axes(draft.reference, draft.plan) == {}
