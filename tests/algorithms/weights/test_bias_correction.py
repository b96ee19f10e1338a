"""Biases in closed form: rounded weights no longer shift the means of output channels."""

import numpy as np
import pytest
from benches import bench_for

from onnxq.algorithms.layers.biases import bias_of
from onnxq.algorithms.layers.matrices import channel_axis, layers, weights_of
from onnxq.algorithms.weights.bias_correction import _means, correct_biases
from onnxq.core.numerics import dequantize, quantize

IMAGE = (
    "g (float[N,4,6,6] x) => (float[N,5] y) <{weights}, float[{channels},5] v> {{ r = Softplus (x)  {node}"
)
TAIL = "  p = GlobalAveragePool (c)  f = Flatten (p)  y = MatMul (f, v) }"


def image(node, weight, channels):
    """One convolution ``c`` of positive values, and something behind it."""
    weights = f"float{list(weight)} w, float[{channels}] b"
    return IMAGE.format(weights=weights, channels=channels, node=node) + TAIL


EXACT = {
    "Conv": image("c = Conv (r, w, b)", (8, 4, 1, 1), 8),
    "grouped": image("c = Conv <group = 2> (r, w, b)", (6, 2, 1, 1), 6),
    "depthwise": image("c = ConvTranspose <strides = [2, 2], group = 4> (r, w, b)", (4, 1, 2, 2), 4),
    "ConvTranspose": image("c = ConvTranspose (r, w, b)", (4, 7, 1, 1), 7),
    "ConvTranspose, patches side by side": image(
        "c = ConvTranspose <strides = [3, 2]> (r, w, b)", (4, 7, 3, 2), 7
    ),
    "ConvTranspose, grouped": image(
        "c = ConvTranspose <strides = [2, 2], group = 2> (r, w, b)", (4, 3, 2, 2), 6
    ),
    "Gemm": """g (float[N,12] x) => (float[N,5] y) <float[12,8] w, float[8] b, float[8,5] v>
    { r = Softplus (x)  c = Gemm (r, w, b)  s = Relu (c)  y = MatMul (s, v) }""",
    "Gemm, transB": """g (float[N,12] x) => (float[N,5] y) <float[8,12] w, float[8] b, float[8,5] v>
    { r = Softplus (x)  c = Gemm <transB = 1> (r, w, b)  s = Relu (c)  y = MatMul (s, v) }""",
    "Gemm, alpha and beta": """g (float[N,12] x) => (float[N,5] y) <float[12,8] w, float[8] b, float[8,5] v>
    { r = Softplus (x)  c = Gemm <alpha = 0.5, beta = 2.0> (r, w, b)  s = Relu (c)  y = MatMul (s, v) }""",
    "MatMul and Add": """g (float[N,7,12] x) => (float[N,7,5] y) <float[12,8] w, float[8] b, float[8,5] v>
    { r = Softplus (x)  m = MatMul (r, w)  c = Add (m, b)  s = Relu (c)  y = MatMul (s, v) }""",
    "Add and MatMul": """g (float[N,7,12] x) => (float[N,7,5] y) <float[12,8] w, float[1,1,8] b, float[8,5] v>
    { r = Softplus (x)  m = MatMul (r, w)  c = Add (b, m)  s = Relu (c)  y = MatMul (s, v) }""",
}


def constants(model):
    return {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}


def changed(draft, other):
    before, after = constants(draft.model), constants(other.model)
    assert before.keys() == after.keys()
    assert all(before[name].shape == after[name].shape for name in before)
    return {name for name in before if not np.array_equal(before[name], after[name])}


def with_stored_weights(draft):
    """``draft`` with weights as the integers give them back, so that its model shows what rounding them does."""
    nodes = {node.name: node for node in draft.model.graph}
    stored = {}
    for layer in layers(draft.model, draft.plan):
        params, spec = draft.plan.params[layer.weight.group], layer.weight.spec
        stored[layer.weight.tensor] = dequantize(
            quantize(weights_of(nodes[layer.name]), params, spec), params, spec
        )
    return draft.with_constants(stored)


def output_means(model, draft, context, name):
    """Of the channels of a layer's output, ``[C]``, over all samples to fit on."""
    node = draft.reference.graph.node(name)
    bias = bias_of(node)
    tensor = draft.reference.graph.node(bias.holder).outputs[0].name
    axis = channel_axis(node)
    return np.mean(
        list(context.watch(model, [tensor], lambda _, arrays: _means(arrays[tensor], axis))), axis=0
    )


@pytest.mark.parametrize("text", EXACT.values(), ids=EXACT)
@pytest.mark.parametrize("bits", [4, 8])
def test_means_of_output_channels_are_the_float_models(text, bits):
    draft, context = bench_for(text, bits=bits, target="tensorrt")
    first = layers(draft.reference, draft.plan)[0].name
    corrected = correct_biases(draft, context)
    expected = output_means(draft.reference, draft, context, first)
    before, after = (
        output_means(with_stored_weights(one).model, draft, context, first) - expected
        for one in (draft, corrected)
    )
    tolerance = 1e-5 * np.abs(expected).max()
    assert np.abs(before).max() > 10 * tolerance
    assert np.abs(after).max() < tolerance


NEARLY = {
    "depthwise": image("c = Conv <group = 4> (r, w, b)", (4, 1, 3, 3), 4),
    "no padding": image("c = Conv (r, w, b)", (8, 4, 3, 3), 8),
    "strides": image("c = Conv <strides = [3, 2]> (r, w, b)", (8, 4, 3, 2), 8),
    "a transposed one, cut": image(
        "c = ConvTranspose <strides = [2, 2], pads = [0, 1, 1, 0]> (r, w, b)", (4, 8, 3, 3), 8
    ),
}


@pytest.mark.parametrize("text", NEARLY.values(), ids=NEARLY)
def test_what_is_different_at_the_border_is_neglected(text):
    draft, context = bench_for(text, bits=4, target="tensorrt", count=40)
    first = layers(draft.reference, draft.plan)[0].name
    expected = output_means(draft.reference, draft, context, first)
    before, after = (
        output_means(with_stored_weights(one).model, draft, context, first) - expected
        for one in (draft, correct_biases(draft, context))
    )
    assert np.square(after).sum() < 0.3 * np.square(before).sum()


def test_only_biases_change_and_what_it_was_given_does_not():
    draft, context = bench_for(EXACT["Conv"], bits=4)
    before = {name: array.copy() for name, array in constants(draft.model).items()}
    first, second = (correct_biases(draft, context) for _ in range(2))
    assert changed(draft, first) == {"b"}
    assert not changed(first, second)
    assert first.reference is draft.reference
    assert first.plan is draft.plan
    assert all(np.array_equal(array, before[name]) for name, array in constants(draft.model).items())


def test_it_adds_to_the_bias_that_is_there():
    draft, context = bench_for(EXACT["Conv"], bits=4)
    shifted = draft.with_constants({"b": constants(draft.model)["b"] + 1})
    one, other = (constants(correct_biases(d, context).model)["b"] for d in (draft, shifted))
    np.testing.assert_allclose(other, one + 1, atol=1e-5)


SHARED = """g (float[N,8] x) => (float[N,5] y) <float[8,8] w1, float[8,8] w2, float[8] b, float[8,5] v>
{ r = Softplus (x)  m = MatMul (r, w1)  c = Add (m, b)  s = Relu (c)  n = MatMul (s, w2)  d = Add (n, b)
  y = MatMul (d, v) }"""

NO_BIAS = """g (float[N,8] x) => (float[N,5] y) <float[8,8] w1, float[8,5] v>
{ r = Softplus (x)  m = MatMul (r, w1)  s = Relu (m)  y = MatMul (s, v) }"""

TWO_READERS = """g (float[N,3,8] x) => (float[N,3,5] y) <float[8,8] w1, float[8] b, float[8,5] v>
{ r = Softplus (x)  m = MatMul (r, w1)  c = Add (m, b)  s = Mul (c, m)  y = MatMul (s, v) }"""

ONE_NUMBER = """g (float[N,3,8] x) => (float[N,3,5] y) <float[8,8] w1, float[1] b, float[8,5] v>
{ r = Softplus (x)  m = MatMul (r, w1)  c = Add (m, b)  s = Relu (c)  y = MatMul (s, v) }"""

ANOTHER_AXIS = """g (float[N,8,8] x) => (float[N,8,5] y) <float[8,8] w1, float[8,1] b, float[8,5] v>
{ r = Softplus (x)  m = MatMul (r, w1)  c = Add (m, b)  s = Relu (c)  y = MatMul (s, v) }"""

NOTHING = {
    "shared by two": SHARED,
    "none": NO_BIAS,
    "products with another reader": TWO_READERS,
    "one number": ONE_NUMBER,
    "along another axis": ANOTHER_AXIS,
}


@pytest.mark.parametrize("text", NOTHING.values(), ids=NOTHING)
def test_without_a_bias_of_its_own_nothing_is_corrected(text):
    draft, context = bench_for(text, bits=4)
    assert layers(draft.reference, draft.plan)
    assert correct_biases(draft, context) is None


def test_without_means_nothing_is_corrected():
    text = "g (float[8] x) => (float[4] y) <float[8,4] w, float[4] b> { m = MatMul (x, w)  y = Add (m, b) }"
    draft, context = bench_for(text, bits=4)
    assert layers(draft.reference, draft.plan)
    assert correct_biases(draft, context) is None
