"""Equalization: badly scaled channels are repaired, Muls stand only where they help, extremes are not trusted."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from benches import bench_of, bench_on
from channel_graphs import ACROSS, features
from graphs import assert_same_outputs, op_counts, parse, run

from calibrators.data.samples import Sample
from onnxq.algorithms.channels.channel_moments import ChannelMoments, headroom
from onnxq.algorithms.channels.equalize import _scalable, equalize
from onnxq.algorithms.channels.fold_factors import find_places, folded, with_muls
from onnxq.algorithms.channels.labels import find_channels
from onnxq.algorithms.channels.noise_model import Activations, Weights, minimize_noise, noise
from onnxq.algorithms.channels.scale_rules import RULES, in_columns
from onnxq.core.config import QuantConfig
from onnxq.graph.nodes import input_at
from onnxq.graph.passes import simplify
from onnxq.pipelines.prepare import prepare

TARGETS = ("onnxruntime", "tensorrt")


NET = """g (float[N,3,8,8] x) => (float[N,10] y)
<float[16,3,3,3] w1, float[16] b1, float[16,1,3,3] wd, float[16] bd, float[16,16,1,1] w2, float[16] b2,
 float[16,16,1,1] w3, float[16] b3, float[16,10] m> {
  a = Conv<pads=[1,1,1,1]>(x, w1, b1) r = Relu(a)
  d = Conv<group=16, pads=[1,1,1,1]>(r, wd, bd) s = Relu(d)
  c = Conv(s, w2, b2) e = Conv(c, w3, b3) f = Add(c, e)
  p = GlobalAveragePool(f) q = Flatten(p) y = MatMul(q, m)
}"""


SENTENCE = """g (float[N,6,32] x) => (float[N,6,4] y)
<float[32,32] w0, float[32] k, float[32] b, float[32,32] w1, float[32,64] w2, float[64,32] w3, float[32,4] w4> {
  a = MatMul(x, w0) n = LayerNormalization(a, k, b)
  h = MatMul(n, w1) t = Add(n, h) o = LayerNormalization(t, k, b)
  u = MatMul(o, w2) g = Softplus(u) v = MatMul(g, w3) z = Add(v, o) y = MatMul(z, w4)
}"""


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("per_tensor", [False, True])
def test_random_factors_are_undone(target: str, per_tensor: bool) -> None:
    model = simplify(parse(NET))
    channels = find_channels(model, RULES)
    factors = np.exp(np.random.default_rng(3).uniform(-2.0, 2.0, channels.count))
    factors[0] = 1
    options = {"target": target, "per_tensor": per_tensor}
    good, context = bench_of(model, (1, 3, 8, 8), **options)
    harmed, _ = bench_of(folded(model, channels, factors), (1, 3, 8, 8), **options)
    repaired = equalize(harmed, context)
    assert repaired is not None
    assert context.evaluator.evaluate(repaired.reference).noise < 1e-9
    assert context.error(harmed) > 4 * context.error(good)
    assert context.error(repaired) < (2.5 if per_tensor else 1.3) * context.error(good)
    assert repaired.reference is repaired.model


def test_what_gains_too_little_is_not_done() -> None:
    draft, context = bench_of(simplify(parse(NET)), (1, 3, 8, 8))
    balanced = equalize(draft, context)
    assert balanced is not None
    assert equalize(balanced, context) is None


def test_nothing_it_was_given_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("onnxq.algorithms.channels.equalize"), "ENOUGH", 0.0)
    model = simplify(parse(NET))
    before = ir.to_proto(model).SerializeToString()
    draft, context = bench_of(model, (1, 3, 8, 8))
    first, second = (equalize(draft, context) for _ in range(2))
    assert first is not None
    assert second is not None
    assert ir.to_proto(model).SerializeToString() == before
    one, other = (ir.to_proto(d.reference).SerializeToString() for d in (first, second))
    assert one == other


def test_without_free_channels_there_is_nothing_to_do() -> None:
    model = simplify(parse("g (float[N,8] x) => (float[N,4] y) <float[8,4] w> { y = MatMul(x, w) }"))
    draft, context = bench_of(model, (1, 8))
    assert equalize(draft, context) is None


@pytest.mark.parametrize("kind", ACROSS)
@pytest.mark.parametrize("per_tensor", [False, True])
def test_factors_along_another_axis_than_the_channels_are_no_obstacle(
    kind: str, per_tensor: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_module("onnxq.algorithms.channels.equalize"), "ENOUGH", -np.inf)
    draft, context = bench_of(features(kind), (1, 5, 6), per_tensor=per_tensor)
    found = equalize(draft, context)
    assert found is None or context.evaluator.evaluate(found.reference).noise < 1e-9


GATED = """g (float[N,3,8,8] x) => (float[N,4,8,8] y)
<float[16,3,3,3] w1, float[16] b1, float[16,1,3,3] wd, float[4,16,1,1] w2> {
  a = Conv<pads=[1,1,1,1]>(x, w1, b1) d = Conv<group=16, pads=[1,1,1,1]>(a, wd)
  s = HardSwish(d) y = Conv(s, w2)
}"""


def test_layers_that_stay_float_hear_noise_too() -> None:
    model = simplify(parse(GATED, opset=14))
    channels = find_channels(model, RULES)
    factors = np.exp(np.random.default_rng(3).uniform(-3.0, 3.0, channels.count))
    factors[0] = 1
    harmed, context = bench_of(folded(model, channels, factors), (1, 3, 8, 8))
    assert "Conv_d" not in harmed.plan.integer_nodes, "a depthwise convolution before floats"
    repaired = equalize(harmed, context)
    assert repaired is not None
    assert context.error(repaired) < 0.5 * context.error(harmed)


CNN = "a = Conv<pads=[1,1,1,1]>({}, w, b) r = Relu(a) y = Conv<pads=[1,1,1,1]>(r, v)"
DEEP = "float[8,4,3,3] w, float[8] b, float[4,8,3,3] v"
MLP = "float[4,16] w, float[16] b, float[16,4] v"
FIRST_LAYERS = {
    "convolution": ((4, 8, 8), 1, DEEP, CNN.format("j")),
    "moved": ((4, 8, 8), 1, DEEP, "t = Transpose<perm=[0,1,3,2]>(j) " + CNN.format("t")),
    "channels last": ((8, 8, 4), 3, DEEP, "t = Transpose<perm=[0,3,1,2]>(j) " + CNN.format("t")),
    "read twice": (
        (4, 8, 8),
        1,
        f"{DEEP}, float[8,4,3,3] w2",
        "c = Conv<pads=[1,1,1,1]>(j, w2) a = Conv<pads=[1,1,1,1]>(j, w, b) q = Add(a, c) r = Relu(q) y = Conv(r, v)",
    ),
    "groups": ((4, 8, 8), 1, DEEP.replace("8,4,3", "8,2,3"), CNN.format("j").replace("<", "<group=2, ", 1)),
    "transposed": (
        (4, 8, 8),
        1,
        DEEP.replace("8,4,3", "4,8,3"),
        "a = ConvTranspose<pads=[1,1,1,1]>(j, w, b) r = Relu(a) y = Conv(r, v)",
    ),
    "one dimension": ((4, 16), 1, DEEP.replace("3,3]", "3]"), CNN.format("j").replace("1,1,1,1", "1,1")),
    "Gemm": ((4,), 1, MLP, "a = Gemm(j, w, b) r = Relu(a) y = MatMul(r, v)"),
    "MatMul": ((5, 4), 2, MLP, "a = MatMul(j, w) c = Add(a, b) r = Relu(c) y = MatMul(r, v)"),
}
"""What reads ``j``, two inputs joined: sizes of a sample, axis of the channels, weights, nodes."""


def joined(kind: str, sizes: np.ndarray, **options):
    """A bench with inputs whose channels have these ``sizes``, and weigh equally in the first layer."""
    shape, axis, weights, body = FIRST_LAYERS[kind]
    parts = [",".join(str(n if d == axis - 1 else s) for d, s in enumerate(shape)) for n in (3, 1)]
    text = f"""g (float[N,{parts[0]}] x, float[N,{parts[1]}] m) => (float y) <{weights}> {{
      j = Concat<axis={axis}>(x, m) {body} }}"""
    model = simplify(parse(text))
    for node in model.graph:
        value = input_at(node, 1)
        if value is not None and (value.name or "").startswith("w"):
            weight = value.const_value.numpy()
            value.const_value = ir.tensor((weight / in_columns(node, weight.shape, sizes)).astype(np.float32))
    rng, along = (
        np.random.default_rng(0),
        sizes.reshape([-1 if d == axis - 1 else 1 for d in range(len(shape))]),
    )
    drawn = (along * rng.normal(size=(32, 1, *shape))).astype(np.float32)
    samples = [
        Sample(str(i), dict(zip(("x", "m"), np.split(one, [3], axis), strict=True)))
        for i, one in enumerate(drawn)
    ]
    return bench_on(model, samples[:24], samples[24:], **options)


@pytest.mark.parametrize("kind", FIRST_LAYERS)
@pytest.mark.parametrize("target", [*TARGETS, "openvino"])
def test_inputs_of_different_sizes_are_scaled_by_a_mul(kind: str, target: str) -> None:
    draft, context = joined(kind, np.array([200.0, 150.0, 180.0, 0.01]), target=target)
    found = equalize(draft, context)
    if not any("w" in point.tensor for point in draft.plan.points):
        pytest.skip(f"the first layer stays float on {target}")
    assert found is not None
    assert op_counts(found.reference) == {**op_counts(draft.reference), "Mul": 1}
    assert context.evaluator.evaluate(found.reference).noise < 1e-9
    assert context.error(found) < 0.1 * context.error(draft)
    assert found.plan.integer_nodes == draft.plan.integer_nodes


@pytest.mark.parametrize("kind", FIRST_LAYERS)
def test_inputs_of_about_the_same_size_are_not_scaled(kind: str) -> None:
    found = _scalable(*joined(kind, np.array([1.0, 1.2, 0.8, 0.7])))
    assert found is None or not any(place.is_raw for place in found.places)


def test_channels_of_one_input_are_scaled_too() -> None:
    sizes = np.array([5.0, 4000.0], np.float32).reshape(2, 1, 1)
    rng = np.random.default_rng(0)
    text = "g (float[N,2,8,8] x) => (float y) <float[4,2,3,3] w, float[4,4,1,1] v> { a = Conv(x, w) y = Conv(a, v) }"
    model = simplify(parse(text, w=rng.normal(size=(4, 2, 3, 3)) / sizes))
    samples = [
        Sample(str(i), {"x": sizes * x}) for i, x in enumerate(rng.normal(size=(32, 1, 2, 8, 8)).astype("f"))
    ]
    draft, context = bench_on(model, samples[:24], samples[24:])
    found = equalize(draft, context)
    assert found is not None
    assert op_counts(found.reference) == {"Conv": 2, "Mul": 1}
    assert context.error(found) < 0.1 * context.error(draft)


def test_where_everything_is_quantized_a_mul_comes_too_late() -> None:
    draft, context = joined("convolution", np.array([200.0, 150.0, 180.0, 0.01]), target="qnn")
    found = equalize(draft, context)
    assert found is None or op_counts(found.reference) == op_counts(draft.reference)


def uneven(size: int) -> np.ndarray:
    return np.where(np.arange(size) % 8, 0.1, 4.0)


@pytest.mark.parametrize("target", TARGETS)
def test_muls_serve_matrices_behind_tensors_that_others_read(target: str) -> None:
    model = simplify(parse(SENTENCE, opset=17, k=uneven(32), b=0.1 * uneven(32)))
    draft, context = bench_of(model, (2, 6, 32), target=target)
    smoothed = equalize(draft, context)
    assert smoothed is not None
    muls = op_counts(smoothed.reference).get("Mul", 0)
    assert 1 <= muls <= 2
    assert context.evaluator.evaluate(smoothed.reference).noise < 1e-9
    assert context.error(smoothed) < 0.7 * context.error(draft)
    assert smoothed.plan.integer_nodes == draft.plan.integer_nodes, (
        "the Muls stay float, the rest is what it was"
    )


def test_a_mul_that_gains_too_little_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("onnxq.algorithms.channels.equalize"), "WORTH", 1e6)
    model = simplify(parse(SENTENCE, opset=17, k=uneven(32), b=0.1 * uneven(32)))
    draft, context = bench_of(model, (2, 6, 32))
    left = equalize(draft, context)
    assert left is None or op_counts(left.reference) == op_counts(model)


@pytest.mark.parametrize("name", ["lite0", "resnet20"])
def test_real_images_keep_their_scores(name: str, request: pytest.FixtureRequest) -> None:
    model, _ = prepare(request.getfixturevalue(name), QuantConfig())
    channels = find_channels(model, RULES)
    factors = np.exp(np.random.default_rng(0).uniform(-1, 1, channels.count))
    factors[0] = 1
    assert channels.count > 200
    assert_same_outputs(model, folded(model, channels, factors), tolerance=1e-4)


def test_real_sentences_keep_their_encoding(minilm: Path) -> None:
    """Values go through attention; LayerNormalization and Gelu need Muls."""
    model, plan = prepare(minilm, QuantConfig())
    channels, places = find_places(model, plan, find_channels(model, RULES))
    factors = np.exp(np.random.default_rng(0).uniform(-1, 1, channels.count))
    factors[0] = 1
    changed = with_muls(folded(model, channels, factors), places, factors)
    assert len(places) == 18
    feeds = {"input_ids": [[101, 2023, 2003, 102]], "attention_mask": [[1, 1, 1, 1]]}
    feeds = {v.name: np.asarray(feeds.get(v.name, [[0] * 4]), v.dtype.numpy()) for v in model.graph.inputs}
    for expected, actual in zip(run(model, feeds), run(changed, feeds), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-4 * np.abs(expected).max())


# --- The cost ---------------------------------------------------------------------------------


def terms(rng):
    step = Activations(rng.integers(0, 9, 20), rng.random(20), rng.random(20), rng.random(20), 255, False)
    for per_row in (True, False):
        shapes = ((2, 5, 4), (2, 4), (2, 5))
        size, columns, rows = rng.random(shapes[0]), *(rng.integers(0, 9, s) for s in shapes[1:])
        yield Weights(size.astype(np.float32), columns, rows, rng.random((2, 4)), 127, per_row, 1.0)
    yield step
    yield replace(step, symmetric=True)


@pytest.mark.parametrize("seed", range(3))
def test_derivatives_are_those_of_the_noise(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for term in terms(rng):
        logs = rng.normal(size=9)
        grade = term.cost(logs)[1]
        steps = [(term.cost(logs + e)[0] - term.cost(logs - e)[0]) / 2e-3 for e in 1e-3 * np.eye(9)]
        np.testing.assert_allclose(grade, steps, atol=1e-3 * np.abs(grade).max())


@pytest.mark.parametrize("seed", range(3))
def test_no_factors_near_or_far_have_less_noise(seed: int) -> None:
    rng = np.random.default_rng(seed)
    every = list(terms(rng))
    best = minimize_noise(every, 9)
    assert best[0] == 0
    least = noise(every, best)
    for size in (0.03, 0.3, 1.0, 3.0):
        for _ in range(20):
            tried = best + size * rng.normal(size=9)
            assert noise(every, tried) > 0.99 * least


# --- What was not seen ------------------------------------------------------------------------


def test_channels_that_always_answer_need_no_headroom() -> None:
    highs = np.random.default_rng(0).uniform(0.99, 1.0, (50, 8))
    assert headroom(highs, -highs) < 1.02


def test_a_channel_that_answered_once_makes_all_careful() -> None:
    highs = np.full((50, 8), 0.01)
    highs[:, 0] = 1.0
    careless = headroom(highs, 0 * highs)
    highs[7, 3] = 0.9
    assert headroom(highs, 0 * highs) > 10 * careless


def test_one_sample_tells_nothing() -> None:
    highs = np.linspace(0.1, 1, 8)[None]
    high, low, _ = ChannelMoments(highs, -highs, highs[0], highs[0], 1).ends()
    assert (high == 1.0).all()
    assert (low == -1.0).all()


def test_a_silent_channel_counts_as_large() -> None:
    highs = np.ones((50, 4))
    highs[:, 2] = 0
    high, _, silent = ChannelMoments(highs, 0 * highs, highs[0], highs[0], 50).ends()
    assert silent.tolist() == [False, False, True, False]
    assert high[2] == 1.0
