"""Channels of zeros in front of convolutions: where, and that nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
from flow import quantize
from graphs import assert_same_outputs, op_counts, parse

from onnxq.graph import constant_value
from onnxq.insert import as_written, insert_qdq


def stem(channels: int = 3, outputs: int = 16, group: int = 1, size: str = "14, 14", other: str = ""):
    """A convolution that reads the input, and behind it what makes it worth its integers."""
    return parse(
        f"""g (float[N, {channels}, {size}] x) => (float[N, 10] y{", float[N, A, B, C] z" if other else ""})
        <float[{outputs}, {channels // group}, 3, 3] w, float[{outputs}] b, float[10, {outputs}] v, float[10] d>
        {{ c = Conv<pads=[1, 1, 1, 1], group={group}>(x, w, b)  r = Relu(c)  p = GlobalAveragePool(r)
           f = Flatten(p)  y = Gemm<transB=1>(f, v, d)  {other} }}"""
    )


def written(model, **options):
    """As it is without the zeros, and with them."""
    flow = quantize(model, **options)
    return insert_qdq(flow.simple, flow.plan), flow.int8


@pytest.mark.parametrize("channels", [1, 2, 3, 5, 6])
@pytest.mark.parametrize("options", [{}, {"weight": "uint8"}, {"per_tensor": True}], ids=str)
def test_pictures_get_channels_of_zeros(channels, options):
    before, after = written(stem(channels), **options)
    assert op_counts(after)["Pad"] == 1
    assert_same_outputs(before, after)
    shapes = [v.shape for name, v in after.graph.initializers.items() if name.startswith("w_quantized")]
    assert [shape[1] for shape in shapes] == [-(-channels // 4) * 4]


@pytest.mark.parametrize(
    "model",
    [
        stem(channels=4),
        stem(channels=8),
        stem(outputs=8),
        stem(channels=48, outputs=16, group=16),
        stem(other="k = Conv(x, w, b)  q = Relu(k)  z = GlobalAveragePool(q)"),
    ],
    ids=["four", "eight", "few outputs", "groups", "two readers"],
)
def test_others_stay_as_they_are(model):
    before, after = written(model)
    assert op_counts(after) == op_counts(before)


def test_between_integers_nothing_is_put():
    """Behind a layer, Q fuses with it."""
    model = parse(
        """g (float[N, 4, 14, 14] x) => (float[N, 10] y)
        <float[6, 4, 1, 1] u, float[6] a, float[16, 6, 3, 3] w, float[16] b, float[10, 16] v, float[10] d>
        { s = Conv(x, u, a)  t = Relu(s)  c = Conv(t, w, b)  r = Relu(c)  p = GlobalAveragePool(r)
          f = Flatten(p)  y = Gemm<transB=1>(f, v, d) }"""
    )
    before, after = written(model)
    assert op_counts(after) == op_counts(before)


def test_what_is_not_known_of_the_shape_does_not_matter():
    before, after = written(stem(size="H, W"))
    assert op_counts(after)["Pad"] == 1
    assert_same_outputs(before, after)


@pytest.mark.parametrize("target", ["tensorrt", "openvino", "qnn"])
def test_other_targets_read_what_there_is(target):
    _, after = written(stem(), target=target)
    assert "Pad" not in op_counts(after)


def test_the_model_given_stays_as_it_is():
    flow = quantize(stem())
    weights = constant_value(flow.simple.graph.initializers["w"]).copy()
    as_written(flow.simple, flow.plan)
    assert op_counts(flow.simple) == {"Conv": 1, "Relu": 1, "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1}
    assert np.array_equal(constant_value(flow.simple.graph.initializers["w"]), weights)
