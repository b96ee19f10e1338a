"""AdaRound on small networks with few bits, and what each layer is given to learn from."""

import time
from dataclasses import replace

import numpy as np
import pytest
from benches import with_bits
from graphs import parse

from calibrators.collect import collect
from calibrators.data.samples import Sample
from calibrators.session import open_session
from onnxq.algorithms.context import CorrectionContext
from onnxq.algorithms.draft import Draft
from onnxq.algorithms.layers.biases import bias_of
from onnxq.algorithms.layers.matrices import in_parts, layers
from onnxq.algorithms.weights.adaround import (
    AIM_BYTES,
    _Clock,
    aim_bytes,
    float_outputs,
    layer_problem,
    learn_rounding,
)
from onnxq.calibration.qparams import calibrator, compute_qparams, from_statistics
from onnxq.core.config import QuantConfig
from onnxq.core.numerics import dequantize, quantize
from onnxq.core.plan import OPSET, OPSET_OF_BLOCKS
from onnxq.core.progress import silent
from onnxq.graph.passes import simplify
from onnxq.planner import make_plan
from onnxq.targets.lookup import get_target
from onnxq.verify.accuracy import AccuracyEvaluator

pytest.importorskip("torch")

IMAGES = """g (float[N,4,9,9] x) => (float[N,5,5,5] y)
<float[8,4,1,1] w1, float[8] b1, float[8,1,3,3] w2, float[8] b2, float[5,8,1,1] w3>
{
    a = Conv (x, w1, b1)  r = Relu (a)
    d = Conv <group = 8, strides = [2, 2], pads = [1, 1, 1, 1]> (r, w2, b2)  c = Relu (d)
    y = Conv (c, w3)
}"""

ROWS = """g (float[N,M,16] x) => (float[N,M,6] y)
<float[16,12] w1, float[12] b1, float[12,6] w2>
{ p = MatMul (x, w1)  s = Add (p, b1)  r = Relu (s)  y = MatMul (r, w2) }"""

MODELS = {"images": (IMAGES, (4, 9, 9)), "rows": (ROWS, (7, 16))}


def correlated(shape, count, seed=0):
    """Samples whose channels follow two hidden ones. The last axis, or the first of three, counts channels."""
    rng = np.random.default_rng(seed)
    axis = 0 if len(shape) == 3 else -1
    mixing = np.random.default_rng(7).normal(size=(2, shape[axis]))
    for number in range(count):
        hidden = rng.normal(size=(*np.delete(shape, axis), 2)) + 0.5
        values = np.moveaxis(hidden @ mixing, -1, axis) + 0.2 * rng.normal(size=shape)
        yield Sample(f"sample {number}", {"x": values[None].astype(np.float32)})


def drafted(text, samples, config=None):
    """The model, quantized with weights rounded to nearest; to 4 of 8 bits if there is no ``config``."""
    model = simplify(parse(text), OPSET if config is None else OPSET_OF_BLOCKS)
    plan = make_plan(model, get_target("onnxruntime"), config or QuantConfig())
    plan = with_bits(plan, 4) if config is None else plan
    statistics = collect(model, plan.observed, samples)
    plan = compute_qparams(model, plan, from_statistics(statistics, calibrator(config or QuantConfig())))
    return Draft(model, model, plan, {})


def scene(name, config=None, **options):
    """A draft and what to work with."""
    text, shape = MODELS[name]
    fit = list(correlated(shape, 24))
    draft = drafted(text, fit, config)
    evaluator = AccuracyEvaluator(draft.reference, list(correlated(shape, 8, seed=1)), threads=1)
    progress = options.pop("progress", silent)
    return draft, CorrectionContext(
        fit, evaluator, config=QuantConfig(threads=1, **options), progress=progress
    )


def constants(draft):
    return {name: value.const_value.numpy() for name, value in draft.model.graph.initializers.items()}


@pytest.fixture(params=MODELS)
def case(request):
    return scene(request.param)


def test_the_model_comes_closer(case):
    draft, context = case
    learned = learn_rounding(draft, context)
    assert context.error(learned) < 0.8 * context.error(draft)


@pytest.mark.parametrize("weight", ["int4", "uint4", "int8"])
def test_types_of_any_width_and_with_zero_points_come_closer(weight):
    draft, context = scene("rows", QuantConfig(weight=weight))
    assert context.error(learn_rounding(draft, context)) < context.error(draft)


def test_weights_lie_on_their_grid_and_nothing_but_they_and_biases_changes():
    draft, context = scene("images")
    learned = learn_rounding(draft, context)
    tensors = {layer.weight.tensor: layer for layer in layers(draft.reference, draft.plan)}
    places = (bias_of(draft.reference.graph.node(layer.name)) for layer in tensors.values())
    biases = {bias.tensor for bias in places if bias is not None}
    before, after = constants(draft), constants(learned)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed & set(tensors)
    assert changed & biases
    assert changed <= set(tensors) | biases
    for name in changed & set(tensors):
        params, spec = draft.plan.params[tensors[name].weight.group], tensors[name].weight.spec
        again = dequantize(quantize(after[name], params, spec), params, spec)
        np.testing.assert_allclose(after[name], again, rtol=1e-6)


def test_the_same_seed_gives_the_same_weights():
    one, same = (constants(learn_rounding(*scene("images", seed=5))) for _ in range(2))
    for name, values in one.items():
        np.testing.assert_array_equal(values, same[name])


def test_without_time_nothing_changes():
    assert learn_rounding(*scene("rows", time_limit=0)) is None


def test_time_is_shared_by_what_is_left_to_do():
    clock = _Clock(time.monotonic() + 100, 10)
    assert [round(clock.share(cost)) for cost in (5, 2, 3)] == [50, 40, 100]


def test_aims_are_taken_together_as_far_as_memory_goes():
    draft, _ = scene("images")
    found = layers(draft.reference, draft.plan)
    assert list(in_parts(found, aim_bytes, AIM_BYTES)) == [found]
    assert list(in_parts(found, aim_bytes, 1)) == [[layer] for layer in found]


def test_too_few_rows_to_check_with_change_nothing():
    draft, context = scene("rows")
    one = Sample("a row", {"x": context.fit[0].feeds["x"][:, :1]})
    assert learn_rounding(draft, replace(context, fit=[one])) is None


def test_what_does_not_hold_on_other_rows_is_dropped(monkeypatch):
    monkeypatch.setattr(
        "onnxq.algorithms.weights.adaround.learn", lambda given, *_: replace(given, levels=given.levels + 1)
    )
    assert learn_rounding(*scene("rows")) is None


def test_weights_with_two_readers_are_left():
    text = """g (float[N,M,8] x) => (float[N,M,8] y)
    <float[8,8] w, float[8,8] v>
    { a = MatMul (x, w)  r = Relu (a)  b = MatMul (r, w)  y = MatMul (b, v) }"""
    fit = list(correlated((5, 8), 24))
    draft = drafted(text, fit)
    context = CorrectionContext(
        fit, AccuracyEvaluator(draft.reference, fit, threads=1), config=QuantConfig(threads=1)
    )
    learned = learn_rounding(draft, context)
    np.testing.assert_array_equal(constants(learned)["w"], constants(draft)["w"])
    assert not np.array_equal(constants(learned)["v"], constants(draft)["v"])


def test_it_says_how_far_it_is():
    told = []
    draft, context = scene("rows", progress=lambda *now: told.append(now))
    learn_rounding(draft, context)
    assert told == [("AdaRound", 0, 2), ("AdaRound", 1, 2)]


# --- What a layer learns from -------------------------------------------------------------------


def task_of(draft, context, number):
    """The task of the layer with this number."""
    layer = layers(draft.reference, draft.plan)[number]
    (aim,) = float_outputs(draft.reference, [layer], context)
    return layer_problem(draft, layer, aim, context)


def test_wanted_is_what_the_float_model_gives_behind_the_activation():
    draft, context = scene("rows")
    given = task_of(draft, context, 0)
    session = open_session(draft.reference, outputs=["r"])
    expected = np.concatenate([session.run(["r"], dict(batch.feeds))[0][0] for batch in context.fit])
    assert given.limits == (0, np.inf)
    np.testing.assert_allclose(given.wanted[0], expected, rtol=1e-4, atol=1e-5)


def test_rows_are_those_of_the_quantized_model():
    draft, context = scene("rows")
    given = task_of(draft, context, 1)
    scale = draft.plan.params[layers(draft.reference, draft.plan)[1].data.group].scale
    levels = given.rows / scale
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-3)
    session = open_session(draft.reference, outputs=["r"])
    exact = np.concatenate([session.run(["r"], dict(batch.feeds))[0][0] for batch in context.fit])
    assert 0 < np.abs(given.rows[0] - exact).max() < 0.5 * exact.max()


def test_a_layer_without_a_bias_or_an_activation():
    draft, context = scene("rows")
    given = task_of(draft, context, 1)
    assert given.limits == (-np.inf, np.inf)
    assert not given.biased
    assert not given.bias.any()
    assert given.error() < np.square(given.wanted).sum() / given.wanted.shape[1]


def test_samples_share_the_rows_and_memory_bounds_them(monkeypatch):
    draft, context = scene("images")
    monkeypatch.setattr("onnxq.algorithms.weights.adaround.ROWS", 48)
    assert task_of(draft, context, 0).rows.shape == (1, 48, 4)
    monkeypatch.setattr("onnxq.algorithms.weights.adaround.ROW_BYTES", 24 * 4 * (4 + 8))
    assert task_of(draft, context, 0).rows.shape == (1, 24, 4)
