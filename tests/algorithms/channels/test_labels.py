"""Whatever factors the channels get, the float model computes what it did; what must stay stays."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from channel_graphs import ACROSS, ATTENTION, CONV, CONVOLUTIONS, LAST, W2, features, image, prepared
from graphs import assert_same_outputs

from onnxq.algorithms.channels.fold_factors import folded
from onnxq.algorithms.channels.labels import find_channels, reshaped
from onnxq.algorithms.channels.scale_rules import RULES


def scaled(model, seed=0):
    """The model with random factors for all channels that may have some, and how many factors there are."""
    channels = find_channels(model, RULES)
    factors = np.exp(np.random.default_rng(seed).uniform(-1, 1, channels.count))
    factors[0] = 1
    return folded(model, channels, factors), channels


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_any_factors_leave_the_outputs_as_they_are(kind: str) -> None:
    model = prepared(image(*CONVOLUTIONS[kind]))
    changed, channels = scaled(model)
    assert channels.count > 4
    assert_same_outputs(model, changed, tolerance=1e-4)
    name = "k" if "normalization" in kind else "w1"
    before, after = (m.graph.initializers[name].const_value.numpy() for m in (model, changed))
    assert not np.allclose(before, after)


@pytest.mark.parametrize("kind", ACROSS)
def test_factors_along_another_axis_than_the_channels_change_no_outputs(kind: str) -> None:
    model = features(kind)
    changed, channels = scaled(model)
    assert_same_outputs(model, changed, tolerance=1e-4)
    for name, labels in channels.labels.items():
        assert all(labels.shape[axis] == 1 or np.ptp(labels, axis).any() for axis in range(labels.ndim)), name


FIXED = {
    "graph output": "g (float[N,3,8,8] x) => (float y, float a) "
    + CONV.format(weights=W2, body="y = Conv(a, w2)"),
    "unknown operator": image("", f"s = Sigmoid(a) c = Conv(a, w2) t = Mul(s, a) {LAST}"),
    "second reader": image("", f"t = Relu(a) q = Softplus(a) {LAST} z = Add(q, q)").replace(
        "(float y)", "(float y, float z)"
    ),
    "clipped": image("float low, float six", f"t = Clip(a, low, six) {LAST}"),
    "padded with ones": image("int64[8] pads, float one", f"t = Pad(a, pads, one) {LAST}"),
    "shared weights": image("", "c = Conv(a, w2) q = Relu(a) d = Conv(q, w2) y = Add(c, d)"),
    "mean over channels": image("", f"m = ReduceMean<axes=[1]>(a) t = Sub(a, m) {LAST}"),
}


GIVEN = {
    "clipped": {"low": -1.0, "six": 6.0},
    "padded with ones": {"pads": [0, 0, 1, 1, 0, 0, 1, 1], "one": 1.0},
}


@pytest.mark.parametrize("kind", FIXED)
def test_what_nobody_can_make_up_for_stays(kind: str) -> None:
    model = prepared(FIXED[kind], **GIVEN.get(kind, {}))
    changed, channels = scaled(model)
    assert not channels.of("a").any()
    assert_same_outputs(model, changed, tolerance=1e-4)


def test_a_shared_bias_is_copied() -> None:
    text = image("float[8,8,1,1] d", f"c = Conv(a, d, b1) t = Relu(c) {LAST}")
    model = prepared(text)
    changed, _ = scaled(model)
    assert_same_outputs(model, changed, tolerance=1e-4)
    assert len(changed.graph.initializers) == len(model.graph.initializers) + 1


def test_values_pass_through_attention() -> None:
    text = ATTENTION.replace("int64[3] join>", "int64[3] join, int64[1] one>")
    model = prepared(text, split=[0, 0, 2, 4], join=[0, 0, 8], one=[1])
    changed, channels = scaled(model)
    assert channels.count == 9
    assert_same_outputs(model, changed, tolerance=1e-4)


def test_layer_normalization_gives_factors_but_takes_none() -> None:
    text = """g (float[N,5,8] x) => (float[N,5,4] y)
    <float[8,8] w, float[8] k, float[8] b, float[8,4] w2> {
      a = MatMul(x, w)  t = LayerNormalization(a, k, b)  y = MatMul(t, w2)
    }"""
    model = prepared(text, opset=17)
    changed, channels = scaled(model)
    assert channels.of("t").any()
    assert not channels.of("a").any()
    assert_same_outputs(model, changed, tolerance=1e-4)


def test_a_body_that_reads_a_tensor_holds_it() -> None:
    text = (
        image(
            "bool yes",
            f"""q = If (yes) <then_branch = one () => (float[N,8,8,8] m) {{ m = Sigmoid(a) }},
                          else_branch = two () => (float[N,8,8,8] n) {{ n = Identity(a) }}>
        z = Relu(a) t = Add(z, q) {LAST}""",
        )
        .replace("bool yes, ", "")
        .replace("x) =>", "x, bool yes) =>")
    )
    model = prepared(text)
    assert not find_channels(model, RULES).of("a").any()


@pytest.mark.parametrize(
    ("shape", "before", "after"),
    [
        ((1, 6, 1, 1), (2, 6, 5, 5), (2, 3, 2, 5, 5)),
        ((1, 6, 1, 1), (2, 6, 1, 1), (2, 6)),
        ((1, 6, 1, 1), (2, 6, 3, 3), (2, 54)),
        ((1, 1, 6), (2, 5, 6), (10, 6)),
        ((1, 1, 2, 3), (2, 5, 2, 3), (2, 5, 6)),
        ((1, 6), (1, 6), (6,)),
        ((6,), (6,), (1, 1, 6, 1)),
    ],
)
def test_reshaped_labels_are_those_of_the_reshaped_tensor(shape, before, after) -> None:
    labels = np.arange(6).reshape(shape)
    full = np.broadcast_to(labels, before).reshape(after)
    found = reshaped(labels, before, after)
    assert found is not None
    assert len(found.shape) == len(after)
    np.testing.assert_array_equal(np.broadcast_to(found, after), full)


def test_an_unknown_reshape_of_channels_is_none() -> None:
    unknown = ir.SymbolicDim(None)
    assert reshaped(np.arange(6).reshape(1, 6, 1), (2, 6, unknown), (2, unknown)) is None
